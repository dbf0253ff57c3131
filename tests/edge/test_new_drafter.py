"""Another drafter takes the place of an agent's: it proves itself first, and what is under way ends as it began."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.core.request import Mode
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.audit.audits import Audits
from cutline.edge.generation.conditions import PLAIN
from cutline.edge.generation.events import Event
from cutline.edge.generation.gate import Gate, Group
from cutline.edge.generation.result import Answer, Decision
from cutline.errors import InputError, ModelMismatch
from cutline.models.bundle import Bundle
from cutline.models.hub.origin import Learnt, ModelOrigin
from cutline.testing.together import asking, ids

ASKED = next(one for one in requests(Split.EVALUATION, 1, seed=11) if one.question.kind == "describe")
KEEPS_ALL = Group(threshold=0.0, risk=0.5, confidence=0.9, requests=100, kept=100, disagreed=0)
GATE = msgspec.to_builtins(Gate({PLAIN: KEEPS_ALL}))


def bundle(name: str, **fields: object) -> Bundle:
    """The demo's drafter under another name and identity."""
    found = Bundle.open(DRAFTER)
    changed = {"name": name, "identity": name.encode().hex().ljust(64, "0"), "calibration": GATE, **fields}
    return Bundle(found.path, msgspec.structs.replace(found.manifest, **changed))


@asynccontextmanager
async def running(drafter: Bundle, audit: float = 0.0) -> AsyncIterator[Agent]:
    settings = AgentSettings(audit=audit)
    async with (
        serve(Bundle.open(TARGET), WorkerOptions(slots=2)) as address,
        Agent(drafter, worker=address, threads=1, settings=settings) as agent,
    ):
        yield agent


def decision(answer: Answer) -> Decision:
    assert answer.gate is not None
    return answer.gate.decision


def test_a_new_drafter_only_drafts_until_the_target_agreed_with_it() -> None:
    async def run() -> None:
        async with running(bundle("old")) as agent:
            truth = ids(await agent.answer(asking(ASKED, Mode.CLOUD)))
            assert decision(await agent.answer(asking(ASKED, Mode.AUTO))) is Decision.KEPT
            await agent.take(bundle("new"))
            assert agent.state().drafter == "new"
            answers = [await agent.answer(asking(ASKED, Mode.AUTO))]
            assert answers[0].gate is not None
            assert answers[0].gate.audit is not None
            assert answers[0].gate.audit.shut
            while decision(answers[-1]) is not Decision.KEPT:
                answers.append(await agent.answer(asking(ASKED, Mode.AUTO)))
            assert all(ids(one) == truth for one in answers)
            assert all(one.exact and one.drafted for one in answers[:-1]), "verified, each of them"
            (shown,) = agent.state().audits.values()
            assert (shown.audited, shown.disagreed, shown.shut) == (len(answers) - 1, 0, False)
            assert shown.audited > 3

    asyncio.run(run())


def test_what_is_under_way_ends_with_the_drafter_that_it_began_with() -> None:
    async def run() -> None:
        async with running(bundle("old"), audit=1.0) as agent:
            truth = ids(await agent.answer(asking(ASKED, Mode.CLOUD)))
            for mode in (Mode.DRAFT, Mode.EDGE, Mode.AUTO):
                seen = list[Event | Answer]()
                async for event in agent.stream(asking(ASKED, mode)):
                    if not seen:
                        await agent.take(bundle(f"new for {mode}"))
                    seen.append(event)
                answer = seen[-1]
                assert isinstance(answer, Answer)
                assert ids(answer) == truth, "the drafter is right here"
            assert agent.audits_waiting == 0, "an old answer says nothing of the new drafter"
            assert all(not shown.audited for shown in agent.state().audits.values())

    asyncio.run(run())


def test_what_an_audit_shows_of_the_old_one_is_not_the_new_one_s() -> None:
    async def run() -> None:
        async with running(bundle("old"), audit=1.0) as agent:
            agent._waited_for = 1  # so that the audit waits
            await agent.answer(asking(ASKED, Mode.AUTO))
            assert agent.audits_waiting == 1
            await agent.take(bundle("new"))
            assert agent.audits_waiting == 0

    asyncio.run(run())


def test_unproven_groups_are_shut_and_say_so() -> None:
    audits = Audits(unproven=True)
    gate = Gate({PLAIN: KEEPS_ALL})
    assert audits.shut(PLAIN)
    said = audits.said(PLAIN, gate)
    assert said is not None
    assert said.shut
    audits.note_unkept(PLAIN, gate, confidence=1.0, agreed=False)
    count = 0
    while audits.shut(PLAIN):
        audits.note_unkept(PLAIN, gate, confidence=1.0, agreed=True)
        count += 1
    assert count > 4
    assert Audits().said(PLAIN, gate) is None


def test_a_learnt_drafter_serves_whose_answers_it_learnt() -> None:
    learnt = Learnt(drafter="0" * 64, answers=9, tenants=("camera1",))

    async def run() -> None:
        async with running(bundle("old")) as agent:
            await agent.take(bundle("new", origin=ModelOrigin(learnt=learnt)))
            ours, theirs = [
                await agent.answer(asking(ASKED, Mode.AUTO, tenant=tenant)) for tenant in ("camera1", "camera2")
            ]
            assert ours.drafted
            assert not theirs.drafted
            assert ours.exact
            assert theirs.exact
            assert ids(ours) == ids(theirs)
            await agent.answer(asking(ASKED, Mode.EDGE, tenant="camera1"))
            with pytest.raises(InputError, match="serves them alone"):
                await agent.answer(asking(ASKED, Mode.EDGE, tenant="camera2"))

    asyncio.run(run())


def test_what_cannot_take_its_place_leaves_it_there(tmp_path: Path) -> None:
    found = Bundle.open(DRAFTER).manifest
    other_words = {name: "f" * 64 if name == "tokenizer.json" else of for name, of in found.files.items()}

    async def run() -> None:
        async with Agent(bundle("old"), threads=1) as agent:
            with pytest.raises(ModelMismatch, match="drafts for another target"):
                await agent.take(bundle("new", target="f" * 64))
            with pytest.raises(InputError, match="reads other prompts"):
                await agent.take(bundle("new", files=other_words))
            assert agent.state().drafter == "old"
            await agent.answer(asking(ASKED, Mode.EDGE))
        async with Agent(Bundle.open(TARGET), threads=1) as agent:
            with pytest.raises(InputError, match="has no drafter"):
                await agent.take(bundle("new"))

    asyncio.run(run())


def test_each_drafter_has_a_record_of_its_own(tmp_path: Path) -> None:
    """What was shown of the one that goes is there if it comes back, and that of the new one at its next start."""
    settings = AgentSettings(audit=1.0, audit_records=tmp_path)

    async def shown(worker: str, drafter: Bundle) -> list[int]:
        again = Agent(drafter, worker=worker, threads=1, settings=settings)
        return [one.audited for one in again.state().audits.values()]

    async def run() -> None:
        async with serve(Bundle.open(TARGET), WorkerOptions(slots=2)) as address:
            async with Agent(bundle("old"), worker=address, threads=1, settings=settings) as agent:
                await agent.answer(asking(ASKED, Mode.AUTO))
                while agent.audits_waiting:  # noqa: ASYNC110 (nobody else waits)
                    await asyncio.sleep(0)
                await agent.take(bundle("new"))
                for _ in range(2):
                    await agent.answer(asking(ASKED, Mode.AUTO))
            assert await shown(address, bundle("old")) == [1]
            assert await shown(address, bundle("new")) == [2]

    asyncio.run(run())


@pytest.mark.parametrize("change", [{"agree": "judge.py:same"}, {"against": "answers"}])
def test_one_whose_promise_the_target_cannot_show_is_refused(change: dict[str, str]) -> None:
    """Otherwise each of its answers would be an error, or be held against whom nothing was promised of."""
    gate = msgspec.to_builtins(Gate({PLAIN: msgspec.structs.replace(KEEPS_ALL, **change)}))

    async def run() -> None:
        async with running(bundle("old")) as agent:
            with pytest.raises(InputError, match="cannot show what it promises"):
                await agent.take(bundle("new", calibration=gate))
            assert agent.state().drafter == "old"

    asyncio.run(run())
