"""Which slot a session gets, and what it finds there: a slot keeps what it holds when its session ends.

Another session of the same tenant that begins with the same tokens and images goes on from those rows, in that slot or
in a copy. Rows differ where anything before them does, so what is shared is always a beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.models.families import Positions
from cutline.models.sight import shared_seam

LEAST_COPIED = 16  # rows; fewer are run again with the rest as quickly


class Mark(NamedTuple):
    """Where the tokens of an image stand, and which it is; without a `key` it is like no other."""

    first: int
    last: int
    key: bytes | None


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What the rows of a slot were computed from."""

    tenant: str
    tokens: NDArray[np.int64]
    marks: tuple[Mark, ...]
    positions: Positions

    @classmethod
    def of(cls, request: SessionRequest) -> Self | None:
        """Of a session's opening; None where rows come from what nobody can compare."""
        if request.deep or (request.boundary is not None and not request.pictures):
            return None
        marks = tuple(Mark(one.first, one.last, one.key) for one in request.pictures)
        return cls(request.tenant, np.array(request.tokens, np.int64), marks, request.positions)


def shared(held: Content, come: Content) -> int:
    """How many rows, from the first, are the same for both."""
    if held.tenant != come.tenant:
        return 0
    beside = held.positions.sides is not None or come.positions.sides is not None
    if beside and (held.marks != come.marks or any(mark.key is None for mark in come.marks)):
        return 0  # rows before the first picture see all of them
    return shared_seam(held.positions.blocks, come.positions.blocks, _alike(held, come))


def _alike(held: Content, come: Content) -> int:
    """How many tokens, from the first, are the same in both, at the same positions, and stand for the same images."""
    length = min(len(held.tokens), len(come.tokens))
    differing = held.tokens[:length] != come.tokens[:length]
    length = int(differing.argmax()) if differing.any() else length
    length = held.positions.agreeing(come.positions, length)
    for one, other in zip_longest(held.marks, come.marks):
        if one is None or other is None or one != other or one.key is None:
            # An image that is another one, or that one of them takes for mere tokens.
            return min([length, *(mark.first for mark in (one, other) if mark is not None)])
    return length


@dataclass(frozen=True, slots=True)
class SlotPlace:
    """A session's `slot`, whose first `reused` rows are those of the slot `source`, often the same."""

    slot: int
    source: int
    reused: int


@dataclass(slots=True, eq=False)
class _Slot:
    content: Content | None = None
    length: int = 0  # rows of it that stand
    used: int = 0  # the higher, the later
    free: bool = True


class Slots:
    """`count` slots, and who may go on from what stands in them.

    That is after so many of the first positions of a slot, which all stand, as `kept` says.
    """

    def __init__(self, count: int, kept: Callable[[int, int], int] = lambda slot, count: count) -> None:
        self._kept = kept
        self._slots = [_Slot() for _ in range(count)]
        self._turn = 0
        self.free = count

    def take(self, come: Content | None, running: Mapping[int, int]) -> SlotPlace | None:
        """A place for a session whose opening is `come`, None if all are taken; the last token is always run.

        `running` has the rows that stand by now in slots that are taken.
        """
        if self.free == 0:
            return None
        for number, length in running.items():
            slot = self._slots[number]
            # Of what was decoded since nothing is known here until the session ends.
            slot.length = length if slot.content is None else min(length, len(slot.content.tokens))
        spare = self._spare()
        source, reused = (spare, 0) if come is None else self._longest(come)
        held = self._slots[source]
        if reused and held.free and 2 * reused >= held.length:  # little is lost that somebody may want
            spare = source
        elif reused < LEAST_COPIED and source != spare:
            source, reused = spare, 0
        taken = self._slots[spare]
        taken.free, taken.content, taken.length = False, come, reused
        self.free -= 1
        return SlotPlace(spare, source, reused)

    def give(self, number: int, tokens: Sequence[int]) -> None:
        """The session of a slot has ended, and left there rows of `tokens`; or none that anybody may go on from."""
        slot = self._slots[number]
        left = None if slot.content is None or not tokens else replace(slot.content, tokens=np.array(tokens, np.int64))
        self._turn += 1
        slot.free, slot.content, slot.length, slot.used = True, left, len(tokens), self._turn
        self.free += 1

    def _spare(self) -> int:
        """A free slot that holds nothing, or else one of those that were used longest ago.

        The lowest of them: sessions in slots near each other share calls.
        """
        free = [number for number, slot in enumerate(self._slots) if slot.free]
        if empty := [number for number in free if self._slots[number].content is None]:
            return empty[0]
        by_age = sorted(free, key=lambda number: self._slots[number].used)
        return min(by_age[: (len(by_age) + 1) // 2])

    def _longest(self, come: Content) -> tuple[int, int]:
        """The slot that shares most with `come`, one that is free if there is a choice, and how many rows."""
        best, most = 0, (0, False)
        for number, slot in enumerate(self._slots):
            held, least = slot.content, max(0, most[0] - 1)
            # One look tells of most slots that they share less than the best so far.
            if held is None or slot.length <= least or held.tokens[least] != come.tokens[least]:
                continue
            found = self._kept(number, min(shared(held, come), slot.length, len(come.tokens) - 1))
            if (found, slot.free) > most:
                best, most = number, (found, slot.free)
        return best, self._kept(best, self._placed_alike(self._slots[best].content, come, most[0]))

    def _placed_alike(self, held: Content | None, come: Content, count: int) -> int:
        """How many of so many rows the decoder also sees at the same positions: all, if images are what they are."""
        if held is None or count == 0:
            return 0
        differing = (held.positions.at(0, count) != come.positions.at(0, count)).any(0)
        return int(differing.argmax()) if differing.any() else count
