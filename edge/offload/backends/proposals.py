"""What is drafted for a worker: by the drafter or from recent answers, whichever was right more often so far."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from cutline.edge.generation.generation import Generation
from cutline.edge.generation.recent_answers import Proposal, RecentAnswers
from cutline.edge.generation.result import DraftedBy

WEIGHT = 4  # tokens that what is believed beforehand counts for
SHARES = {DraftedBy.DRAFTER: 0.8, DraftedBy.RECENT: 0.8}  # of a source's tokens that are right, as believed beforehand
SHORT_SHARE = 0.5  # likewise of what followed fewer tokens than LONG
LONG = 4


@dataclass(frozen=True, slots=True)
class RecentDrafts:
    """What recent answers say of one question of one tenant."""

    answers: RecentAnswers
    tenant: str
    question: Hashable

    def whole(self) -> tuple[int, ...]:
        """A whole answer to the same question, empty where none is worth it."""
        return self.answers.whole(self.tenant, self.question)

    def following(self, answer: Sequence[int]) -> Proposal | None:
        """What may follow `answer`."""
        return self.answers.following(self.tenant, self.question, answer)


def better(generation: Generation, found: Proposal | None, *, drafting: bool) -> DraftedBy | None:
    """Who is to draft next: recent answers, which cost nothing, unless there is a drafter that was right more often."""
    if found is None:
        return DraftedBy.DRAFTER if drafting else None
    before = SHARES[DraftedBy.RECENT] if found.matched >= LONG else SHORT_SHARE
    recent = _share(generation, DraftedBy.RECENT, before)
    if drafting and _share(generation, DraftedBy.DRAFTER, SHARES[DraftedBy.DRAFTER]) > recent:
        return DraftedBy.DRAFTER
    return DraftedBy.RECENT


def _share(generation: Generation, by: DraftedBy, before: float) -> float:
    right, known = generation.record(by)
    return (right + WEIGHT * before) / (known + WEIGHT)
