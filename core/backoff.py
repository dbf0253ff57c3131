"""When to try again what failed: after a while, which doubles each time."""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST_WAIT, LAST_WAIT = 1.0, 30.0  # seconds


class Backoff:
    """How long to leave alone what failed: `first` seconds, then twice as long each time, up to LAST_WAIT."""

    def __init__(self, *, first: float = FIRST_WAIT, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first = self._wait = first
        self._again: float | None = None

    @property
    def tried(self) -> bool:
        """Whether it is needed: the last try failed."""
        return self._again is not None

    @property
    def left(self) -> float:
        """Seconds until the next try; 0 where nothing is wrong."""
        return 0.0 if self._again is None else max(0.0, self._again - self._clock())

    def failed(self) -> None:
        """Begin to wait, longer than the last time."""
        self._again = self._clock() + self._wait
        self._wait = min(2 * self._wait, LAST_WAIT)

    def worked(self) -> None:
        """Nothing to wait for."""
        self._again, self._wait = None, self._first
