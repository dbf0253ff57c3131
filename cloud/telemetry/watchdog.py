"""Noticing that a worker's device hangs: work that takes far longer than it ever does.

A process whose device hangs still answers whoever asks how it is. So what the engine is at is looked at from another
thread: a pass, or a step of an image, that takes ten times what is usual will not end any more.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

TIMES = 10.0  # what is usual, after which work is taken to hang
LEAST_SECONDS, MOST_SECONDS = 5.0, 60.0
TICK = 0.25  # seconds between two looks


@dataclass(frozen=True, slots=True, eq=False)
class EngineWork:
    """Something that an engine is at; it does not `usually` take more than so many seconds, None if nobody knows."""

    usually: float | None


class EngineProgress:
    """What an engine is at: told by its thread alone, looked at by others."""

    def __init__(self) -> None:
        self.work: EngineWork | None = None

    @contextlib.contextmanager
    def at(self, usually: float | None) -> Iterator[None]:
        """It is at something that does not `usually` take more than so many seconds, None if nobody knows."""
        self.work = EngineWork(usually)
        try:
            yield
        finally:
            self.work = None


def patience(usually: float | None) -> float:
    """Seconds after which work is taken to hang."""
    return MOST_SECONDS if usually is None else min(max(LEAST_SECONDS, TIMES * usually), MOST_SECONDS)


class Watchdog:
    """Looks at what is `working` and calls `on_hang` once, from a thread of its own, with the seconds that it took."""

    def __init__(self, working: Callable[[], EngineWork | None], on_hang: Callable[[float], object]) -> None:
        self._working = working
        self._on_hang = on_hang
        self._seen: EngineWork | None = None
        self._seconds = 0.0  # for which what was seen is at it
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ending.set()
        self._thread.join()

    def look(self, passed: float) -> bool:
        """Whether what is being worked at hangs, `passed` seconds after the look before.

        A process that was itself held up, with the machine or by a signal, may come late: that is no sign.
        """
        work = self._working()
        if work is None or work is not self._seen:
            self._seen, self._seconds = work, 0.0
            return False
        self._seconds += min(passed, 2 * TICK)
        return self._seconds > patience(work.usually)

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._ending.wait(TICK):
            now = time.monotonic()
            if self.look(now - before):
                self._on_hang(self._seconds)
                return
            before = now
