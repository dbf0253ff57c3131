"""Workers that fail in every way they can, behind real gRPC: what they confirm is a script, so every token is known."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from cutline.cli.setting import open_planner
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.agent import Agent
from cutline.edge.answer import Answer, Lost, Source, Tail, Token
from cutline.edge.asking import RETRY_SECONDS, TRIES
from cutline.edge.breaker import COOL_FIRST
from cutline.edge.drafter import Drafter
from cutline.edge.events import Corrected, Event, Guessed, Settled
from cutline.edge.gate import Gate
from cutline.edge.question import Mode, Question
from cutline.edge.state import Breaker
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
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.prompt import PromptBuilder, question
from cutline.models.sampling import Sampling
from cutline.protos.messages import Confirmed, Finished, Open, Opened, Reason, agent_from_wire, worker_to_wire
from cutline.protos.security import AgentKeys
from cutline.protos.v1 import worker_pb2 as pb
from cutline.protos.v1 import worker_pb2_grpc

BUNDLE = Bundle.open(DRAFTER)
STOP = BUNDLE.manifest.stop_tokens[0]
REQUEST = next(one for one in requests(Split.EVALUATION, 2, seed=11) if one.question.kind == "describe")
NOTICE = 0.3
HANG = "hang"  # it says nothing any more, to anybody
END = "end"  # the stream ends in order, but early
BREAK = "break"  # the stream breaks
SKIP = "skip"  # it goes on at the wrong place

Fate = tuple[int, CutlineError | str]  # before which token of the answer, and what happens


def drafters_own(after: Sequence[int] = ()) -> tuple[int, ...]:
    """What the drafter alone makes of the question, from an answer's first tokens on."""
    pixels = BUNDLE.manifest.family.preprocess(decode_image(REQUEST.image))
    prompt = PromptBuilder.open(BUNDLE).build([question(REQUEST.question.text)], [pixels.grid]).ids
    drafting = Drafter.open(BUNDLE, threads=1).converse(prompt, [pixels], Sampling())
    return tuple(one.token for one in drafting.draft(tuple(after), 64 - len(after)))


OWN = drafters_own()
TRUTH = (*OWN[:6], OWN[6] % 100 + 101, *range(40, 50), STOP)  # the drafter is wrong from the seventh on


class Scripted(worker_pb2_grpc.WorkerServicer):
    """Confirms `TRUTH`, a token or two at a time and drafts of it, and meets its `fates`, one a session."""

    def __init__(self, *fates: Fate, pause: float = 0.0) -> None:
        self.fates = list(fates)
        self.pause = pause
        self.openings: list[Open] = []
        self.open = 0
        self.heartbeats = 0
        self.frozen = False

    async def Probe(self, request: pb.ProbeRequest, context: Any) -> pb.ProbeAnswer:
        self.heartbeats += 1
        while self.frozen:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return pb.ProbeAnswer()

    async def Session(self, messages: AsyncIterator[pb.AgentMessage], context: Any) -> AsyncIterator[pb.WorkerMessage]:
        self.open += 1
        try:
            async for said in self._converse(messages, context):
                yield said
        finally:
            self.open -= 1

    async def _converse(
        self, messages: AsyncIterator[pb.AgentMessage], context: Any
    ) -> AsyncGenerator[pb.WorkerMessage]:
        opening = agent_from_wire(await anext(aiter(messages)))
        assert isinstance(opening, Open)
        self.openings.append(opening)
        at, fate = self.fates.pop(0) if self.fates else (len(TRUTH), "")
        prompt, answer = opening.prompt_length, opening.tokens[opening.prompt_length :]
        assert tuple(answer) == TRUTH[: len(answer)]
        if at == 0:
            async for said in self._meet(fate, prompt, context):
                yield said
            return
        yield worker_to_wire(Opened("it"))
        place = len(answer)
        while place < len(TRUTH):
            if place >= at and fate:
                async for said in self._meet(fate, prompt + place, context):
                    yield said
                return
            step = TRUTH[place : min(place + 1 + place % 2, max(at, place + 1))]
            right = sum(1 for a, b in zip(opening.draft, TRUTH[len(answer) :], strict=False) if a == b)
            yield worker_to_wire(Confirmed(prompt + place, step, min(len(step), max(0, len(answer) + right - place))))
            place += len(step)
            await asyncio.sleep(self.pause)
        yield worker_to_wire(Finished(Reason.STOP, 1, 0, 0.0))
        with contextlib.suppress(asyncio.CancelledError):
            async for _ in messages:
                pass

    async def _meet(self, fate: CutlineError | str, position: int, context: Any) -> AsyncGenerator[pb.WorkerMessage]:
        match fate:
            case CutlineError():
                yield worker_to_wire(fate)
            case "hang":
                self.frozen = True
                await asyncio.sleep(60)
            case "break":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            case "skip":
                yield worker_to_wire(Confirmed(position + 2, (20,), 0))
                await asyncio.sleep(60)


def never_keeps(bundle: Bundle) -> Gate:
    return Gate(threshold=2.0, risk=0.05, confidence=0.9, requests=0, kept=0, disagreed=0)


@pytest.fixture(autouse=True)
def no_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutline.edge.agent.open_gate", never_keeps)


def asking(mode: Mode, **options: Any) -> Question:
    return Question.about(REQUEST.image, REQUEST.question.text, mode=mode, **options)


def ask(
    workers: Sequence[Scripted],
    asked: Question,
    during: Callable[[Agent, Event], object] = lambda agent, event: None,
    **options: Any,
) -> tuple[Answer, list[Event], tuple[str, ...]]:
    """The answer of an agent with these workers, all events before it, and the workers' addresses."""

    async def run() -> tuple[Answer, list[Event], tuple[str, ...]]:
        async with AsyncExitStack() as stack:
            addresses = []
            for worker in workers:
                server = grpc.aio.server()
                worker_pb2_grpc.add_WorkerServicer_to_server(worker, server)
                addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
                await server.start()
                stack.push_async_callback(server.stop, None)
            agent = await stack.enter_async_context(
                Agent(BUNDLE, worker=addresses, threads=1, notice=NOTICE, **options)
            )
            events = list[Event]()
            async with asyncio.timeout(30):
                async for event in agent.stream(asked):
                    events.append(event)
                    during(agent, event)
            answer = events.pop()
            assert isinstance(answer, Answer)
            check(answer, events)
            for _ in range(100):  # whatever was given up is cancelled there
                if not any(worker.open for worker in workers):
                    break
                await asyncio.sleep(0.02)
            assert not any(worker.open for worker in workers)
            return answer, events, tuple(addresses)

    return asyncio.run(run())


def check(answer: Answer, events: Sequence[Event]) -> None:
    """What holds of every answer: the events make it up, no token is doubled or lost, and parts make up the time."""
    tokens = list[Token]()
    for event in events:
        match event:
            case Settled():
                assert event.position == len(tokens)
                tokens += event.tokens
            case Corrected():
                tokens[event.position :] = event.tokens
    assert [token.id for token in tokens] == [token.id for token in answer.tokens]
    assert "".join(token.text for token in tokens).strip() == answer.text
    assert tuple(event for event in events if isinstance(event, Lost)) == answer.lost
    assert all(took >= 0.0 for took in answer.parts_ms.values())
    assert sum(answer.parts_ms.values()) <= answer.latency_ms + 1.0
    assert sum(answer.parts_ms.values()) >= 0.8 * answer.latency_ms - 20.0
    alone = [token for token in answer.tokens if token.source is Source.EDGE]
    assert (answer.alone_from is not None) == (answer.tail is not None)
    if answer.tail is Tail.UNVERIFIED and answer.alone_from is not None:
        assert not answer.exact
        assert len(alone) == len(answer.tokens) - answer.alone_from


def ids(answer: Answer) -> tuple[int, ...]:
    return tuple(token.id for token in answer.tokens)


FATES = [HANG, END, BREAK, SKIP, WorkerFailed("broke"), WorkerUnavailable("drains"), WorkerForgot("anew")]


@pytest.mark.parametrize("mode", [Mode.CLOUD, Mode.DRAFT, Mode.AUTO])
@pytest.mark.parametrize("fate", FATES, ids=str)
def test_another_worker_goes_on_where_one_was_lost(fate: CutlineError | str, mode: Mode) -> None:
    for at in random.Random(f"{fate}{mode}").sample(range(len(TRUTH)), 2):  # noqa: S311
        first, second = Scripted((at, fate)), Scripted()
        answer, _, addresses = ask([first, second], asking(mode))
        assert ids(answer) == TRUTH, at
        assert answer.exact
        assert answer.alone_from is None
        again = (*first.openings[1:], *second.openings)
        assert [one.tokens for one in again] == [(*first.openings[0].tokens, *TRUTH[:at])]
        assert (again[0].seed, again[0].max_tokens, again[0].grids) == (0, 64, first.openings[0].grids)
        if isinstance(fate, WorkerForgot):
            assert (answer.worker, answer.lost) == (addresses[0], ()), "it takes the session again, whole"
            continue
        (lost,) = answer.lost
        assert (lost.worker, lost.position) == (addresses[0], at)
        assert lost.next == answer.worker == addresses[1]
        assert (lost.silent_ms >= NOTICE * 1e3) == (fate is HANG)


@pytest.mark.parametrize("mode", [Mode.CLOUD, Mode.DRAFT, Mode.AUTO])
@pytest.mark.parametrize("fate", FATES, ids=str)
def test_with_no_worker_left_the_drafter_goes_on_and_says_so(fate: CutlineError | str, mode: Mode) -> None:
    at = random.Random(f"{fate}{mode}").randrange(1, len(TRUTH))  # noqa: S311
    worker = Scripted(*[(at, fate)] * 9)
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
    answer, _, _ = ask([Scripted((0, WorkerUnavailable("drains")), (0, "break"))], asking(mode))
    assert ids(answer) == OWN
    assert (answer.alone_from, answer.worker, answer.cut) == (0, None, None)
    assert answer.lost[0].why == "drains"
    assert answer.lost[-1].next is None
    assert answer.latency_ms < RETRY_SECONDS * 1e3 + 2000


@pytest.mark.parametrize("error", [WorkerUnavailable("drains"), WorkerFailed("broke"), WorkerBusy("full")], ids=str)
def test_who_asked_for_the_target_hears_why_there_is_none(error: CutlineError) -> None:
    worker = Scripted(*[(0, error)] * 9)
    with pytest.raises(type(error), match=str(error)):
        ask([worker], asking(Mode.CLOUD))
    assert 1 < len(worker.openings) <= TRIES


@pytest.mark.parametrize("error", [ModelMismatch("another"), AccessDenied("who?")], ids=str)
def test_a_worker_that_does_not_fit_is_passed_over(error: CutlineError) -> None:
    answer, _, addresses = ask([Scripted((0, error)), Scripted()], asking(Mode.CLOUD))
    assert ids(answer) == TRUTH
    assert [(lost.worker, lost.why, lost.next) for lost in answer.lost] == [(addresses[0], str(error), addresses[1])]


def test_what_no_worker_can_take_is_not_asked_again() -> None:
    second = Scripted()
    with pytest.raises(InputError, match="bad"):
        ask([Scripted((0, InputError("bad"))), second], asking(Mode.DRAFT))
    assert not second.openings


def test_a_busy_worker_is_left_alone_for_as_long_as_it_says() -> None:
    worker, began = Scripted((0, WorkerBusy("full", retry_seconds=0.6))), time.monotonic()
    answer, *_ = ask([worker], asking(Mode.CLOUD))
    assert time.monotonic() - began >= 0.6
    assert ids(answer) == TRUTH
    other = Scripted()
    answer, *_ = ask([Scripted((0, WorkerBusy("full", retry_seconds=60.0))), other], asking(Mode.CLOUD))
    assert len(other.openings) == 1


def test_a_deadline_ends_the_waiting() -> None:
    began = time.monotonic()
    with pytest.raises(WorkerBusy):
        ask([Scripted((0, WorkerBusy("full", retry_seconds=60.0)))], asking(Mode.CLOUD, timeout=0.5))
    assert time.monotonic() - began < 5


def test_a_silent_worker_that_is_only_busy_is_waited_for() -> None:
    """It says nothing for four times the notice, but answers heartbeats."""
    worker = Scripted(pause=4 * NOTICE)
    answer, *_ = ask([worker], asking(Mode.CLOUD, max_tokens=3))
    assert answer.lost == ()
    assert ids(answer) == TRUTH[:3]
    assert worker.heartbeats >= 4
    assert answer.bytes_up > 60 * worker.heartbeats


def test_an_answer_that_was_there_is_not_lost_with_its_worker() -> None:
    answer, *_ = ask([Scripted((len(TRUTH), END))], asking(Mode.CLOUD))
    assert (ids(answer), answer.lost, answer.exact) == (TRUTH, (), True)


def test_guesses_come_before_the_gate_decides_and_whatever_the_link_does() -> None:
    for mode in (Mode.AUTO, Mode.DRAFT):
        worker = Scripted(*[(0, HANG)] * 9)
        answer, events, _ = ask([worker], asking(mode))
        guesses = [event for event in events if isinstance(event, Guessed)]
        assert next(event for event in events if isinstance(event, Settled | Lost | Guessed)) is guesses[0]
        assert guesses[0].position == 0
        assert guesses[0].text
        assert answer.text.startswith(guesses[0].text.strip())
        assert guesses[-1].text.strip() == answer.text
        assert len({guess.text for guess in guesses}) > 5, "one a token"


def test_guesses_follow_what_is_settled() -> None:
    _, events, _ = ask([Scripted(pause=0.05)], asking(Mode.DRAFT))
    told = 0
    for event in events:
        if isinstance(event, Settled):
            told = event.position + len(event.tokens)
        elif isinstance(event, Guessed):
            assert event.position <= told or told == 0
    assert any(isinstance(event, Guessed) and event.position > 0 for event in events)


def test_a_word_to_stop_at_ends_the_session_and_the_drafting() -> None:
    whole, *_ = ask([Scripted()], asking(Mode.CLOUD))
    word = whole.tokens[4].text.strip()
    assert word
    worker = Scripted(pause=0.1)
    answer, *_ = ask([worker], asking(Mode.DRAFT, stop=(word,)))
    assert word not in answer.text
    assert answer.complete
    assert answer.latency_ms < 1500
    lost = Scripted(*[(2, WorkerFailed("broke"))] * 9)
    answer, *_ = ask([lost], asking(Mode.DRAFT, stop=(word,)))
    assert word not in answer.text, "nor is it in what the drafter says alone"
    assert answer.complete


def test_likelihoods_are_asked_for() -> None:
    worker = Scripted((3, WorkerFailed("broke")), *[(0, WorkerFailed("broke"))] * 9)
    answer, *_ = ask([worker], asking(Mode.DRAFT, logprobs=2))
    assert (worker.openings[0].likelihoods, worker.openings[0].alternatives) == (True, 2)
    assert answer.alone_from == 3
    assert all(token.logprob is not None and len(token.alternatives) == 2 for token in answer.tokens[3:])


@pytest.mark.parametrize("mode", [Mode.DRAFT, Mode.CLOUD])
@pytest.mark.parametrize("at", [2, 10])
def test_what_was_finished_alone_is_corrected_when_a_worker_is_back(mode: Mode, at: int) -> None:
    worker = Scripted(*[(at, WorkerFailed("broke"))] * 3)
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


def test_what_was_right_is_confirmed_and_nothing_is_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Scripted(*[(2, WorkerFailed("broke"))] * 3)
    monkeypatch.setitem(globals(), "TRUTH", OWN)
    answer, events, _ = ask([worker], asking(Mode.DRAFT, correct_seconds=10.0))
    assert (ids(answer), answer.tail, answer.exact) == (OWN, Tail.CONFIRMED, True)
    assert not any(isinstance(event, Corrected) for event in events)
    assert {token.source for token in answer.tokens[2:]} == {Source.DRAFT}


@pytest.mark.parametrize("bound", [{"image_must_stay": True}, {"max_leak": 0.0}, {"max_latency_ms": 1e6}], ids=str)
def test_what_a_plan_alone_keeps_to_is_not_corrected(bound: dict[str, Any]) -> None:
    """With its circuit open nothing is planned, and the worker that is back by the end would be sent the picture."""
    worker, target = Scripted(), Bundle.open(TARGET, "device")

    async def run() -> None:
        async with serving(worker) as address:
            planner = open_planner("raspberry-pi-5", "l4", "4g", BUNDLE, target)
            async with Agent(BUNDLE, worker=address, threads=1, notice=NOTICE, target=target, planner=planner) as agent:
                while agent.workers.states[0].connected is False:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                agent.workers.report(address, WorkerFailed("broke"))
                answer = await agent.answer(asking(Mode.AUTO, correct_seconds=2.0, **bound))
                assert (answer.tail, answer.bytes_up, answer.worker) == (Tail.UNVERIFIED, 0, None)

    asyncio.run(run())
    assert not worker.openings


@asynccontextmanager
async def serving(worker: Scripted) -> AsyncIterator[str]:
    """The address of a worker."""
    server = grpc.aio.server()
    worker_pb2_grpc.add_WorkerServicer_to_server(worker, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield address
    finally:
        await server.stop(None)


def test_a_trial_that_never_came_to_a_session_lets_another_try() -> None:
    worker = Scripted()

    async def run() -> None:
        async with serving(worker) as address, Agent(BUNDLE, worker=address, threads=1, notice=NOTICE) as agent:

            def fail(prepared: object) -> None:
                raise InputError("no such cut")

            agent.workers.report(address, WorkerFailed("broke"))
            await asyncio.sleep(COOL_FIRST)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(agent, "_cross", fail)
                with pytest.raises(InputError, match="no such cut"):
                    await agent.answer(asking(Mode.DRAFT))
            assert not worker.openings
            assert agent.workers.states[0].breaker is Breaker.TRYING, "it was not asked, so nothing is known"
            assert (await agent.answer(asking(Mode.DRAFT))).worker == address

    asyncio.run(run())


def test_what_no_worker_takes_is_not_corrected_for_ever() -> None:
    worker = Scripted(*[(2, WorkerFailed("broke"))] * 3, *[(0, InputError("no"))] * 99)
    answer, *_ = ask([worker], asking(Mode.DRAFT, correct_seconds=8.0))
    assert answer.tail is Tail.UNVERIFIED
    assert len(worker.openings) == 4
    forgets = Scripted(*[(2, WorkerFailed("broke"))] * 3, *[(2, WorkerForgot("anew"))] * 99)
    ask([forgets], asking(Mode.DRAFT, correct_seconds=8.0))
    assert len(forgets.openings) <= TRIES + TRIES


def test_nobody_is_waited_for_offline_and_what_was_corrected_was_there_before() -> None:
    began = time.monotonic()
    answer, *_ = ask([Scripted()], asking(Mode.AUTO, correct_seconds=20.0), offline=True)
    assert answer.tail is Tail.UNVERIFIED

    def during(agent: Agent, event: Event) -> None:
        if isinstance(event, Lost) and event.next is None:
            asyncio.get_running_loop().call_later(0.2, setattr, agent, "offline", True)

    ask([Scripted(*[(2, WorkerFailed("broke"))] * 99)], asking(Mode.DRAFT, correct_seconds=20.0), during)
    assert time.monotonic() - began < 10
    worker = Scripted(*[(2, WorkerFailed("broke"))] * 3, pause=0.05)
    began = time.monotonic()
    answer, *_ = ask([worker], asking(Mode.DRAFT, correct_seconds=10.0))
    assert answer.tail is Tail.CORRECTED
    assert answer.latency_ms < (time.monotonic() - began) * 1e3 - 500, "it was looked on for as long as that"


def test_sessions_of_a_worker_that_is_listed_no_more_end_offline_too() -> None:
    def during(agent: Agent, event: Event) -> None:
        if isinstance(event, Settled) and event.position + len(event.tokens) == 3:
            agent.workers._have(["127.0.0.1:9"])
            asyncio.get_running_loop().call_soon(setattr, agent, "offline", True)

    answer, *_ = ask([Scripted(pause=0.1)], asking(Mode.CLOUD), during)
    assert answer.alone_from is not None
    assert 3 <= answer.alone_from < 8


def test_a_token_file_that_goes_ends_no_session(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret")
    file.chmod(0o600)

    def during(agent: Agent, event: Event) -> None:
        if isinstance(event, Settled):
            file.unlink(missing_ok=True)

    worker = Scripted(pause=2 * NOTICE)
    answer, *_ = ask([worker], asking(Mode.CLOUD, max_tokens=3), during, keys=AgentKeys(token_file=file))
    assert (ids(answer), answer.lost) == (TRUTH[:3], ())
    assert worker.heartbeats


def test_correcting_ends_in_time() -> None:
    worker, began = Scripted(*[(2, WorkerFailed("broke"))] * 99), time.monotonic()
    answer, *_ = ask([worker], asking(Mode.DRAFT, correct_seconds=0.8))
    assert answer.tail is Tail.UNVERIFIED
    assert 0.8 <= time.monotonic() - began < 6
    assert len(worker.openings) < 15, "it is left alone longer and longer"


def test_offline_nobody_is_asked() -> None:
    worker = Scripted()
    for mode in (Mode.AUTO, Mode.DRAFT):
        answer, *_ = ask([worker], asking(mode), offline=True)
        assert (ids(answer), answer.alone_from, answer.lost, answer.bytes_up) == (OWN, 0, (), 0)
    for mode in (Mode.CLOUD, Mode.SPLIT):
        asked = asking(mode, cut="decoder.1" if mode is Mode.SPLIT else "image")
        with pytest.raises(WorkerUnavailable, match="offline"):
            ask([worker], asked, offline=True, target=Bundle.open(TARGET, "device"))
    assert not worker.openings
    assert not worker.heartbeats


@pytest.mark.parametrize("mode", [Mode.CLOUD, Mode.DRAFT])
def test_it_may_go_offline_in_the_middle(mode: Mode) -> None:
    def during(agent: Agent, event: Event) -> None:
        if isinstance(event, Settled) and event.position + len(event.tokens) >= 3:
            agent.offline = True

    answer, *_ = ask([Scripted(pause=0.1), Scripted()], asking(mode), during)
    assert answer.alone_from is not None
    assert 3 <= answer.alone_from < 8
    assert ids(answer) == (*TRUTH[: answer.alone_from], *drafters_own(TRUTH[: answer.alone_from]))
    assert [lost.next for lost in answer.lost] == [None]


def test_with_every_worker_failing_auto_does_not_wait() -> None:
    times, asked = list[float](), list[int]()

    async def run() -> None:
        async with Agent(BUNDLE, worker=["127.0.0.1:1", "127.0.0.1:2"], threads=1, notice=NOTICE) as agent:
            for _ in range(6):
                began = time.monotonic()
                answer = await agent.answer(asking(Mode.AUTO))
                times.append(time.monotonic() - began)
                assert (answer.alone_from, answer.exact) == (0, False)
                asked.append(len(answer.lost))

    asyncio.run(run())
    assert asked[0] == 2
    assert 0 in asked, "both are left alone for a while"
    assert min(times[1:]) < 0.2


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
    worker = Scripted(pause=0.1)

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
            async with asyncio.timeout(5):
                while worker.open:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            answer = await agent.answer(msgspec.structs.replace(asking(Mode.CLOUD), max_tokens=3))
            assert answer.lost == ()
        await server.stop(None)

    asyncio.run(run())
