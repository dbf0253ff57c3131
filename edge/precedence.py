"""Which of an agent's requests begins first, where several are there at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from cutline.core.request import Priority

MOST_SECONDS = 10.0  # that a request waits for others that go first: nobody waits for ever


class Precedence:
    """A request begins once none of a higher priority is there, or after `most` seconds."""

    def __init__(self, *, most: float = MOST_SECONDS) -> None:
        self._most = most
        self._there = Counter[int]()  # requests by rank, in work or waiting
        self._left = asyncio.Condition()

    @asynccontextmanager
    async def turn(self, priority: Priority) -> AsyncIterator[None]:
        """Within this context a request is in work, which begins when its turn has come."""
        rank = priority.rank
        self._there[rank] += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._most), self._left:
                    await self._left.wait_for(lambda: not any(self._there[other] for other in range(rank)))
            yield
        finally:
            self._there[rank] -= 1
            async with self._left:
                self._left.notify_all()
