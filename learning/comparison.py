"""A drafter before and after it learnt, asked the same questions: whether it is better, and what it lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from cutline.core.sampling import GREEDY
from cutline.edge.generation.gate import calibrate_group, confidence_of
from cutline.edge.inference.drafter import Drafter
from cutline.learning.examples import Example, pixels_of
from cutline.models.bundle import Bundle

MAY_LOSE = 0.01  # of what was foreseen of answers that are not to be forgotten
LEAST = 20  # answers that a comparison takes


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """How well a drafter says the answers to some `questions`.

    It says the share `agreed` of them whole, and of the answers' tokens foresees the share `foreseen`, each given those
    before it. A gate that promises the usual risk would keep the share `kept`.
    """

    questions: int
    agreed: float
    foreseen: float
    kept: float


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A drafter `before` and `after`, on answers of its target that it learnt nothing of, and on its own memory.

    There is no memory where no questions were given that are not to be forgotten.
    """

    before: Quality
    after: Quality
    memory_before: Quality | None = None
    memory_after: Quality | None = None

    @property
    def refusal(self) -> str | None:
        """Why the new one is not to take the old one's place; None where it is."""
        if self.after.foreseen <= self.before.foreseen:
            before, after = self.before.foreseen, self.after.foreseen
            return f"it foresees {after:.1%} of the target's tokens, and the old one {before:.1%}"
        if self.memory_before is not None and self.memory_after is not None:
            lost = self.memory_before.foreseen - self.memory_after.foreseen
            if lost > MAY_LOSE:
                return f"it foresees {lost:.1%} fewer of the tokens that it was not to forget"
        return None


def quality_of(
    drafter: Bundle, examples: Sequence[Example], *, threads: int, advance: Callable[[], object] = lambda: None
) -> Quality:
    """How well a drafter's bundle says the answers of some examples, at least one."""
    model = Drafter.open(drafter, threads=threads)
    agreed, confidences, foreseen, tokens = list[bool](), list[float](), 0, 0
    for example in examples:
        pixels = pixels_of(example, drafter.manifest)
        conversation = model.converse(example.prompt, pixels, GREEDY)
        drafted = list(conversation.draft((), len(example.answer)))
        agreed.append(tuple(one.token for one in drafted) == example.answer)
        confidences.append(confidence_of(drafted))
        said = conversation.logits(example.answer[:-1]).argmax(axis=1)
        foreseen += int(np.sum(said == np.array(example.answer)))
        tokens += len(example.answer)
        advance()
    group = calibrate_group(confidences, agreed)
    return Quality(
        questions=len(examples),
        agreed=sum(agreed) / len(agreed),
        foreseen=foreseen / tokens,
        kept=group.kept / group.requests,
    )
