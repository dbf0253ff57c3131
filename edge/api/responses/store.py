"""The responses that are kept, so that a question may go on from one: in memory, bounded, for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cutline.core.conversation import Message
from cutline.edge.api.responses.objects import ResponseObject

SECONDS = 3600.0  # that one is kept
MOST = 256  # are kept ...
MOST_BYTES = 96 << 20  # ... and bytes of them; of one tenant's half of both at most


@dataclass(frozen=True, slots=True)
class KeptResponse:
    """A `response` of so many `tokens`, and the turns that led to it, its own the last; `images` are theirs."""

    response: ResponseObject
    tokens: int
    messages: tuple[Message, ...]
    images: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """What it takes, in bytes, about; images that others have too are counted again."""
        words = sum(len(message.text) for message in self.messages)
        return 4096 + 4 * words + 256 * self.tokens + sum(map(len, self.images))


class ResponseStore:
    """Conversations by tenant and id; where there is no room the oldest goes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: dict[tuple[str, str], tuple[KeptResponse, float]] = {}  # until then; the oldest first

    def keep(self, tenant: str, conversation: KeptResponse) -> None:
        """Keep one, unless it is larger than all that its tenant may have."""
        if conversation.size > MOST_BYTES // 2:
            return
        self._kept[tenant, conversation.response.id] = conversation, self._clock() + SECONDS
        self._shrink(lambda owner: owner == tenant, MOST // 2, MOST_BYTES // 2)
        self._shrink(lambda owner: True, MOST, MOST_BYTES)

    def find(self, tenant: str, name: str) -> KeptResponse | None:
        """The one of that id, if the tenant has it still."""
        self._expire()
        found = self._kept.get((tenant, name))
        return None if found is None else found[0]

    def drop(self, tenant: str, name: str) -> bool:
        """Keep one no more; returns whether it was there."""
        self._expire()
        return self._kept.pop((tenant, name), None) is not None

    def _shrink(self, whose: Callable[[str], bool], most: int, most_bytes: int) -> None:
        self._expire()
        theirs = [(key, one.size) for key, (one, _) in self._kept.items() if whose(key[0])]
        count, size = len(theirs), sum(size for _, size in theirs)
        for key, one in theirs:
            if count <= most and size <= most_bytes:
                return
            del self._kept[key]
            count, size = count - 1, size - one

    def _expire(self) -> None:
        now = self._clock()
        for key in [key for key, (_, until) in self._kept.items() if until <= now]:
            del self._kept[key]
