"""Ctrl-C and SIGTERM of a command that runs until it is stopped: the first ends it in order, the second at once.

SIGHUP has it read its settings again, but for one that a terminal started, whose end that signal tells. A service
manager hears of both.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import NoReturn, Self

from cutline.cli.process.service import Service

INTERRUPTED = 130  # as shells expect after Ctrl-C
NUMBERS = (signal.SIGINT, signal.SIGTERM)
STDIN = 0


class Signals:
    """Hears them in a thread of its own: a context manager, for the main thread.

    Python's own handlers run between two steps of the main thread, which may be in a library for minutes: it imports,
    loads, or waits for a device. Until there is something to end in order, the first signal ends the process at once,
    too.

    With the first signal both become the system's own business, which ends a process without asking it: so the second
    one does that whatever the process is at, even where a library does not let Python's threads run.
    """

    def __init__(self) -> None:
        self._first: Callable[[], object] | None = None
        self._reread: Callable[[], object] = lambda: None  # what comes before there is anything to change
        self._ending = False
        self._service = Service()
        self._thread = threading.Thread(target=self._hear, name="signals", daemon=True)

    def __enter__(self) -> Self:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        # Whichever thread a signal comes to, its number is written there. Some are libraries' own and older than this,
        # as NumPy's, and nothing keeps a signal from them.
        self._woken = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        heard = NUMBERS if os.isatty(STDIN) else (*NUMBERS, signal.SIGHUP)
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in heard}
        for number in NUMBERS:
            _once(number)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            if not self._ending:
                signal.signal(number, handler)
        signal.set_wakeup_fd(self._woken)
        os.close(self._writing)
        self._thread.join()
        os.close(self._reading)

    def end_by(self, first: Callable[[], object]) -> None:
        """From now on the first signal calls `first`, from another thread."""
        self._first = first

    def reread_by(self, reread: Callable[[], object]) -> None:
        """From now on SIGHUP calls `reread`, from another thread."""
        self._reread = reread

    def ready(self) -> None:
        """What the command serves is there: a service manager is told, if there is one."""
        self._service.ready()

    def end_by_setting(self, stop: asyncio.Event) -> None:
        """From now on the first signal sets `stop`, of the event loop that runs."""
        loop = asyncio.get_running_loop()

        def first() -> None:
            with suppress(RuntimeError):  # the loop is closed: the command has ended by itself
                loop.call_soon_threadsafe(stop.set)

        self.end_by(first)

    def _hear(self) -> None:
        if not self._next():
            return
        if self._first is None:
            leave(INTERRUPTED, "interrupted")
        self._ending = True
        for number in NUMBERS:
            _forget(number)
        self._service.stopping()
        self._first()
        if late := self._next():  # it came before the system was told
            os.kill(os.getpid(), late)

    def _next(self) -> int:
        """The next signal that comes, 0 once there is nobody to hear any."""
        while heard := os.read(self._reading, 1):
            if heard[0] in NUMBERS:
                return heard[0]
            if heard[0] == signal.SIGHUP and not self._ending:
                self._read_again()
        return 0

    def _read_again(self) -> None:
        try:
            with self._service.reloading():
                self._reread()
        except Exception:  # a fault of this program: whoever wants it to end must still be heard
            logging.getLogger(__name__).exception("SIGHUP changed nothing")


def leave(code: int, said: str = "") -> NoReturn:
    """End the process now, whatever its other threads are at; `said` goes to stderr.

    Tidying up what libraries hold can take many seconds, and nobody has anything of it.
    """
    if said:
        print("cutline:", said, file=sys.stderr)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


_system = ctypes.CDLL(None)
_system.signal.restype = ctypes.c_void_p


def _forget(number: int) -> int | None:
    """Have the system itself deal with a signal, from any thread; gives the handler that it had."""
    handler: int | None = _system.signal(number, None)
    return handler


def _once(number: int) -> None:
    """Have the system forget the handler of a signal as it calls it."""
    # Which is what System V meant by `signal`. Where there is no such function, the thread that hears does it.
    if (install := getattr(_system, "sysv_signal", None)) is not None:
        install(number, ctypes.c_void_p(_forget(number)))
