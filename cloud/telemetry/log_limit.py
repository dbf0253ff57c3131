"""A rate limit for log lines that callers can cause: one line a second, with a count of the events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

PAUSE_SECONDS = 1.0  # between two lines

Write = Callable[[Mapping[str, object]], object]


class LimitedLog:
    """Calls `write` with the fields of the latest event and the `count` of events since the last line.

    The first event is written at once. For one event loop.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self._last: Mapping[str, object] = {}
        self._count = 0  # since the last line
        self._pause: asyncio.TimerHandle | None = None

    def add(self, fields: Mapping[str, object]) -> None:
        """Log an event with these `fields`, at once or with the next line."""
        self._count, self._last = self._count + 1, fields
        if self._pause is None:
            self._flush()

    def _flush(self) -> None:
        self._pause = None
        if self._count:
            self._write({**self._last, "count": self._count})
            self._count = 0
            self._pause = asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._flush)
