"""Ctrl-C and SIGTERM of a command that runs until it is stopped: the first ends it in order, the second at once."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NoReturn, Self

INTERRUPTED = 130  # as shells expect after Ctrl-C
HURRY_SECONDS = 1.0  # that a command has from the second signal on
NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Hears them in a thread of its own: a context manager, for the main thread.

    Python's own handlers run between two steps of the main thread, which may be in a library for minutes: it imports,
    loads, or waits for a device. What is heard here comes through a socket, at once, whichever thread the system gave
    the signal to: some are of libraries and older than this, as NumPy's, and cannot be kept from it. Until there is
    something to end in order, the first signal ends the process at once, too.
    """

    def __init__(self) -> None:
        self._first: Callable[[], object] | None = None
        self._second: Callable[[], object] = lambda: None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._hear, name="signals", daemon=True)

    def __enter__(self) -> Self:
        self._heard, self._told = socket.socketpair()
        self._told.setblocking(False)
        self._before = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, _leave_it) for number in NUMBERS}
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before)
        self._over.set()
        self._told.close()
        self._thread.join()
        self._heard.close()

    def end_by(self, first: Callable[[], object], second: Callable[[], object]) -> None:
        """From now on the first signal calls `first`, and the next one `second`: both from another thread."""
        self._first, self._second = first, second

    def _hear(self) -> None:
        if not self._next():
            return
        if self._first is None:
            leave(INTERRUPTED, "interrupted")
        self._first()
        if not self._next():
            return
        self._second()
        if not self._over.wait(HURRY_SECONDS):
            leave(INTERRUPTED, "ended at once, with what was open")

    def _next(self) -> bool:
        """Wait for one of them; false once nobody listens any more."""
        while number := self._heard.recv(1):
            if number[0] in NUMBERS:
                return True
        return False


def _leave_it(number: int, frame: FrameType | None) -> None:
    """To the thread that hears it."""


def leave(code: int, said: str = "") -> NoReturn:
    """End the process now, whatever its other threads are at; `said` goes to stderr."""
    if said:
        print("cutline:", said, file=sys.stderr)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code)
