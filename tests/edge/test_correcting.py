"""What was finished alone is corrected when a worker is back, and agents that go offline meanwhile."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from cutline.cli.options import Profiles
from cutline.cli.setting import open_planner
from cutline.core.request import Mode
from cutline.demo.bundles import TARGET
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.generation.events import Corrected, Event, Settled
from cutline.edge.generation.result import Lost, Provenance, Tail
from cutline.edge.offload.router import TRIES
from cutline.errors import (
    InputError,
    WorkerFailed,
    WorkerForgot,
    WorkerUnavailable,
)
from cutline.models.bundle import Bundle
from cutline.testing.worker import (
    BUNDLE,
    NOTICE,
    OWN,
    TRUTH,
    ScriptedWorker,
    ask,
    asking,
    drafters_own,
    ids,
    serving,
)


@pytest.mark.parametrize("mode", [Mode.DRAFT, Mode.CLOUD])
@pytest.mark.parametrize("at", [2, 10])
def test_what_was_finished_alone_is_corrected_when_a_worker_is_back(mode: Mode, at: int) -> None:
    worker = ScriptedWorker(*[(at, WorkerFailed("broke"))] * 3)
    answer, events, (address,) = ask([worker], asking(mode, correct_seconds=10.0))
    alone = (*TRUTH[:at], *drafters_own(TRUTH[:at]))
    told = [token.id for event in events if isinstance(event, Settled) for token in event.tokens]
    assert tuple(told) == alone
    assert ids(answer) == TRUTH
    assert (answer.tail, answer.exact, answer.alone_from, answer.worker) == (Tail.CORRECTED, True, at, address)
    (corrected,) = [event for event in events if isinstance(event, Corrected)]
    first = next(i for i, (ours, right) in enumerate(zip(alone, TRUTH, strict=False)) if ours != right)
    assert corrected.position == first
    assert tuple(token.id for token in corrected.tokens) == TRUTH[first:]
    assert worker.openings[-1].draft == alone[at:], "verified in one pass"
    assert events.index(corrected) > max(i for i, event in enumerate(events) if isinstance(event, Settled))


def test_what_was_right_is_confirmed_and_nothing_is_corrected() -> None:
    worker = ScriptedWorker(*[(2, WorkerFailed("broke"))] * 3, script=OWN)
    answer, events, _ = ask([worker], asking(Mode.DRAFT, correct_seconds=10.0))
    assert (ids(answer), answer.tail, answer.exact) == (OWN, Tail.CONFIRMED, True)
    assert not any(isinstance(event, Corrected) for event in events)
    assert {token.source for token in answer.tokens[2:]} == {Provenance.DRAFT}


@pytest.mark.parametrize("bound", [{"image_must_stay": True}, {"max_leak": 0.0}, {"max_latency_ms": 1e6}], ids=str)
def test_what_a_plan_alone_keeps_to_is_not_corrected(bound: dict[str, Any]) -> None:
    """With its circuit open nothing is planned, and the worker that is back by the end would be sent the picture."""
    worker, target = ScriptedWorker(), Bundle.open(TARGET, "device")

    async def run() -> None:
        async with serving(worker) as address:
            planner = open_planner(
                Profiles(edge_profile="raspberry-pi-5", cloud_profile="l4", link="4g"), BUNDLE, target
            )
            async with Agent(BUNDLE, worker=address, threads=1, notice=NOTICE, target=target, planner=planner) as agent:
                assert agent._planning.meeting is not None
                await agent._planning.meeting
                agent.workers.report(address, WorkerFailed("broke"))
                answer = await agent.answer(asking(Mode.AUTO, correct_seconds=2.0, **bound))
                assert (answer.tail, answer.bytes_up, answer.worker) == (Tail.UNVERIFIED, 0, None)

    asyncio.run(run())
    assert not worker.openings


def test_what_no_worker_takes_is_not_corrected_for_ever() -> None:
    worker = ScriptedWorker(*[(2, WorkerFailed("broke"))] * 3, *[(0, InputError("no"))] * 99)
    answer, *_ = ask([worker], asking(Mode.DRAFT, correct_seconds=8.0))
    assert answer.tail is Tail.UNVERIFIED
    assert len(worker.openings) == 4
    forgets = ScriptedWorker(*[(2, WorkerFailed("broke"))] * 3, *[(2, WorkerForgot("anew"))] * 99)
    ask([forgets], asking(Mode.DRAFT, correct_seconds=8.0))
    assert len(forgets.openings) <= TRIES + TRIES


def test_nobody_is_waited_for_offline_and_what_was_corrected_was_there_before() -> None:
    began = time.monotonic()
    answer, *_ = ask([ScriptedWorker()], asking(Mode.AUTO, correct_seconds=120.0), settings=AgentSettings(offline=True))
    assert answer.tail is Tail.UNVERIFIED

    def during(agent: Agent, event: Event) -> None:
        if isinstance(event, Lost) and event.next is None:
            asyncio.get_running_loop().call_later(0.2, setattr, agent, "offline", True)

    ask([ScriptedWorker(*[(2, WorkerFailed("broke"))] * 99)], asking(Mode.DRAFT, correct_seconds=120.0), during)
    assert time.monotonic() - began < 110, "neither was waited for"
    worker = ScriptedWorker(*[(2, WorkerFailed("broke"))] * 3, pause=0.05)
    began = time.monotonic()
    answer, *_ = ask([worker], asking(Mode.DRAFT, correct_seconds=10.0))
    assert answer.tail is Tail.CORRECTED
    assert answer.latency_ms < (time.monotonic() - began) * 1e3 - 500, "it was looked on for as long as that"


def test_sessions_of_a_worker_that_is_listed_no_more_end_offline_too() -> None:
    def during(agent: Agent, event: Event) -> None:
        if isinstance(event, Settled) and event.position + len(event.tokens) == 3:
            agent.workers._have(["127.0.0.1:9"])
            asyncio.get_running_loop().call_soon(setattr, agent, "offline", True)

    answer, *_ = ask([ScriptedWorker(pause=0.1)], asking(Mode.CLOUD), during)
    assert answer.alone_from is not None
    assert 3 <= answer.alone_from < 8


def test_correcting_ends_in_time() -> None:
    worker, began = ScriptedWorker(*[(2, WorkerFailed("broke"))] * 99), time.monotonic()
    answer, *_ = ask([worker], asking(Mode.DRAFT, correct_seconds=0.8))
    assert answer.tail is Tail.UNVERIFIED
    assert 0.8 <= time.monotonic() - began < 60
    assert len(worker.openings) < 15, "it is left alone longer and longer"


def test_offline_nobody_is_asked() -> None:
    worker = ScriptedWorker()
    for mode in (Mode.AUTO, Mode.DRAFT):
        answer, *_ = ask([worker], asking(mode), settings=AgentSettings(offline=True))
        assert (ids(answer), answer.alone_from, answer.lost, answer.bytes_up) == (OWN, 0, (), 0)
    for mode in (Mode.CLOUD, Mode.SPLIT):
        asked = asking(mode, cut="decoder.1" if mode is Mode.SPLIT else "image")
        with pytest.raises(WorkerUnavailable, match="offline"):
            ask([worker], asked, settings=AgentSettings(offline=True), target=Bundle.open(TARGET, "device"))
    assert not worker.openings
    assert not worker.heartbeats


@pytest.mark.parametrize("mode", [Mode.CLOUD, Mode.DRAFT])
def test_it_may_go_offline_in_the_middle(mode: Mode) -> None:
    def during(agent: Agent, event: Event) -> None:
        if isinstance(event, Settled) and event.position + len(event.tokens) >= 3:
            agent.offline = True

    answer, *_ = ask([ScriptedWorker(pause=0.1), ScriptedWorker()], asking(mode), during)
    assert answer.alone_from is not None
    assert 3 <= answer.alone_from < 8
    assert ids(answer) == (*TRUTH[: answer.alone_from], *drafters_own(TRUTH[: answer.alone_from]))
    assert [lost.next for lost in answer.lost] == [None]
