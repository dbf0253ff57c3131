"""The drafts of one session, on their way to the engine or to the next worker of a chain."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

from cutline.errors import InputError
from cutline.protos.messages import Draft


class Drafts:
    """Drafts on their way to `take`. Until that is known they are held, `limit` tokens at most."""

    def __init__(self, limit: int) -> None:
        self.take: Callable[[Draft], Awaitable[None]] | None = None
        self._held = deque[Draft]()
        self._limit = self._room = limit

    async def put(self, draft: Draft) -> None:
        """Pass a draft on, or hold it. Raises InputError."""
        if self.take is not None:
            await self.take(draft)
            return
        self._held.append(draft)
        self._room -= len(draft.tokens)
        if self._room < 0:  # until something is confirmed, nothing is drafted twice
            raise InputError(f"over {self._limit} tokens were drafted before the session was open")

    async def go_to(self, take: Callable[[Draft], Awaitable[None]]) -> None:
        """Pass on those that were held, and from now on what comes."""
        while self._held:  # may grow meanwhile
            await take(self._held.popleft())
        self.take = take

    def held(self) -> tuple[Draft, ...]:
        """Those that were held, which are held here no more: their rows may be large."""
        held = tuple(self._held)
        self._held.clear()
        return held
