"""The drafter as a backend: what it appends nobody has verified."""

from __future__ import annotations

from collections.abc import Sequence

from cutline.edge.generation.gate import confidence_of
from cutline.edge.generation.generation import Generation
from cutline.edge.generation.result import Provenance
from cutline.edge.inference.drafter import Drafted, likelihoods_of
from cutline.edge.offload.backends.device_models import DeviceWork


class DrafterBackend:
    """The drafter alone, for one request. It goes on from what it believes already, without drafting that again."""

    address: None = None
    session: None = None
    exact = False

    def __init__(self, work: DeviceWork) -> None:
        self._work = work

    @property
    def drafted(self) -> Sequence[Drafted]:
        """What it has drafted last for each place of the answer."""
        return tuple(self._work.drafted.values())

    @property
    def confidence(self) -> float:
        """The probability, by the drafter, of all that it drafted."""
        return confidence_of(self.drafted)

    async def propose(self, generation: Generation) -> None:
        """Draft the whole answer and tell of it, without appending any."""
        await self._work.run(self._propose, generation)
        self._work.believed = tuple(one.token for one in self.drafted)

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
        for token in work.draft((), generation.limit):
            generation.guess([one.token for one in self.drafted])
            transcript.add(token, Provenance.EDGE)
            if transcript.stopped:
                break

    def _extend(self, generation: Generation) -> None:
        work = self._work
        work.begin_drafting()
        for token in work.rest(generation.tokens):
            if generation.complete:
                return
            self._append(generation, token)
        if not generation.complete:
            for token in work.draft(tuple(generation.tokens), generation.limit - len(generation.tokens)):
                self._append(generation, token)
                if generation.over:
                    return

    def _append(self, generation: Generation, token: int) -> None:
        drafted = self._work.drafted.get(len(generation.tokens))
        same = drafted is not None and drafted.token == token
        generation.settle([token], [Provenance.EDGE], [drafted.likelihood if drafted and same else None])
