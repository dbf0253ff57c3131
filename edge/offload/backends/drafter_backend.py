"""The drafter as a backend: what it appends nobody has verified."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cutline.edge.generation.gate import MAX_TOKENS, confidence_of
from cutline.edge.generation.generation import Generation
from cutline.edge.generation.repetition import Repetition
from cutline.edge.generation.result import Ending, Provenance
from cutline.edge.inference.drafter import Drafted, likelihoods_of
from cutline.edge.offload.backends.device_models import DeviceWork


class DrafterBackend:
    """The drafter alone, for one request. It goes on from what it believes already, without drafting that again.

    The answer ends at `until`, by `time.perf_counter`, if it has `least` tokens by then; and where there is a
    `repetition` to look for, and it is found.
    """

    address: None = None
    session: None = None
    exact = False

    least = 1

    def __init__(self, work: DeviceWork, *, until: float = math.inf, repetition: Repetition | None = None) -> None:
        self._work = work
        self._until = until
        self._repetition = repetition

    @property
    def drafted(self) -> Sequence[Drafted]:
        """What it has drafted last for each place of the answer."""
        return tuple(self._work.drafted.values())

    @property
    def confidence(self) -> float:
        """The probability, by the drafter, of all that it drafted."""
        return confidence_of(self.drafted)

    async def propose(self, generation: Generation) -> None:
        """Draft the whole answer and tell of it, without appending any: as much as the gate may keep."""
        await self._work.run(self._propose, generation)
        self._work.believed = tuple(one.token for one in self.drafted)

    async def pooled(self) -> list[NDArray[np.float32]]:
        """Its rows of each of the question's images, averaged to one (width,)."""
        return await self._work.run(self._work.pooled)

    def keep(self, generation: Generation) -> None:
        """Append what was proposed, at once."""
        tokens = [one.token for one in self.drafted]
        generation.settle(tokens, [Provenance.EDGE] * len(tokens), likelihoods_of(self.drafted))

    async def extend(self, generation: Generation) -> None:
        """Append until it is complete, token by token. It is never refused or lost."""
        await self._work.run(self._extend, generation)

    def _propose(self, generation: Generation) -> None:
        work, transcript = self._work, generation.transcript.empty()
        work.begin_drafting()
        for token in work.draft((), min(generation.limit, MAX_TOKENS)):
            generation.guess([one.token for one in self.drafted])
            transcript.add(token, Provenance.EDGE)
            if transcript.stopped:
                break

    def _extend(self, generation: Generation) -> None:
        self._work.begin_drafting()
        for token in self._tokens(generation):
            if generation.complete:
                return
            self._append(generation, token)

    def _tokens(self, generation: Generation) -> Iterator[int]:
        """Tokens that follow those of a generation, to which each is appended: first what is believed already."""
        yield from self._work.rest(generation.tokens)
        left = 0 if generation.complete else generation.limit - len(generation.tokens)
        drafts = self._work.draft(tuple(generation.tokens), left) if left else ()
        for token in drafts:
            yield token
            if generation.complete:  # before another is drafted
                return

    def _append(self, generation: Generation, token: int) -> None:
        drafted = self._work.drafted.get(len(generation.tokens))
        same = drafted is not None and drafted.token == token
        generation.settle([token], [Provenance.EDGE], [drafted.likelihood if drafted and same else None])
        if not generation.complete:
            generation.cut_short = self._cut_short(generation.tokens)

    def _cut_short(self, answer: Sequence[int]) -> Ending | None:
        """Why an answer ends with these tokens, which neither model nor limit ended."""
        if self._repetition is not None and self._repetition.in_answer(answer):
            return Ending.REPETITION
        late = len(answer) >= self.least and time.perf_counter() >= self._until
        return Ending.DEADLINE if late else None
