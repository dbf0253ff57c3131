"""Audits of an agent's kept answers: what is shut, when it is opened again, and what is never audited."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.core.request import Mode, Request
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.audit.auditor import WAITING_BYTES, Auditor
from cutline.edge.audit.audits import EARLY_AUDITS, Audits
from cutline.edge.generation.conditions import PLAIN, group_of
from cutline.edge.generation.gate import Gate, Group
from cutline.edge.generation.result import Answer, Decision, Gated
from cutline.edge.inference.drafter import Drafted, DraftSource
from cutline.edge.offload.backends.openai_upstream import Upstream
from cutline.errors import InputError, WorkerFailed, WorkerUnavailable
from cutline.models.bundle import Bundle
from cutline.testing.drafter import ScriptedDrafter
from cutline.testing.together import asking, ids
from cutline.testing.worker import gated, keeps_from

ASKED = next(one for one in requests(Split.EVALUATION, 1, seed=11) if one.question.kind == "describe")
GATE = Gate({PLAIN: Group(threshold=0.5, risk=0.05, confidence=0.9, requests=100, kept=100, disagreed=0)})


def decision(answer: Answer) -> Decision:
    assert answer.gate is not None
    return answer.gate.decision


def test_a_group_is_shut_by_what_breaks_its_promise_and_opened_by_what_keeps_it() -> None:
    audits = Audits(share=1.0)
    for agreed in [True] * 20 + [False] * 5:
        assert audits.keeps(PLAIN, GATE.groups[PLAIN], 1.0)
        audits.note(PLAIN, GATE, confidence=0.9999, agreed=agreed)
    assert not audits.keeps(PLAIN, GATE.groups[PLAIN], 1.0)
    said = audits.said(PLAIN, GATE)
    assert said is not None
    assert (said.audited, said.disagreed, said.shut, said.threshold) == (25, 5, True, None)
    needed = 0
    while not audits.keeps(PLAIN, GATE.groups[PLAIN], 1.0):
        audits.note_unkept(PLAIN, GATE, confidence=0.9999, agreed=True)
        needed += 1
    assert 40 < needed < 400
    assert audits.every(GATE).keys() == {PLAIN}


def test_what_was_never_calibrated_is_not_counted() -> None:
    audits = Audits(share=1.0)
    audits.note("another", GATE, confidence=1.0, agreed=False)
    assert audits.every(GATE) == {}
    assert Audits().said(PLAIN, GATE) is None


def test_a_drafter_that_strays_is_kept_no_more_until_it_is_right_again() -> None:
    drafts = ScriptedDrafter()

    def strays(honest: DraftSource, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
        for place, one in enumerate(honest.draft(answer, limit)):
            yield Drafted(one.token + 1, one.probability) if place == 3 else one

    async def run() -> None:
        drafter = gated(Bundle.open(DRAFTER), keeps_from(0.0))
        async with (
            serve(Bundle.open(TARGET), WorkerOptions(slots=2)) as address,
            Agent(drafter, worker=address, threads=1, settings=AgentSettings(audit=1.0, open_drafter=drafts)) as agent,
        ):
            truth = ids(await agent.answer(asking(ASKED, Mode.CLOUD)))
            drafts.script = strays
            answers = list[Answer]()
            while not answers or decision(answers[-1]) is not Decision.PASSED:
                answers.append(await agent.answer(asking(ASKED, Mode.AUTO)))
                while agent.audits_waiting:  # noqa: ASYNC110 (nobody else waits)
                    await asyncio.sleep(0)
            kept = [one for one in answers if decision(one) is Decision.KEPT]
            assert 0 < len(kept) < 30
            assert all(ids(one) != truth for one in kept)
            assert ids(answers[-1]) == truth, "the target's own from now on"
            (shown,) = agent.state().audits.values()
            assert shown.shut
            assert shown.disagreed == len(kept) + 1, "that which would have been kept counts, too"
            assert answers[-1].gate is not None
            assert answers[-1].gate.audit is not None
            assert answers[-1].gate.audit.shut

            drafts.script = None
            again = await agent.answer(asking(ASKED, Mode.AUTO))
            while decision(again) is not Decision.KEPT:
                assert ids(again) == truth
                again = await agent.answer(asking(ASKED, Mode.AUTO))
            assert ids(again) == truth
            (shown,) = agent.state().audits.values()
            assert not shown.shut

    asyncio.run(run())


class Asking:
    """Who is asked by an auditor: says `tokens`, or nothing while it is away."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.away = False
        self.busy = False
        self.done = asyncio.Event()

    async def ask(self, request: Request) -> Answer:
        self.asked.append(request)
        if self.away:
            self.away = False
            raise WorkerUnavailable("away")
        self.done.set()
        return said(request, exact=True)


def said(request: Request, *, exact: bool = False, decision: Decision = Decision.NOT_ASKED) -> Answer:
    return Answer(
        text="",
        tokens=[],
        mode=request.mode,
        latency_ms=0.0,
        ttft_ms=0.0,
        bytes_up=0,
        bytes_down=0,
        rounds=0,
        drafted=0,
        accepted=0,
        exact=exact,
        cut=None,
        wire=None,
        worker=None,
        confidence=None,
        complete=True,
        plan=None,
        gate=Gated(group=group_of(request), calibrated=True, decision=decision, promised=0.05),
    )


def test_an_audit_waits_for_those_who_wait_and_for_the_link() -> None:
    async def run() -> None:
        asking_, slept = Asking(), list[float]()
        asking_.busy = asking_.away = True

        async def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 3:
                asking_.busy = False
            await asyncio.sleep(0)

        audits = Audits(share=1.0)
        auditor = Auditor(audits, lambda: (GATE, "it"), ask=asking_.ask, idle=lambda: not asking_.busy, sleep=sleep)
        request = asking(ASKED, Mode.AUTO)
        async with auditor, asyncio.timeout(30):
            auditor.take(request, said(request, decision=Decision.KEPT))
            await asking_.done.wait()
            while auditor.waiting:  # noqa: ASYNC110 (nobody else waits)
                await asyncio.sleep(0)
        assert len(slept) == 4, "three times for another, once for the link"
        assert [one.mode for one in asking_.asked] == [Mode.CLOUD] * 2
        found = audits.said(group_of(request), GATE)
        assert found is None or found.disagreed == 0

    asyncio.run(run())


def test_a_question_with_a_cut_is_audited_at_it_and_what_it_bounds_not_at_all() -> None:
    async def run() -> list[Request]:
        asked = Asking()
        auditor = Auditor(Audits(share=1.0), lambda: (GATE, "it"), ask=asked.ask, idle=lambda: True)
        cut = asking(ASKED, Mode.AUTO, cut="decoder.0")
        noisy = asking(ASKED, Mode.AUTO, cut="decoder.0", noise=0.1)
        async with auditor, asyncio.timeout(30):
            for one in (noisy, cut):
                auditor.take(one, said(one, decision=Decision.KEPT))
            while auditor.waiting:  # noqa: ASYNC110 (nobody else waits)
                await asyncio.sleep(0)
        return asked.asked

    (asked,) = asyncio.run(run())
    assert (asked.mode, asked.cut, asked.noise) == (Mode.SPLIT, "decoder.0", 0.0)


def test_a_question_that_its_worker_always_fails_holds_up_no_other() -> None:
    async def run() -> None:
        audits, bad, good = Audits(share=1.0), asking(ASKED, Mode.AUTO, max_tokens=3), asking(ASKED, Mode.AUTO)
        done = asyncio.Event()

        async def ask(request: Request) -> Answer:
            if request.max_tokens == 3:
                raise WorkerUnavailable("away")
            done.set()
            return said(request, exact=True)

        auditor = Auditor(audits, lambda: (GATE, "it"), ask=ask, idle=lambda: True, sleep=lambda _: asyncio.sleep(0))
        async with auditor, asyncio.timeout(30):
            for one in (bad, good):
                auditor.take(one, said(one, decision=Decision.KEPT))
            await done.wait()

    asyncio.run(run())


def test_an_auditor_that_ends_for_a_fault_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async def ask(request: Request) -> Answer:
            raise RuntimeError("a fault")

        request = asking(ASKED, Mode.AUTO)
        async with Auditor(Audits(share=1.0), lambda: (GATE, "it"), ask=ask, idle=lambda: True) as auditor:
            auditor.take(request, said(request, decision=Decision.KEPT))
            async with asyncio.timeout(30):
                while not caplog.records:  # noqa: ASYNC110 (nothing else tells)
                    await asyncio.sleep(0)

    asyncio.run(run())
    assert "nothing is audited any more: a fault" in caplog.text


def test_long_conversations_wait_within_the_bound_of_pictures() -> None:
    auditor = Auditor(Audits(share=1.0), lambda: (GATE, "it"), ask=Asking().ask, idle=lambda: True)
    text = "a" * (WAITING_BYTES // 8)
    request = Request.about(ASKED.image, text, mode=Mode.AUTO)
    for _ in range(12):
        auditor.take(request, said(request, decision=Decision.KEPT))
    assert auditor.waiting < 8


@pytest.mark.parametrize("decision", [one for one in Decision if one is not Decision.KEPT])
def test_what_was_not_kept_is_not_audited(decision: Decision) -> None:
    auditor = Auditor(Audits(share=1.0), lambda: (GATE, "it"), ask=Asking().ask, idle=lambda: True)
    request = asking(ASKED, Mode.AUTO)
    auditor.take(request, said(request, decision=decision))
    assert auditor.waiting == 0


def test_a_picture_that_must_stay_is_not_audited_and_not_all_wait_for_ever() -> None:
    audits = Audits(share=1.0)
    auditor = Auditor(audits, lambda: (GATE, "it"), ask=Asking().ask, idle=lambda: True)
    for one in (asking(ASKED, Mode.AUTO, image_must_stay=True), asking(ASKED, Mode.AUTO, store=False)):
        auditor.take(one, said(one, decision=Decision.KEPT))
    assert auditor.waiting == 0
    large = msgspec.structs.replace(asking(ASKED, Mode.AUTO), images=(bytes(WAITING_BYTES // 3),))
    for _ in range(5):
        auditor.take(large, said(large, decision=Decision.KEPT))
    assert auditor.waiting == 2
    assert audits.every(GATE)[PLAIN].disagreed == 3, "what is lost speaks against the promise"


def test_an_audit_that_a_worker_fails_at_is_lost_at_last() -> None:
    async def run() -> None:
        audits, request = Audits(share=1.0), asking(ASKED, Mode.AUTO)

        async def ask(request: Request) -> Answer:
            raise WorkerFailed("it fails")

        auditor = Auditor(audits, lambda: (GATE, "it"), ask=ask, idle=lambda: True, sleep=lambda _: asyncio.sleep(0))
        async with auditor, asyncio.timeout(30):
            auditor.take(request, said(request, decision=Decision.KEPT))
            while auditor.waiting:  # noqa: ASYNC110 (nobody else waits)
                await asyncio.sleep(0)
        assert (audits.every(GATE)[PLAIN].audited, audits.every(GATE)[PLAIN].disagreed) == (1, 1)

    asyncio.run(run())


def test_a_share_is_one() -> None:
    with pytest.raises(InputError, match=r"audit is 1\.5"):
        Agent(Bundle.open(DRAFTER), threads=1, settings=AgentSettings(audit=1.5))
    upstream = Upstream("http://127.0.0.1:9", model="other")
    with pytest.raises(InputError, match="an upstream has another model"):
        Agent(Bundle.open(DRAFTER), threads=1, settings=AgentSettings(audit=0.5, upstream=upstream))


def test_whether_an_answer_is_audited_is_settled_by_seed_and_request() -> None:
    """A quarter at first, then the share that was set; whoever asks again, with the same name, gets the same coin."""
    audits, names = Audits(share=0.02, seed=7), [f"request {number}" for number in range(4000)]
    first = {name for name in names if audits.due(PLAIN, name)}
    assert len(first) / len(names) == pytest.approx(0.25, abs=0.03)
    assert first == {name for name in names if Audits(share=0.02, seed=7).due(PLAIN, name)}
    assert first != {name for name in names if Audits(share=0.02, seed=8).due(PLAIN, name)}
    for _ in range(EARLY_AUDITS):
        audits.note(PLAIN, GATE, confidence=0.9, agreed=True)
    later = {name for name in names if audits.due(PLAIN, name)}
    assert len(later) / len(names) == pytest.approx(0.02, abs=0.01)
    assert later < first
    assert first == {name for name in names if audits.due("another", name)}
    assert not any(Audits(seed=7).due(PLAIN, name) for name in names)
    audits.note(PLAIN, GATE, confidence=0.9, agreed=False)
    assert first == {name for name in names if audits.due(PLAIN, name)}, "of what is in doubt more are audited again"


def test_a_group_whose_less_sure_answers_stray_is_kept_more_strictly_and_not_shut(tmp_path: Path) -> None:
    """Answers of at most 0.7 differ half the time. Those above it, which agree, go on being kept, and are audited."""
    audits, promised, rng = Audits(share=1.0, seed=1), GATE.groups[PLAIN], np.random.default_rng(5)

    def answer(*, strays: bool) -> bool:
        sure = float(rng.uniform(0.5, 1.0))
        agreed = not strays or sure > 0.7 or bool(rng.random() < 0.5)
        kept = audits.keeps(PLAIN, promised, sure)
        if kept:
            audits.note(PLAIN, GATE, confidence=sure, agreed=agreed)
        else:
            audits.note_unkept(PLAIN, GATE, confidence=sure, agreed=agreed)
        return kept and not agreed

    wrong = [answer(strays=True) for _ in range(4000)]
    shown = audits.every(GATE)[PLAIN]
    assert not shown.shut
    assert sum(wrong) <= 0.5 * 0.05 * shown.audited + 5
    assert shown.audited > 1500, "most of those above 0.7"
    audits.save(tmp_path / "audits" / "it.json", of="a calibration")
    again = Audits(share=1.0)
    again.load(tmp_path / "audits" / "it.json", of="another one")
    assert again.every(GATE) == {}
    again.load(tmp_path / "audits" / "it.json", of="a calibration")
    assert again.every(GATE) == {PLAIN: shown}
    assert again.seed == 1
    number = 0
    while audits.every(GATE)[PLAIN].threshold != 0.5 and number < 2000:
        answer(strays=False)
        number += 1
    assert number < 500, "what is right again is kept again"


def test_an_agent_that_starts_anew_knows_what_audits_have_shown(tmp_path: Path) -> None:
    """Unless its gate was calibrated anew."""

    async def run() -> None:
        settings = AgentSettings(audit=1.0, audit_records=tmp_path / "audits")
        async with serve(Bundle.open(TARGET), WorkerOptions(slots=2)) as address:
            async with Agent(
                gated(Bundle.open(DRAFTER), keeps_from(0.0)), worker=address, threads=1, settings=settings
            ) as agent:
                for _ in range(3):
                    assert decision(await agent.answer(asking(ASKED, Mode.AUTO))) is Decision.KEPT
                while agent.audits_waiting:  # noqa: ASYNC110 (nobody else waits)
                    await asyncio.sleep(0)
                shown = agent.state().audits
                assert [one.audited for one in shown.values()] == [3]
            again = Agent(gated(Bundle.open(DRAFTER), keeps_from(0.0)), worker=address, threads=1, settings=settings)
            assert again.state().audits == shown
            anew = Agent(gated(Bundle.open(DRAFTER), keeps_from(0.1)), worker=address, threads=1, settings=settings)
            assert anew.state().audits == {}

    asyncio.run(run())


def test_an_audit_that_fails_says_nothing_of_the_drafter_that_came_meanwhile() -> None:
    async def run() -> None:
        fresh = Audits(share=1.0)

        async def fails(request: Request) -> Answer:
            auditor.begin_anew(fresh)
            raise InputError("the target does not take this")

        auditor = Auditor(Audits(share=1.0), lambda: (GATE, "it"), ask=fails, idle=lambda: True)
        request = asking(ASKED, Mode.AUTO)
        async with auditor, asyncio.timeout(30):
            auditor.take(request, said(request, decision=Decision.KEPT))
            while auditor.audits is not fresh or auditor.waiting:  # noqa: ASYNC110 (nobody else waits)
                await asyncio.sleep(0)
        assert fresh.every(GATE) == {}

    asyncio.run(run())


def test_a_record_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "audits").write_text("a file in the folder's place")

    async def run() -> None:
        audits, request = Audits(share=1.0), asking(ASKED, Mode.AUTO)
        auditor = Auditor(
            audits,
            lambda: (GATE, "it"),
            ask=Asking().ask,
            idle=lambda: True,
            save=lambda: audits.save(tmp_path / "audits" / "it.json", of="it"),
        )
        async with auditor, asyncio.timeout(30):
            for _ in range(3):
                auditor.take(request, said(request, decision=Decision.KEPT))
            while auditor.waiting:  # noqa: ASYNC110 (nobody else waits)
                await asyncio.sleep(0)
        assert audits.every(GATE)[PLAIN].audited == 3

    asyncio.run(run())
    assert caplog.text.count("is not kept for a next start") == 1
