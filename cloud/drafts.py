"""The drafts of one session, on their way to the engine or to the next worker of a chain."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from cutline.errors import InputError
from cutline.protos.messages import Draft


class Drafts:
    """Drafts on their way to `take`. Until that is known they are held, `limit` tokens at most."""

    def __init__(self, limit: int) -> None:
        self.take: Callable[[Draft], Awaitable[None]] | None = None
        self.early: list[Draft] = []
        self._limit = self._room = limit

    async def put(self, draft: Draft) -> None:
        """Pass a draft on, or hold it. Raises InputError."""
        if self.take is not None:
            await self.take(draft)
            return
        self.early.append(draft)
        self._room -= len(draft.tokens)
        if self._room < 0:  # until something is confirmed, nothing is drafted twice
            raise InputError(f"over {self._limit} tokens were drafted before the session was open")

    async def go_to(self, take: Callable[[Draft], Awaitable[None]]) -> None:
        """Pass on those that were held, and from now on what comes."""
        for draft in self.early:  # may grow meanwhile
            await take(draft)
        self.take = take
