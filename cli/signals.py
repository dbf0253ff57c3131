"""Ctrl-C and SIGTERM of a command that runs until it is stopped: the first ends it in order, the second at once."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn, Self

INTERRUPTED = 130  # as shells expect after Ctrl-C
HURRY_SECONDS = 1.0  # that a command has from the second signal on
NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Hears them in a thread of its own: a context manager, for the main thread.

    Python's own handlers run between two steps of the main thread, which may be in a library for minutes: it imports,
    loads, or waits for a device. Until there is something to end in order, the first signal ends the process at once,
    too.
    """

    def __init__(self) -> None:
        self._first: Callable[[], object] | None = None
        self._second: Callable[[], object] = lambda: None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._hear, name="signals", daemon=True)

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, signal.SIG_DFL) for number in NUMBERS}
        # All threads that begin after this one have them blocked, too.
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive() and self._thread.ident is not None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                signal.pthread_kill(self._thread.ident, signal.SIGTERM)  # for which it waits, and for nobody else
        self._thread.join()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)

    def end_by(self, first: Callable[[], object], second: Callable[[], object]) -> None:
        """From now on the first signal calls `first`, and the next one `second`: both from another thread."""
        self._first, self._second = first, second

    def _hear(self) -> None:
        signal.sigwait(NUMBERS)
        if self._over.is_set():
            return
        if self._first is None:
            leave(INTERRUPTED, "interrupted")
        else:
            self._first()
        signal.sigwait(NUMBERS)
        if self._over.is_set():
            return
        self._second()
        if not self._over.wait(HURRY_SECONDS):
            leave(INTERRUPTED, "ended at once, with what was open")


def leave(code: int, said: str = "") -> NoReturn:
    """End the process now, whatever its other threads are at; `said` goes to stderr."""
    if said:
        print("cutline:", said, file=sys.stderr)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code)
