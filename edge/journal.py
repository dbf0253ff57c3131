"""What of an agent's answers is kept for learning: those that are the target's own, and that may be stored."""

from __future__ import annotations

import time

from cutline.core.escalations.escalation import Escalation
from cutline.core.escalations.recorder import EscalationRecorder
from cutline.core.request import Request
from cutline.edge.generation.conditions import group_of
from cutline.edge.generation.generation import Generation, Prepared
from cutline.edge.generation.result import DraftedBy
from cutline.models.bundle import Manifest

LIKELIEST = 4  # tokens in each place, of which the target's probability is kept


def is_kept(request: Request) -> bool:
    """Whether the target's answer to a request may be kept. Of films, whose frames are many, none is."""
    return request.store and not request.filmed


def record(
    recorder: EscalationRecorder, prepared: Prepared, generation: Generation, *, served: Manifest, drafter: str
) -> None:
    """Have the target's own answer kept, which is all of a `generation`: of the model that is `served`."""
    request = prepared.request
    if not is_kept(request):
        return
    drafts = (one.tokens for one in generation.drafts if one.by is DraftedBy.DRAFTER and one.start == 0)
    likely = tuple(one.alternatives for one in generation.likelihoods if one is not None)
    recorder.keep(
        Escalation(
            time=time.time(),
            tenant=request.tenant,
            target=served.target or "",
            prompt=prepared.prompt,
            tokens=tuple(generation.tokens),
            images=request.images,
            sampling=request.sampling,
            drafter=drafter,
            draft=next(drafts, ()),
            likely=likely if len(likely) == len(generation.tokens) and all(likely) else (),
            messages=request.messages,
            group=group_of(request),
        )
    )
