"""Exponential backoff: when to retry what failed."""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST_WAIT, LAST_WAIT = 1.0, 30.0  # seconds


class Backoff:
    """Waits `first` seconds after the first failure, then twice as long after each further one, up to LAST_WAIT."""

    def __init__(self, *, first: float = FIRST_WAIT, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first = self._wait = first
        self._again: float | None = None

    @property
    def tried(self) -> bool:
        """Whether the last try failed."""
        return self._again is not None

    @property
    def left(self) -> float:
        """Seconds until the next try; 0 if the last one worked."""
        return 0.0 if self._again is None else max(0.0, self._again - self._clock())

    def failed(self) -> None:
        """A try failed: wait, longer than the last time."""
        self._again = self._clock() + self._wait
        self._wait = min(2 * self._wait, LAST_WAIT)

    def worked(self) -> None:
        """A try worked: start over with the first wait."""
        self._again, self._wait = None, self._first
