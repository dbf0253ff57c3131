"""A worker that is back is used again, whatever happened before: it is probed while questions go elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from cutline.core.request import Mode
from cutline.edge.agent import Agent
from cutline.edge.offload.circuit_breaker import COOL_MOST
from cutline.edge.offload.heartbeat import WorkerSilent
from cutline.edge.offload.recovery import BACK_SECONDS, PROBE_SECONDS, Recovery
from cutline.edge.offload.router import PATIENCE_SECONDS
from cutline.edge.offload.worker_pool import Workers
from cutline.errors import AccessDenied, CutlineError, InputError, WorkerBusy, WorkerFailed, WorkerUnavailable
from cutline.protos.client import WorkerClient
from cutline.protos.messages import Description
from cutline.testing.fleet import ScriptedFleet, Time
from cutline.testing.worker import BUNDLE, DESCRIPTION, TRUTH, ScriptedWorker, asking, ids, serving

A, B = "127.0.0.1:1001", "127.0.0.1:1002"
GONE = WorkerUnavailable("gone")


def fail_often(workers: Workers, address: str, time: Time, error: CutlineError) -> None:
    """Failures one after another, until it is left alone for the longest."""
    for _ in range(8):
        time.now += workers.wait() or 0.0
        workers.report(address, error)
    assert workers.wait(but=[one for one in workers.addresses if one != address]) == pytest.approx(COOL_MOST)


async def until(holds: Callable[[], bool], *, turns: int = 10_000) -> None:
    for _ in range(turns):
        if holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came")


@pytest.mark.parametrize(
    "error",
    [
        WorkerUnavailable("gone"),
        WorkerFailed("broke"),
        AccessDenied("who?"),
        WorkerSilent("dead", notice=2.0, answered=False),
    ],
    ids=lambda error: type(error).__name__,
)
def test_one_that_is_back_is_asked_within_two_seconds_whatever_happened_before(error: CutlineError) -> None:
    async def run() -> None:
        time = Time()
        workers = ScriptedFleet(A, time=time)
        workers.scripts[A].says = GONE
        fail_often(workers, A, time, error)
        script = workers.scripts[A]
        await until(lambda: script.asked >= 3)
        assert workers.choose() is None, "the breaker rests, for questions"
        script.says, back = DESCRIPTION, time.now
        await until(lambda: workers.choose() is not None)
        assert time.now - back <= BACK_SECONDS
        probes = script.asked
        await time.sleep(60)
        assert script.asked == probes, "there is nothing to find out any more"
        await workers.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "says",
    [WorkerUnavailable("gone"), replace(DESCRIPTION, draining=True), AccessDenied("who?"), InputError("keys")],
    ids=["gone", "draining", "denied", "keys"],
)
def test_one_that_takes_no_questions_is_not_taken_for_back(says: Description | CutlineError) -> None:
    async def run() -> None:
        time = Time()
        workers = ScriptedFleet(A, time=time)
        workers.scripts[A].says = says
        fail_often(workers, A, time, WorkerUnavailable("gone"))
        begun = time.now
        await until(lambda: workers.scripts[A].asked >= 5)
        assert time.now - begun < COOL_MOST
        assert workers.choose() is None
        await workers.close()

    asyncio.run(run())


def test_one_that_has_no_room_is_there() -> None:
    async def run() -> None:
        time = Time()
        workers = ScriptedFleet(A, time=time)
        workers.scripts[A].says = WorkerBusy("as many calls as it takes")
        fail_often(workers, A, time, WorkerUnavailable("gone"))
        await until(lambda: workers.choose() is not None)
        await workers.close()

    asyncio.run(run())


def test_one_that_answers_probes_and_fails_at_questions_is_left_alone_for_longer_each_time() -> None:
    async def run() -> None:
        time = Time()
        workers = ScriptedFleet(A, time=time)
        asked = 0
        end = time.now + 120.0
        workers.report(A, WorkerFailed("broke"))
        while time.now < end:
            if workers.choose() is not None:
                asked += 1
                workers.report(A, WorkerFailed("broke"))
            time.now += 0.05
            await asyncio.sleep(0)
        assert asked <= 12, "cool-downs of 0.2 s, thrice as long each time up to 30 s"
        await workers.close()

    asyncio.run(run())


def test_only_those_that_failed_are_probed_and_none_offline() -> None:
    async def run() -> None:
        time = Time()
        workers = ScriptedFleet(A, B, time=time)
        workers.scripts[A].says = GONE
        workers.report(A, WorkerUnavailable("gone"))
        await until(lambda: workers.scripts[A].asked >= 2)
        workers.offline = True
        probes = workers.scripts[A].asked
        for _ in range(100):
            await asyncio.sleep(0)
        assert (workers.scripts[A].asked, workers.scripts[B].asked) == (probes, 0)
        workers.offline = False
        await until(lambda: workers.scripts[A].asked > probes)
        await workers.close()

    asyncio.run(run())


def test_a_connection_by_which_nothing_comes_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutline.edge.offload.worker_pool.ANSWER_SECONDS", 0.01)

    async def run() -> None:
        time = Time()
        workers = ScriptedFleet(A, time=time)
        workers.scripts[A].says = None
        fail_often(workers, A, time, WorkerUnavailable("gone"))
        async with asyncio.timeout(30):
            while not workers.scripts[A].closed:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        await workers.close()

    asyncio.run(run())


def test_a_probe_that_cannot_go_on_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> bool:
        raise RuntimeError("a bug")

    async def run() -> None:
        recovery = Recovery(sleep=Time().sleep)
        recovery.begin("it", broken)
        await until(lambda: "it is not probed any more" in caplog.text)
        recovery.begin("it", broken)
        await recovery.close()

    asyncio.run(run())


def test_a_worker_that_was_started_again_is_found_by_its_port() -> None:
    """Real connections: the agent's clock stands still, so nothing but an answered probe can end the rest."""
    time = Time()

    async def run() -> None:
        async with serving(ScriptedWorker()) as address:
            pass
        workers = Workers((address,), clock=time)
        async with Agent(BUNDLE, worker=workers, threads=1) as agent, asyncio.timeout(60):
            for _ in range(5):
                answer = await agent.answer(asking(Mode.AUTO))
                assert answer.alone_from == 0, "the device answers meanwhile"
            assert workers.choose() is None
            async with serving(ScriptedWorker(), address=address):
                while not workers.reachable:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                answer = await agent.answer(asking(Mode.CLOUD))
            assert ids(answer) == TRUTH

    asyncio.run(run())


def test_while_nobody_is_there_a_question_for_the_target_is_refused_at_once_with_a_time_to_come_back() -> None:
    opened = list[str]()

    class Counted(Workers):
        def choose(self, **options: object) -> WorkerClient | None:
            client = super().choose(**options)  # type: ignore[arg-type]
            if client is not None:
                opened.append(client.address)
            return client

    async def run() -> None:
        async with serving(ScriptedWorker()) as address:
            pass
        time = Time()
        workers = Counted((address,), clock=time)
        async with Agent(BUNDLE, worker=workers, threads=1) as agent, asyncio.timeout(60):
            outcomes = await asyncio.gather(
                *(agent.answer(asking(Mode.CLOUD)) for _ in range(8)), return_exceptions=True
            )
            assert len(opened) <= 8, "none was asked again while the breaker rested"
            later = await asyncio.gather(*(agent.answer(asking(Mode.CLOUD)) for _ in range(8)), return_exceptions=True)
            assert len(opened) <= 8, "nor for those that came then"
            for error in (*outcomes, *later):
                assert isinstance(error, WorkerUnavailable)
                assert error.retry_seconds == BACK_SECONDS

    asyncio.run(run())


def test_the_figures_go_together() -> None:
    # gRPC pauses for half a second and a fifth more between connections, and connecting takes its time.
    assert PROBE_SECONDS + 0.6 < BACK_SECONDS
    assert PATIENCE_SECONDS <= BACK_SECONDS
