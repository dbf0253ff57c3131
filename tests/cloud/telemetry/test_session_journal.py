"""What a worker keeps: whole answers of tenants whose keys say so, of requests that may be stored; nothing else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from cutline.cli.cloud import CloudOptions, check
from cutline.cli.options import Admission, JournalOptions, WorkerKeys
from cutline.cloud.serving.server import Access, WorkerOptions, serve
from cutline.cloud.telemetry.metrics import WorkerMetrics
from cutline.cloud.telemetry.session_journal import SessionJournal
from cutline.core.escalations.escalation import Escalation
from cutline.core.escalations.folder import EscalationJournal, entries_in
from cutline.core.escalations.recorder import EscalationRecorder, JournalCounts
from cutline.core.request import Mode
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.agent import Agent
from cutline.edge.generation.result import Answer
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.protos.channel.credentials import AgentKeys
from cutline.protos.channel.token_file import token_entry
from cutline.protos.codec import agent_from_wire, agent_to_wire
from cutline.protos.messages import Open
from cutline.testing.together import asking, ids

ASKED, OTHER = (one for one in requests(Split.EVALUATION, 2, seed=11) if one.question.kind == "read")
TOKENS = {"willing": "w" * 40, "other": "o" * 40}


def test_only_who_consents_is_kept(tmp_path: Path) -> None:
    tokens, folder = tmp_path / "tokens.toml", tmp_path / "journal"
    entries = "".join(token_entry(tenant, token) for tenant, token in TOKENS.items())
    tokens.write_text(entries + "\n[tenant.willing]\njournal = true\n")
    target, recorder = Bundle.open(TARGET), EscalationRecorder(EscalationJournal(folder, limit=1 << 20))

    async def run() -> dict[str, Answer]:
        journal, answers = SessionJournal(recorder, target.manifest.identity), dict[str, Answer]()
        access = Access(tokens=tokens)
        async with serve(target, WorkerOptions(slots=2), observer=journal, access=access) as address:
            for tenant, token in TOKENS.items():
                async with Agent(Bundle.open(DRAFTER), worker=address, threads=1, keys=AgentKeys(token=token)) as agent:
                    await agent.answer(asking(OTHER, Mode.DRAFT, store=False))
                    answers[tenant] = await agent.answer(asking(ASKED, Mode.DRAFT, logprobs=2))
                    await agent.answer(asking(ASKED, Mode.DRAFT))  # whose picture does not come again
        return answers

    answer = asyncio.run(run())["willing"]
    recorder.close()
    (entry,) = [one for one in entries_in(folder, None) if isinstance(one, Escalation)]
    assert (entry.tenant, entry.target) == ("willing", target.manifest.identity)
    assert entry.tokens == ids(answer)
    (kept,) = map(decode_image, entry.images)
    assert kept.tobytes() == decode_image(ASKED.image).convert(kept.mode).tobytes(), "as it travelled"
    assert len(entry.prompt) == answer.prompt_tokens
    assert [len(one) for one in entry.likely] == [2] * len(entry.tokens)


def test_consent_is_only_what_says_so() -> None:
    opening = Open(model="m", tokens=(1,), prompt_length=1, max_tokens=1)
    assert not agent_from_wire(agent_to_wire(opening)).store  # type: ignore[union-attr]
    assert not opening.store, "an agent from before says nothing of it"


def test_a_worker_without_tenants_keeps_nothing() -> None:
    given = CloudOptions(
        journal=JournalOptions(journal=Path("journal")), admission=Admission(insecure=True), onward=WorkerKeys()
    )
    with pytest.raises(InputError, match="whose key says `journal = true`; give --tokens too"):
        check(given)


def test_metrics_say_what_became_of_answers() -> None:
    metrics = WorkerMetrics()
    metrics.journal(lambda: JournalCounts(kept=3, lost=1, size=700))
    lines = generate_latest(metrics.registry).decode().splitlines()
    assert 'cutline_journal{what="lost"} 1.0' in lines
    assert "cutline_journal_bytes 700.0" in lines
