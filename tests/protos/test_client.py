from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest

from cutline.core.request import Mode, Request
from cutline.demo.bundles import DRAFTER
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.agent import Agent
from cutline.errors import (
    CutlineError,
    InputError,
    ModelMismatch,
    WorkerBusy,
    WorkerError,
    WorkerFailed,
    WorkerUnavailable,
)
from cutline.models.bundle import Bundle
from cutline.protos.client import WorkerClient, WorkerSession
from cutline.protos.codec import description_to_wire, worker_to_wire
from cutline.protos.messages import (
    Confirmed,
    Description,
    Draft,
    Finished,
    ImageChunk,
    Open,
    Opened,
    Reason,
    image_chunks,
)
from cutline.protos.v1 import worker_pb2 as pb
from cutline.protos.v1 import worker_pb2_grpc

OPENING = Open(model="m", tokens=(1, 2), prompt_length=2, max_tokens=8, images=1)
DONE = Finished(Reason.STOP, 1, 0, 0.1)
DESCRIPTION = Description(
    model="m",
    name="scripted",
    version="1",
    vision_layers=1,
    decoder_layers=2,
    context=3,
    sessions=4,
    max_sessions=5,
    start="vision.0",
    end="decoder.1",
)

Event = Opened | Confirmed | Finished | CutlineError
Script = Callable[[AsyncIterator[pb.AgentMessage], Any], AsyncIterator[pb.WorkerMessage]]


class Worker(worker_pb2_grpc.WorkerServicer):
    """A worker that says what it was told to say, and remembers what it heard."""

    def __init__(self, script: Script) -> None:
        self.heard: list[pb.AgentMessage] = []
        self._script = script
        self.description = DESCRIPTION

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.Description:
        return description_to_wire(self.description)

    async def Session(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.WorkerMessage]:
        async def heard() -> AsyncIterator[pb.AgentMessage]:
            async for message in request_iterator:
                self.heard.append(message)
                yield message

        async for message in self._script(heard(), context):
            yield message


@contextlib.asynccontextmanager
async def serving(script: Script) -> AsyncIterator[tuple[Worker, str]]:
    worker, server = Worker(script), grpc.aio.server()
    worker_pb2_grpc.add_WorkerServicer_to_server(worker, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield worker, f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def says(*events: Event | pb.WorkerMessage) -> Script:
    """Waits for the opening and its image, then says `events`."""

    async def script(messages: AsyncIterator[pb.AgentMessage], context: Any) -> AsyncIterator[pb.WorkerMessage]:
        async for message in messages:
            if message.WhichOneof("kind") == "image" and message.image.last:
                break
        for event in events:
            yield event if isinstance(event, pb.WorkerMessage) else worker_to_wire(event)

    return script


def ends_with(code: grpc.StatusCode, details: str) -> Script:
    async def script(messages: AsyncIterator[pb.AgentMessage], context: Any) -> AsyncIterator[pb.WorkerMessage]:
        async for message in messages:
            if message.WhichOneof("kind") == "image":
                break
        await context.abort(code, details)
        yield pb.WorkerMessage()

    return script


def converse(script: Script, image: bytes = b"image") -> tuple[list[object], WorkerSession, Worker]:
    """A whole session with a scripted worker: the events, the session, and the worker."""

    async def run() -> tuple[list[object], WorkerSession, Worker]:
        async with serving(script) as (worker, address), WorkerClient(address) as client:
            async with client.session(OPENING, list(image_chunks(image)), timeout=10) as session:
                events: list[object] = [event async for event in session.events()]
            return events, session, worker

    return asyncio.run(run())


def test_a_session_is_heard_to_its_end_and_its_bytes_are_counted() -> None:
    said: list[Event] = [Opened("s"), Confirmed(2, (5, 6), 1), Confirmed(4, (7,), 0), DONE]
    events, session, worker = converse(says(*said))
    assert events == said
    assert session.finished == DONE
    assert session.bytes_down == sum(worker_to_wire(event).ByteSize() for event in said)
    assert session.bytes_up == sum(message.ByteSize() for message in worker.heard)


def test_a_large_image_goes_in_pieces() -> None:
    image = bytes(range(256)) * 10_000
    _, session, worker = converse(says(DONE), image)
    pieces = [message.image for message in worker.heard if message.WhichOneof("kind") == "image"]
    assert b"".join(piece.data for piece in pieces) == image
    assert [piece.last for piece in pieces] == [False, False, True]
    assert max(message.ByteSize() for message in worker.heard) < (1 << 20) + (1 << 16)
    assert session.bytes_up > len(image)


def test_drafts_and_a_cancel_reach_the_worker() -> None:
    async def script(messages: AsyncIterator[pb.AgentMessage], context: Any) -> AsyncIterator[pb.WorkerMessage]:
        async for message in messages:
            match message.WhichOneof("kind"):
                case "draft" if message.draft.tokens:
                    yield worker_to_wire(Confirmed(message.draft.position, tuple(message.draft.tokens), 1))
                case "draft":
                    yield worker_to_wire(DONE)
                    return

    async def run() -> None:
        async with (
            serving(script) as (_, address),
            WorkerClient(address) as client,
            client.session(OPENING, list(image_chunks(b"image")), timeout=10) as session,
        ):
            await session.offer(Draft(2, (9,)))
            events = session.events()
            assert await anext(events) == Confirmed(2, (9,), 1)
            await session.offer(Draft(3, ()))  # asks the script to end
            assert [event async for event in events] == [DONE]
            before = session.bytes_up
            await asyncio.sleep(0.1)
            await session.offer(Draft(3, (9,)))  # too late: no error, and not counted
            assert session.bytes_up == before

    asyncio.run(run())


@pytest.mark.parametrize(
    "error",
    [InputError("bad"), ModelMismatch("other"), WorkerBusy("full"), WorkerFailed("broke"), WorkerUnavailable("going")],
)
def test_what_a_worker_says_it_failed_with_is_raised(error: CutlineError) -> None:
    with pytest.raises(type(error), match=str(error)):
        converse(says(error))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, WorkerUnavailable),
        (grpc.StatusCode.INTERNAL, WorkerUnavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, WorkerBusy),
        (grpc.StatusCode.FAILED_PRECONDITION, ModelMismatch),
        (grpc.StatusCode.INVALID_ARGUMENT, InputError),
        (grpc.StatusCode.CANCELLED, WorkerError),
        (grpc.StatusCode.UNKNOWN, WorkerError),
        (grpc.StatusCode.PERMISSION_DENIED, WorkerError),
    ],
)
def test_a_status_is_raised_as_its_exception(code: grpc.StatusCode, kind: type[CutlineError]) -> None:
    with pytest.raises(kind):
        converse(ends_with(code, "details"))


def test_a_stream_that_the_worker_refuses_for_there_are_too_many() -> None:
    """HTTP/2's REFUSED_STREAM, in gRPC's own words."""
    details = "Stream removed (RST_STREAM (Received RST_STREAM with error code 7))"
    with pytest.raises(WorkerBusy, match="no more sessions"):
        converse(ends_with(grpc.StatusCode.UNAVAILABLE, details))


def test_a_call_that_the_worker_refuses_for_there_are_too_many() -> None:
    with pytest.raises(WorkerBusy, match="as many calls as it takes"):
        converse(ends_with(grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!"))


def test_a_worker_that_ends_early() -> None:
    with pytest.raises(WorkerUnavailable, match="before the answer"):
        converse(says(Opened("s"), Confirmed(2, (5,), 0)))


@pytest.mark.parametrize(
    "message",
    [
        pb.WorkerMessage(),
        pb.WorkerMessage(finished=pb.Finished()),
        pb.WorkerMessage(confirmed=pb.Confirmed(position=2, tokens=[1], accepted=2)),
    ],
)
def test_a_worker_that_breaks_the_protocol(message: pb.WorkerMessage) -> None:
    with pytest.raises(WorkerFailed, match="protocol"):
        converse(says(message))


def test_a_description_arrives_whole() -> None:
    async def run() -> None:
        async with serving(says()) as (_, address), WorkerClient(address) as client:
            assert await client.describe() == DESCRIPTION

    asyncio.run(run())


def test_nobody_to_describe() -> None:
    async def run() -> None:
        async with WorkerClient("127.0.0.1:1") as client:
            with pytest.raises(WorkerUnavailable, match=r"127\.0\.0\.1:1"):
                await client.describe()

    asyncio.run(run())


DRAFTS = Bundle.open(DRAFTER)
REQUEST = next(requests(Split.EVALUATION, 1, seed=8))


def ask(*answered: tuple[int, tuple[int, ...], int]) -> tuple[int, ...]:
    """What an agent makes of a worker that confirms (offset in the answer, tokens, accepted) one after another."""

    async def run() -> tuple[int, ...]:
        async def script(messages: AsyncIterator[pb.AgentMessage], context: Any) -> AsyncIterator[pb.WorkerMessage]:
            start = (await anext(messages)).open.prompt_length
            for offset, tokens, accepted in answered:
                yield worker_to_wire(Confirmed(start + offset, tokens, accepted))
            yield worker_to_wire(DONE)
            with contextlib.suppress(asyncio.CancelledError):
                async for _ in messages:
                    pass

        question, bundle = Request.about(REQUEST.image, "Which?", mode=Mode.CLOUD, max_tokens=4, timeout=10), DRAFTS
        async with (
            serving(script) as (worker, address),
            Agent(bundle, worker=address, threads=1) as agent,
        ):
            worker.description = replace(DESCRIPTION, model=bundle.manifest.target or "", context=2048)
            answer = await agent.answer(question)
            return tuple(token.id for token in answer.tokens)

    return asyncio.run(run())


def test_what_is_confirmed_twice_counts_once() -> None:
    assert ask((0, (20, 21), 0), (0, (20, 21), 0), (1, (21, 22), 0), (3, (23,), 0)) == (20, 21, 22, 23)


@pytest.mark.parametrize(
    ("answered", "words"),
    [
        ([(1, (20,), 0)], "skipped 1"),
        ([(3, (20,), 0)], "skipped 3"),
        ([(0, (20,) * 5, 0)], "more than the 4 tokens"),
        ([(0, (1 << 20,), 0)], "vocabulary"),
    ],
)
def test_tokens_that_cannot_be(answered: list[tuple[int, tuple[int, ...], int]], words: str) -> None:
    with pytest.raises(WorkerFailed, match=words):
        ask(*answered)


def test_what_the_link_carries_is_never_reckoned_above_what_it_does() -> None:
    """By a link of which is known when each byte arrives: what is sent while a heartbeat is out counts for the next."""

    class Call:
        async def write(self, _: pb.AgentMessage) -> None: ...

        def cancel(self) -> None: ...

    async def run() -> None:
        began, answers = time.monotonic(), list[asyncio.Event]()

        async def beat() -> bool:
            answers.append(asyncio.Event())
            await answers[-1].wait()
            return True

        session = WorkerSession("it", Call(), (OPENING,), beat=beat)
        async with session:
            assert session.carried == 0.0, "nothing is known to have arrived"
            small = session.given
            out = asyncio.create_task(session.beat())
            await asyncio.sleep(0.02)
            await session.upload(ImageChunk(bytes(20_000), last=True))
            answers[0].set()
            await out
            assert 0.0 < session.carried <= small / 0.02
            assert session.unproven == session.given - small
            await asyncio.sleep(0.02)
            session.prove(session.given)
            assert session.unproven == 0
            assert 20_000 / (time.monotonic() - began) < session.carried <= session.given / 0.02

    asyncio.run(run())
