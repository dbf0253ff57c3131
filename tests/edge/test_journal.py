"""What an agent keeps for learning: the target's own answers as they were, with consent, and nothing else."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.core.escalations.escalation import Escalation
from cutline.core.escalations.folder import EscalationJournal, entries_in
from cutline.core.escalations.recorder import EscalationRecorder
from cutline.core.request import Mode, Request
from cutline.core.sampling import Sampling
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.reference import Reference
from cutline.demo.requests import requests
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.generation.conditions import PLAIN
from cutline.edge.generation.result import Answer
from cutline.edge.journal import LIKELIEST
from cutline.edge.offload.backends.openai_upstream import Upstream
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.testing.together import asking, ids
from cutline.testing.worker import gated, keeps_from

ASKED = next(one for one in requests(Split.EVALUATION, 1, seed=11) if one.question.kind == "describe")


def kept(folder: Path, asked: Sequence[Request]) -> tuple[list[Answer], list[Escalation]]:
    """The answers of an agent whose gate keeps none, and what its journal has of them."""
    drafter = gated(Bundle.open(DRAFTER), keeps_from(2.0))

    async def run() -> list[Answer]:
        settings = AgentSettings(journal=EscalationRecorder(EscalationJournal(folder, limit=1 << 24)))
        async with (
            serve(Bundle.open(TARGET), WorkerOptions(slots=2)) as address,
            Agent(drafter, worker=address, threads=1, settings=settings) as agent,
        ):
            return [await agent.answer(one) for one in asked]

    answers = asyncio.run(run())
    return answers, [entry for entry in entries_in(folder, None) if entry is not None]


def test_the_target_s_answers_are_kept_as_they_were(tmp_path: Path) -> None:
    request = asking(ASKED, Mode.AUTO, tenant="camera1")
    (answer,), (entry,) = kept(tmp_path, [request])
    reference = Reference(Bundle.open(TARGET))
    assert entry.tokens == ids(answer) == reference.answer(ASKED.image, ASKED.question.text)
    assert (entry.images, entry.messages, entry.tenant) == (request.images, request.messages, "camera1")
    assert entry.draft, "the drafter's whole answer"
    assert entry.group == PLAIN
    assert entry.target == Bundle.open(TARGET).manifest.identity
    assert entry.drafter == Bundle.open(DRAFTER).manifest.identity
    assert len(entry.prompt) == answer.prompt_tokens
    assert [len(one) for one in entry.likely] == [LIKELIEST] * len(entry.tokens)
    assert [one[0][0] for one in entry.likely] == list(entry.tokens), "greedy"
    assert all(sum(math.exp(of) for _, of in one) <= 1.0 + 1e-6 for one in entry.likely)
    assert all(token.logprob is None and not token.alternatives for token in answer.tokens), "nobody asked for them"


def test_what_is_not_to_be_stored_or_is_not_the_target_s_is_not_kept(tmp_path: Path) -> None:
    asked = [
        asking(ASKED, Mode.AUTO, store=False),
        asking(ASKED, Mode.EDGE),
        asking(ASKED, Mode.CLOUD, sampling=Sampling(temperature=0.7, seed=3), logprobs=1),
    ]
    (_, _, drawn), (entry,) = kept(tmp_path, asked)
    assert entry.tokens == ids(drawn)
    assert not entry.plain
    assert (
        [len(token.alternatives) for token in drawn.tokens]
        == [1] * len(drawn.tokens)
        == [len(one) for one in entry.likely]
    )


def test_an_upstream_has_another_model_and_no_journal(tmp_path: Path) -> None:
    journal = EscalationRecorder(EscalationJournal(tmp_path, limit=1 << 24))
    with pytest.raises(InputError, match="of which no drafter learns"):
        Agent(
            Bundle.open(DRAFTER),
            settings=AgentSettings(journal=journal, upstream=Upstream("http://127.0.0.1:9/v1", model="x", key=None)),
        )
    journal.close()
