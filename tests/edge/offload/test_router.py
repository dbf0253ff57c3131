"""Workers that fail in every way they can, behind real gRPC: what they confirm is a script, so every token is known."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import grpc
import msgspec
import pytest

from cutline.core.request import Mode
from cutline.edge.agent import Agent
from cutline.edge.generation.events import Event, Guessed, Settled
from cutline.edge.generation.result import Lost, Tail
from cutline.edge.offload.circuit_breaker import COOL_FIRST
from cutline.edge.offload.router import RETRY_SECONDS, TRIES
from cutline.edge.offload.status import Breaker
from cutline.errors import (
    AccessDenied,
    CutlineError,
    InputError,
    ModelMismatch,
    WorkerBusy,
    WorkerFailed,
    WorkerForgot,
    WorkerUnavailable,
)
from cutline.protos.channel.credentials import AgentKeys
from cutline.protos.v1 import worker_pb2_grpc
from cutline.testing.worker import (
    BREAK,
    BUNDLE,
    END,
    HANG,
    NOTICE,
    OWN,
    SKIP,
    STALL,
    TRUTH,
    ScriptedWorker,
    ask,
    asking,
    drafters_own,
    ids,
    serving,
)

FATES = [HANG, END, BREAK, SKIP, WorkerFailed("broke"), WorkerUnavailable("drains"), WorkerForgot("anew")]


@pytest.mark.parametrize("mode", [Mode.CLOUD, Mode.DRAFT, Mode.AUTO])
@pytest.mark.parametrize("fate", FATES, ids=str)
def test_another_worker_goes_on_where_one_was_lost(fate: CutlineError | str, mode: Mode) -> None:
    for at in random.Random(f"{fate}{mode}").sample(range(len(TRUTH)), 2):  # noqa: S311
        first, second = ScriptedWorker((at, fate)), ScriptedWorker()
        answer, _, addresses = ask([first, second], asking(mode))
        assert ids(answer) == TRUTH, at
        assert answer.exact
        assert answer.alone_from is None
        settled = answer.lost[0].position if answer.lost else at
        assert settled == at or (settled < at and fate in (END, BREAK)), "what ends early may take words with it"
        again = (*first.openings[1:], *second.openings)
        assert [one.tokens for one in again] == [(*first.openings[0].tokens, *TRUTH[:settled])]
        assert (again[0].sampling.seed, again[0].max_tokens, again[0].grids) == (0, 64, first.openings[0].grids)
        if isinstance(fate, WorkerForgot):
            assert (answer.worker, answer.lost) == (addresses[0], ()), "it takes the session again, whole"
            continue
        (lost,) = answer.lost
        assert lost.worker == addresses[0]
        assert lost.next == answer.worker == addresses[1]
        # It is given up an eighth before the notice is over, so that it is not too late.
        assert (lost.silent_ms >= 7 / 8 * NOTICE * 1e3) == (fate is HANG)


@pytest.mark.parametrize("mode", [Mode.CLOUD, Mode.DRAFT, Mode.AUTO])
@pytest.mark.parametrize("fate", FATES, ids=str)
def test_with_no_worker_left_the_drafter_goes_on_and_says_so(fate: CutlineError | str, mode: Mode) -> None:
    at = random.Random(f"{fate}{mode}").randrange(1, len(TRUTH))  # noqa: S311
    worker = ScriptedWorker(*[(at, fate)] * 9)
    answer, _, (address,) = ask([worker], asking(mode))
    assert ids(answer) == (*TRUTH[:at], *drafters_own(TRUTH[:at]))[:64]
    assert (answer.alone_from, answer.tail, answer.exact) == (at, Tail.UNVERIFIED, False)
    assert answer.worker == address, "which settled the beginning"
    assert [lost.next for lost in answer.lost] == [address] * (len(answer.lost) - 1) + [None]
    assert answer.lost[-1].position == at  # a stream that breaks may take words of the worker with it
    assert 1 <= len(answer.lost) == len(worker.openings) - isinstance(fate, WorkerForgot) <= TRIES
    assert list(answer.parts_ms)[-1] == "alone"


@pytest.mark.parametrize("mode", [Mode.DRAFT, Mode.AUTO])
def test_with_nobody_there_the_drafter_answers_at_once(mode: Mode) -> None:
    answer, _, _ = ask([ScriptedWorker((0, WorkerUnavailable("drains")), (0, "break"))], asking(mode))
    assert ids(answer) == OWN
    assert (answer.alone_from, answer.worker, answer.cut) == (0, None, None)
    assert answer.lost[0].why == "drains"
    assert answer.lost[-1].next is None
    assert answer.latency_ms < RETRY_SECONDS * 1e3 + 2000


@pytest.mark.parametrize("error", [WorkerUnavailable("drains"), WorkerFailed("broke"), WorkerBusy("full")], ids=str)
def test_who_asked_for_the_target_hears_why_there_is_none(error: CutlineError) -> None:
    worker = ScriptedWorker(*[(0, error)] * 9)
    with pytest.raises(type(error), match=str(error)):
        ask([worker], asking(Mode.CLOUD))
    assert 1 < len(worker.openings) <= TRIES


@pytest.mark.parametrize("error", [ModelMismatch("another"), AccessDenied("who?")], ids=str)
def test_a_worker_that_does_not_fit_is_passed_over(error: CutlineError) -> None:
    answer, _, addresses = ask([ScriptedWorker((0, error)), ScriptedWorker()], asking(Mode.CLOUD))
    assert ids(answer) == TRUTH
    assert [(lost.worker, lost.why, lost.next) for lost in answer.lost] == [(addresses[0], str(error), addresses[1])]


def test_what_no_worker_can_take_is_not_asked_again() -> None:
    second = ScriptedWorker()
    with pytest.raises(InputError, match="bad"):
        ask([ScriptedWorker((0, InputError("bad"))), second], asking(Mode.DRAFT))
    assert not second.openings


def test_a_busy_worker_is_left_alone_for_as_long_as_it_says() -> None:
    worker, began = ScriptedWorker((0, WorkerBusy("full", retry_seconds=0.6))), time.monotonic()
    answer, *_ = ask([worker], asking(Mode.CLOUD))
    assert time.monotonic() - began >= 0.6
    assert ids(answer) == TRUTH
    other = ScriptedWorker()
    answer, *_ = ask([ScriptedWorker((0, WorkerBusy("full", retry_seconds=60.0))), other], asking(Mode.CLOUD))
    assert len(other.openings) == 1


def test_a_deadline_ends_the_waiting() -> None:
    began = time.monotonic()
    with pytest.raises(WorkerBusy):
        ask([ScriptedWorker((0, WorkerBusy("full", retry_seconds=60.0)))], asking(Mode.CLOUD, timeout=0.5))
    assert time.monotonic() - began < 30


def test_a_silent_worker_that_is_only_busy_is_waited_for() -> None:
    """It says nothing for four times the notice, but answers heartbeats."""
    worker = ScriptedWorker(pause=4 * NOTICE)
    answer, *_ = ask([worker], asking(Mode.CLOUD, max_tokens=3))
    assert answer.lost == ()
    assert ids(answer) == TRUTH[:3]
    assert worker.heartbeats >= 4
    assert answer.bytes_up > 60 * worker.heartbeats


@pytest.mark.parametrize("at", [0, 5])
@pytest.mark.parametrize("mode", [Mode.CLOUD, Mode.DRAFT])
def test_a_worker_that_answers_heartbeats_alone_leaves_time_for_another(mode: Mode, at: int) -> None:
    """The answer is there before the deadline, which a session that waits for it would have used up."""
    first, second = ScriptedWorker((at, STALL)), ScriptedWorker()
    answer, _, addresses = ask([first, second], asking(mode, timeout=8.0))
    assert (ids(answer), answer.exact, answer.alone_from) == (TRUTH, True, None)
    (lost,) = answer.lost
    assert (lost.worker, lost.next, lost.position) == (addresses[0], addresses[1], at)
    assert "said nothing of the answer" in lost.why
    assert first.heartbeats > 0


def test_a_worker_that_answers_heartbeats_alone_has_all_the_time_if_there_is_no_other() -> None:
    worker = ScriptedWorker((5, STALL))
    answer, *_ = ask([worker], asking(Mode.CLOUD, timeout=4.0))
    assert [lost.position for lost in answer.lost] == [5]
    assert "did not answer in time" in answer.lost[0].why
    assert (len(worker.openings), answer.alone_from) == (1, 5)


def test_an_answer_that_was_there_is_not_lost_with_its_worker() -> None:
    answer, *_ = ask([ScriptedWorker((len(TRUTH), END))], asking(Mode.CLOUD))
    assert (ids(answer), answer.lost, answer.exact) == (TRUTH, (), True)


def test_guesses_come_before_the_gate_decides_and_whatever_the_link_does() -> None:
    for mode in (Mode.AUTO, Mode.DRAFT):
        worker = ScriptedWorker(*[(0, HANG)] * 9)
        answer, events, _ = ask([worker], asking(mode))
        guesses = [event for event in events if isinstance(event, Guessed)]
        assert next(event for event in events if isinstance(event, Settled | Lost | Guessed)) is guesses[0]
        assert guesses[0].position == 0
        assert guesses[0].text
        assert answer.text.startswith(guesses[0].text.strip())
        assert guesses[-1].text.strip() == answer.text
        assert len({guess.text for guess in guesses}) > 5, "one a token"


def test_guesses_follow_what_is_settled() -> None:
    _, events, _ = ask([ScriptedWorker(pause=0.05)], asking(Mode.DRAFT))
    told = 0
    for event in events:
        if isinstance(event, Settled):
            told = event.position + len(event.tokens)
        elif isinstance(event, Guessed):
            assert event.position <= told or told == 0
    assert any(isinstance(event, Guessed) and event.position > 0 for event in events)


def test_a_word_to_stop_at_ends_the_session_and_the_drafting() -> None:
    whole, *_ = ask([ScriptedWorker()], asking(Mode.CLOUD))
    word = whole.tokens[4].text.strip()
    assert word
    worker = ScriptedWorker(pause=0.3)
    answer, *_ = ask([worker], asking(Mode.DRAFT, stop=(word,)))
    assert word not in answer.text
    assert answer.complete
    assert worker.told < len(TRUTH)
    lost = ScriptedWorker(*[(2, WorkerFailed("broke"))] * 9)
    answer, *_ = ask([lost], asking(Mode.DRAFT, stop=(word,)))
    assert word not in answer.text, "nor is it in what the drafter says alone"
    assert answer.complete


def test_likelihoods_are_asked_for() -> None:
    worker = ScriptedWorker((3, WorkerFailed("broke")), *[(0, WorkerFailed("broke"))] * 9)
    answer, *_ = ask([worker], asking(Mode.DRAFT, logprobs=2))
    assert (worker.openings[0].likelihoods, worker.openings[0].alternatives) == (True, 2)
    assert answer.alone_from == 3
    assert all(token.logprob is not None and len(token.alternatives) == 2 for token in answer.tokens[3:])


def test_a_trial_that_never_came_to_a_session_lets_another_try() -> None:
    worker = ScriptedWorker()

    async def run() -> None:
        async with serving(worker) as address, Agent(BUNDLE, worker=address, threads=1, notice=NOTICE) as agent:

            def fail(*_: object) -> None:
                raise InputError("no such cut")

            agent.workers.report(address, WorkerFailed("broke"))
            await asyncio.sleep(COOL_FIRST)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(agent._backends.models, "_cross", fail)
                with pytest.raises(InputError, match="no such cut"):
                    await agent.answer(asking(Mode.DRAFT))
            assert not worker.openings
            assert agent.workers.states[0].breaker is Breaker.TRYING, "it was not asked, so nothing is known"
            assert (await agent.answer(asking(Mode.DRAFT))).worker == address

    asyncio.run(run())


def test_a_token_file_that_goes_ends_no_session(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret")
    file.chmod(0o600)

    def during(agent: Agent, event: Event) -> None:
        if isinstance(event, Settled):
            file.unlink(missing_ok=True)

    worker = ScriptedWorker(pause=2 * NOTICE)
    answer, *_ = ask([worker], asking(Mode.CLOUD, max_tokens=3), during, keys=AgentKeys(token_file=file))
    assert (ids(answer), answer.lost) == (TRUTH[:3], ())
    assert worker.heartbeats


def test_with_every_worker_failing_auto_does_not_wait() -> None:
    times, alone, asked = list[float](), list[float](), list[int]()

    async def run() -> None:
        async with Agent(BUNDLE, worker=["127.0.0.1:1", "127.0.0.1:2"], threads=1, notice=NOTICE) as agent:
            for _ in range(6):
                began = time.monotonic()
                answer = await agent.answer(asking(Mode.AUTO))
                times.append(time.monotonic() - began)
                assert (answer.alone_from, answer.exact) == (0, False)
                asked.append(len(answer.lost))
                began = time.monotonic()
                await agent.answer(asking(Mode.EDGE))
                alone.append(time.monotonic() - began)

    asyncio.run(run())
    assert asked[0] == 2
    assert 0 in asked, "both are left alone for a while"
    assert min(times[1:]) < max(alone) + COOL_FIRST


def test_no_worker_at_all() -> None:
    async def run() -> None:
        async with Agent(BUNDLE, worker=None, threads=1) as agent:
            answer = await agent.answer(asking(Mode.AUTO))
            assert (ids(answer), answer.alone_from, answer.tail) == (OWN, 0, Tail.UNVERIFIED)
            assert agent.state().modes == (Mode.EDGE, Mode.AUTO)

    asyncio.run(run())


@pytest.mark.parametrize("notice", [0.0, -1.0, float("nan"), 61.0])
def test_a_notice_that_means_nothing(notice: float) -> None:
    with pytest.raises(InputError, match="notice"):
        Agent(BUNDLE, worker=None, threads=1, notice=notice)


def test_a_question_given_up_leaves_nothing_behind() -> None:
    worker = ScriptedWorker(pause=0.1)

    async def run() -> None:
        server = grpc.aio.server()
        worker_pb2_grpc.add_WorkerServicer_to_server(worker, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        async with Agent(BUNDLE, worker=address, threads=1, notice=NOTICE) as agent:
            stream = agent.stream(asking(Mode.DRAFT))
            async for event in stream:
                if isinstance(event, Settled):
                    break
            await stream.aclose()
            async with asyncio.timeout(60):
                while worker.open:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            answer = await agent.answer(msgspec.structs.replace(asking(Mode.CLOUD), max_tokens=3))
            assert answer.lost == ()
        await server.stop(None)

    asyncio.run(run())
