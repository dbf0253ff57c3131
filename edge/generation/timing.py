"""Where the time of an answer went, part by part."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Stopwatch:
    """A stopwatch: `seconds` of each part, in the order of their beginning. Parts follow each other without a gap."""

    clock: Callable[[], float] = time.perf_counter
    seconds: dict[str, float] = field(default_factory=dict)
    at: float = field(init=False)

    def __post_init__(self) -> None:
        self.at = self.clock()

    def lap(self, part: str) -> None:
        """All since the last lap was `part`."""
        self.waited({}, rest=part)

    def waited(self, known: Mapping[str, float], *, rest: str) -> None:
        """All since the last lap was the `known` parts, as somebody else measured them, and for the rest `rest`."""
        now = self.clock()
        left, self.at = max(0.0, now - self.at), now
        for part, took in known.items():
            took = min(max(0.0, took), left)  # another clock is never believed more than there was
            self.seconds[part] = self.seconds.get(part, 0.0) + took
            left -= took
        self.seconds[rest] = self.seconds.get(rest, 0.0) + left
