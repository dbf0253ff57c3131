"""Lines that strangers and floods bring about: of many a second of one kind, one is written, and says how many."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

PAUSE_SECONDS = 1.0  # between two lines of a kind

Write = Callable[[Mapping[str, object]], object]


class Sparing:
    """Hands the fields of a line to `write`, with the `count` of those that came since the one before.

    The first of a kind is written at once. For one event loop.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self._last: Mapping[str, object] = {}
        self._count = 0  # since the last line
        self._pause: asyncio.TimerHandle | None = None

    def tell(self, fields: Mapping[str, object]) -> None:
        """One more happened, with these `fields`."""
        self._count, self._last = self._count + 1, fields
        if self._pause is None:
            self._tell()

    def _tell(self) -> None:
        self._pause = None
        if self._count:
            self._write({**self._last, "count": self._count})
            self._count = 0
            self._pause = asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._tell)
