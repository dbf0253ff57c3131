"""A scripted worker behind real gRPC, with scripted failures, and an agent that uses it, for tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import msgspec

from cutline.core.agreement.measures import TOKENS
from cutline.core.conversation import question
from cutline.core.request import Mode, Request
from cutline.core.sampling import Sampling
from cutline.demo.bundles import DRAFTER
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.agent import Agent
from cutline.edge.generation.conditions import GROUPS
from cutline.edge.generation.events import Corrected, Event, Settled
from cutline.edge.generation.gate import TARGET, Gate, Group
from cutline.edge.generation.result import Answer, Lost, Provenance, Tail, Token
from cutline.edge.inference.drafter import Drafter
from cutline.errors import (
    CutlineError,
)
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.prompt import PromptBuilder
from cutline.protos.codec import agent_from_wire, description_to_wire, worker_to_wire
from cutline.protos.messages import Confirmed, Description, Finished, Open, Opened, Reason
from cutline.protos.v1 import worker_pb2 as pb
from cutline.protos.v1 import worker_pb2_grpc


def keeps_from(threshold: float, *, agree: str = TOKENS, against: str = TARGET) -> Gate:
    """A gate whose every group keeps answers of this confidence and more, calibrated by this measure, against those."""
    group = Group(
        threshold=threshold,
        risk=0.05,
        confidence=0.9,
        requests=100,
        kept=90,
        disagreed=1,
        agree=agree,
        against=against,
    )
    return Gate(dict.fromkeys(GROUPS, group))


def gated(bundle: Bundle, gate: Gate) -> Bundle:
    """A drafter's bundle as if it had been calibrated to this gate."""
    calibration = msgspec.to_builtins(gate)
    return Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, calibration=calibration), bundle.part)


NEVER = keeps_from(2.0)  # it waits for the whole draft, and asks the worker every time
BUNDLE = gated(Bundle.open(DRAFTER), NEVER)
STOP = BUNDLE.manifest.stop_tokens[0]
REQUEST = next(one for one in requests(Split.EVALUATION, 2, seed=11) if one.question.kind == "describe")
NOTICE = 0.3  # seconds
HANG = "hang"  # it sends nothing any more, on any call
STALL = "stall"  # it answers heartbeats, but sends no more of the answer
END = "end"  # the stream ends in order, but early
BREAK = "break"  # the stream breaks
SKIP = "skip"  # it continues at a wrong position

Fate = tuple[int, CutlineError | str]  # a failure: before which token of the answer, and what happens


def drafters_own(after: Sequence[int] = ()) -> tuple[int, ...]:
    """The drafter's own answer to the question, from the answer's first tokens on."""
    pixels = BUNDLE.manifest.family.preprocess(decode_image(REQUEST.image))
    prompt = PromptBuilder.open(BUNDLE).build([question(REQUEST.question.text)], [pixels.grid]).ids
    drafting = Drafter.open(BUNDLE, threads=1).converse(prompt, [pixels], Sampling())
    return tuple(one.token for one in drafting.draft(tuple(after), 64 - len(after)))


OWN = drafters_own()
TRUTH = (*OWN[:6], OWN[6] % 100 + 101, *range(40, 50), STOP)  # the drafter is wrong from the seventh on


DESCRIPTION = Description(
    model=BUNDLE.manifest.target or "",
    name="scripted",
    version="1",
    vision_layers=1,
    decoder_layers=1,
    context=BUNDLE.manifest.decoder.context,
    sessions=0,
    max_sessions=8,
    start="image",
    end="end",
)


class ScriptedWorker(worker_pb2_grpc.WorkerServicer):
    """Confirms a `script`, by one or two tokens and by right drafts, and fails by `fates`, one for each session."""

    def __init__(self, *fates: Fate, pause: float = 0.0, script: Sequence[int] = TRUTH, **described: Any) -> None:
        self.fates = list(fates)
        self.pause = pause
        self.script = tuple(script)
        self.openings: list[Open] = []
        self.open = 0
        self.told = 0  # tokens
        self.heartbeats = 0
        self.described = 0
        self.frozen = False
        self.description = replace(DESCRIPTION, **described)

    async def Probe(self, request: pb.ProbeRequest, context: Any) -> pb.ProbeAnswer:
        self.heartbeats += 1
        while self.frozen:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return pb.ProbeAnswer()

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.Description:
        self.described += 1
        while self.frozen:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return description_to_wire(self.description)

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
        at, fate = self.fates.pop(0) if self.fates else (len(self.script), "")
        prompt, answer = opening.prompt_length, opening.tokens[opening.prompt_length :]
        assert tuple(answer) == self.script[: len(answer)]
        if at == 0:
            async for said in self._meet(fate, prompt, messages, context):
                yield said
            return
        yield worker_to_wire(Opened("it"))
        place, end = len(answer), min(len(self.script), opening.max_tokens)
        while place < end:
            if place >= at and fate:
                async for said in self._meet(fate, prompt + place, messages, context):
                    yield said
                return
            step = self.script[place : min(place + 1 + place % 2, max(at, place + 1), end)]
            right = sum(1 for a, b in zip(opening.draft, self.script[len(answer) :], strict=False) if a == b)
            yield worker_to_wire(Confirmed(prompt + place, step, min(len(step), max(0, len(answer) + right - place))))
            place += len(step)
            self.told += len(step)
            await asyncio.sleep(self.pause)
        reason = Reason.STOP if place == len(self.script) else Reason.LENGTH
        yield worker_to_wire(Finished(reason, 1, 0, 0.0))
        await _linger(messages)

    async def _meet(
        self, fate: CutlineError | str, position: int, messages: AsyncIterator[pb.AgentMessage], context: Any
    ) -> AsyncGenerator[pb.WorkerMessage]:
        match fate:
            case CutlineError():
                yield worker_to_wire(fate)
                await _linger(messages)
            case "hang":
                self.frozen = True
                await asyncio.sleep(60)
            case "stall":
                await asyncio.sleep(60)
            case "break":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            case "skip":
                yield worker_to_wire(Confirmed(position + 2, (20,), 0))
                await asyncio.sleep(60)


async def _linger(messages: AsyncIterator[pb.AgentMessage]) -> None:
    """Until the agent has ended its side: a write of its own that meets an ended call drops what it has not read."""
    with contextlib.suppress(asyncio.CancelledError):
        async for _ in messages:
            pass


def asking(mode: Mode, **options: Any) -> Request:
    """The one question, in a mode."""
    return Request.about(REQUEST.image, REQUEST.question.text, mode=mode, **options)


def ask(
    workers: Sequence[ScriptedWorker],
    asked: Request,
    during: Callable[[Agent, Event], object] = lambda agent, event: None,
    **options: Any,
) -> tuple[Answer, list[Event], tuple[str, ...]]:
    """The answer of an agent with these workers, all events before it, and the workers' addresses."""

    async def run() -> tuple[Answer, list[Event], tuple[str, ...]]:
        async with AsyncExitStack() as stack:
            addresses = [await stack.enter_async_context(serving(worker)) for worker in workers]
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
    assert sum(answer.parts_ms.values()) >= 0.8 * answer.latency_ms - 60.0  # between parts others may be at work
    alone = [token for token in answer.tokens if token.source is Provenance.EDGE]
    assert (answer.alone_from is not None) == (answer.tail is not None)
    if answer.tail is Tail.UNVERIFIED and answer.alone_from is not None:
        assert not answer.exact
        assert len(alone) == len(answer.tokens) - answer.alone_from


def ids(answer: Answer) -> tuple[int, ...]:
    """An answer's token ids."""
    return tuple(token.id for token in answer.tokens)


@asynccontextmanager
async def serving(worker: ScriptedWorker, *, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """The address of a worker: a free port's, or the one that is given."""
    server = grpc.aio.server()
    worker_pb2_grpc.add_WorkerServicer_to_server(worker, server)
    address = f"127.0.0.1:{server.add_insecure_port(address)}"
    await server.start()
    try:
        yield address
    finally:
        await server.stop(None)
