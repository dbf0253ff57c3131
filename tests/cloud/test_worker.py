"""A real worker behind a real socket: what it says of itself, what it refuses, and that nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import io
import struct
import threading
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from PIL import Image

from cutline.cloud.model.model_runner import Target
from cutline.cloud.serving import admission as opening_module
from cutline.cloud.serving import inbox, server
from cutline.cloud.serving.limits import SERVING_LIMITS, ServingLimits
from cutline.cloud.serving.server import SERVICE, WorkerOptions, serve
from cutline.core.sampling import Sampling
from cutline.errors import CutlineError, InputError, ModelMismatch, WorkerBusy, WorkerFailed, WorkerUnavailable
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.protos.codec import agent_from_wire, agent_to_wire, description_from_wire, worker_from_wire
from cutline.protos.messages import (
    AgentMessage,
    Boundary,
    Cancel,
    Confirmed,
    Draft,
    Finished,
    ImageChunk,
    Open,
    Opened,
    image_chunks,
)
from cutline.protos.status import status_of
from cutline.protos.tensors import CHUNK
from cutline.protos.v1 import worker_pb2 as pb
from cutline.protos.v1 import worker_pb2_grpc

Case = tuple[Open, bytes, tuple[int, ...]]
Wire = AgentMessage | pb.AgentMessage

SECONDS = 120  # that any one exchange may take: a guard against a hang, with both cores busy ten times over


class Client:
    """A channel to one worker, and calls on it as an agent would make them, or as it never would."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.stub = worker_pb2_grpc.WorkerStub(channel)

    async def converse(self, messages: Iterable[Wire]) -> list[Any]:
        """All that the worker says to `messages`. An error comes last, and the stream's status is the one it means."""
        call = self.stub.Session(_each(messages), timeout=SECONDS)
        said: list[Any] = []
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for message in call:
                said.append(worker_from_wire(message))  # noqa: PERF401 (what came before the error counts)
        failed = isinstance(said[-1], CutlineError)
        assert await call.code() is (status_of(said[-1]) if failed else grpc.StatusCode.OK)
        return said

    async def sessions(self) -> int:
        return description_from_wire(await self.stub.Describe(pb.DescribeRequest())).sessions

    async def wait_until_free(self) -> None:
        async with asyncio.timeout(SECONDS):
            while await self.sessions() > 0:
                pass


async def _each(messages: Iterable[Wire]) -> AsyncIterator[pb.AgentMessage]:
    for message in messages:
        yield message if isinstance(message, pb.AgentMessage) else agent_to_wire(message)


class Talk:
    """One session, message by message."""

    def __init__(self, client: Client, *, seconds: float = SECONDS) -> None:
        self.call = client.stub.Session(timeout=seconds)

    async def say(self, *messages: AgentMessage) -> None:
        for message in messages:
            await self.call.write(agent_to_wire(message))

    async def hear(self) -> Any:
        return worker_from_wire(await self.call.read())


def on_worker(
    bundle: Bundle,
    run: Callable[[Client], Awaitable[None]],
    *,
    slots: int = 2,
    context: int = 256,
    limits: ServingLimits = SERVING_LIMITS,
) -> None:
    """Run `run` against a worker that lives as long."""

    async def main() -> None:
        async with (
            serve(bundle, WorkerOptions(slots=slots, context=context, limits=limits)) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            await run(Client(channel))

    asyncio.run(main())


def asking(case: Case, **changes: Any) -> list[AgentMessage]:
    """A good session's messages."""
    return [replace(case[0], **changes), *image_chunks(case[1])]


def hostile(**fields: Any) -> Sampling:
    """Sampling that no honest agent makes."""
    sampling = Sampling()
    for name, value in fields.items():
        msgspec.structs.force_setattr(sampling, name, value)
    return sampling


def tokens(said: Sequence[Any]) -> tuple[int, ...]:
    return tuple(token for message in said if isinstance(message, Confirmed) for token in message.tokens)


async def answered_rightly(client: Client, case: Case) -> None:
    said = await client.converse(asking(case))
    assert isinstance(said[0], Opened)
    assert isinstance(said[-1], Finished)
    assert tokens(said) == case[2]


def test_describe_says_what_the_worker_is(bundle: Bundle) -> None:
    async def run(client: Client) -> None:
        found = description_from_wire(await client.stub.Describe(pb.DescribeRequest()))
        assert (found.model, found.name) == (bundle.manifest.identity, bundle.manifest.name)
        assert (found.vision_layers, found.decoder_layers) == (
            bundle.manifest.line.vision,
            bundle.manifest.line.decoder,
        )
        assert (found.sessions, found.max_sessions, found.context) == (0, 3, 100)

    on_worker(bundle, run, slots=3, context=100)


def test_health_and_reflection_answer(bundle: Bundle) -> None:
    async def run(client: Client) -> None:
        health = health_pb2_grpc.HealthStub(client.channel)
        for service in ("", SERVICE):
            reply = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
            await health.Check(health_pb2.HealthCheckRequest(service="another"))

        async def asked() -> AsyncIterator[Any]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")

        reflecting = reflection_pb2_grpc.ServerReflectionStub(client.channel)
        async for reply in reflecting.ServerReflectionInfo(asked()):
            assert SERVICE in {service.name for service in reply.list_services_response.service}

    on_worker(bundle, run)


@pytest.mark.parametrize("listen", ["", "here", "127.0.0.1", ":0", "127.0.0.1:x", "127.0.0.1:99999", "8.8.8.8:0"])
def test_an_address_that_cannot_be_listened_at_is_refused(bundle: Bundle, listen: str) -> None:
    async def run() -> None:
        async with serve(bundle, WorkerOptions(listen=listen, slots=1, context=64)):
            pass

    with pytest.raises(InputError, match=r"cannot listen at|HOST:PORT"):
        asyncio.run(run())


def test_a_port_is_one_workers(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with serve(bundle, WorkerOptions(slots=1, context=64)) as address:
            monkeypatch.setattr(server, "Target", None)  # a taken port is told of before a model is loaded
            with pytest.raises(InputError, match="taken"):
                async with serve(bundle, WorkerOptions(listen=address, slots=1, context=64)):
                    pass

    asyncio.run(run())


def test_sessions_at_once_with_drafts_of_every_kind_give_generates_answers(bundle: Bundle, cases: list[Case]) -> None:
    async def one(client: Client, number: int, case: Case) -> None:
        answer = case[2]
        wrong = tuple(token if at % 3 else 5 for at, token in enumerate(answer))
        after = case[0].prompt_length
        drafts = [
            Draft(after, wrong),
            Draft(after, answer[:2]),
            Draft(after + 1, answer[1:]),
            Draft(after + 90, (1, 2)),
        ]
        first = ((), answer, wrong)[number % 3]
        said = await client.converse([*asking(case, draft=first, effort=(1.0, 0.5)[number % 2]), *drafts])
        assert tokens(said) == answer
        positions = [(message.position, len(message.tokens)) for message in said if isinstance(message, Confirmed)]
        assert [at for at, _ in positions[1:]] == [at + count for at, count in positions[:-1]]
        assert positions[0][0] == after

    async def run(client: Client) -> None:
        async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
            for number, case in enumerate(cases):
                group.create_task(one(client, number, case))

    on_worker(bundle, run, slots=len(cases))


def test_a_session_opened_with_what_was_confirmed_goes_on_to_the_same_answer(bundle: Bundle, case: Case) -> None:
    opening, _, answer = case

    async def run(client: Client) -> None:
        for done in range(0, len(answer), 3):
            said = await client.converse(asking(case, tokens=opening.tokens + answer[:done]))
            assert next(m.position for m in said if isinstance(m, Confirmed)) == len(opening.tokens) + done
            assert answer[:done] + tokens(said) == answer

    on_worker(bundle, run)


def test_an_image_token_among_what_was_confirmed_is_no_image(bundle: Bundle, case: Case) -> None:
    opening = case[0]

    async def run(client: Client) -> None:
        said = await client.converse(asking(case, tokens=(*opening.tokens, bundle.manifest.image_token), max_tokens=3))
        assert len(tokens(said)) in (1, 2)
        assert isinstance(said[-1], Finished)

    on_worker(bundle, run)


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "green").save(file, "PNG")
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A whole and valid black PNG, one bit a pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + (side + 7) // 8) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def wrong_tokens(case: Case, bundle: Bundle) -> dict[str, tuple[list[Wire], str]]:
    """Openings that name tokens or numbers that cannot be."""
    opening, _, answer = case
    outside = bundle.manifest.decoder.vocabulary
    image_token = bundle.manifest.image_token
    one_less = opening.tokens.index(image_token)
    return {
        "token outside": ([*asking(case, tokens=(*opening.tokens, outside))], "vocabulary"),
        "huge token": ([*asking(case, tokens=(*opening.tokens, 2**32 - 1))], "vocabulary"),
        "draft outside": ([*asking(case, draft=(outside,))], "vocabulary"),
        "later draft outside": ([*asking(case, effort=0.0), Draft(opening.prompt_length, (outside,))], "vocabulary"),
        "extra image token": (
            [*asking(case, tokens=(image_token, *opening.tokens), prompt_length=len(opening.tokens) + 1)],
            "image tokens",
        ),
        "image token missing": (
            [*asking(case, tokens=opening.tokens[:one_less] + opening.tokens[one_less + 1 :], prompt_length=20)],
            "image tokens",
        ),
        "no tokens": ([*asking(case, tokens=())], "prompt_length"),
        "no prompt": ([*asking(case, prompt_length=0)], "prompt_length"),
        "long prompt_length": ([*asking(case, prompt_length=len(opening.tokens) + 1)], "prompt_length"),
        "prompt too long": ([*asking(case, tokens=opening.tokens + answer[:1] * 300)], "context"),
        "nothing to answer": ([*asking(case, max_tokens=0)], "max_tokens"),
        "answered already": ([*asking(case, tokens=opening.tokens + answer[:1], max_tokens=1)], "max_tokens"),
        "effort": ([*asking(case, effort=1.5)], "effort"),
        "effort not a number": ([*asking(case, effort=float("nan"))], "effort"),
        "temperature": ([*asking(case, sampling=hostile(temperature=-1.0))], "temperature"),
        "temperature not a number": ([*asking(case, sampling=hostile(temperature=float("nan")))], "temperature"),
        "top-p": ([*asking(case, sampling=hostile(top_p=0.0))], "top-p"),
        "penalty": ([*asking(case, sampling=hostile(repetition_penalty=0.0))], "repetition-penalty"),
        "tokens to stop at": ([*asking(case, sampling=hostile(stop_token_ids=(1,) * 2000))], "stop-token-ids"),
        "token to stop at": ([*asking(case, sampling=Sampling(stop_token_ids=(10**6,)))], "stop-token-ids"),
        "biases": ([*asking(case, sampling=hostile(logit_bias=((1, 1.0),) * 2000))], "logit-bias"),
        "bias": ([*asking(case, sampling=Sampling(logit_bias=((10**6, 1.0),)))], "logit-bias"),
        "seed": ([*asking(case, sampling=hostile(seed=2**63))], "seed"),
        "cut": ([*asking(case, cut="vision.9")], "cannot begin"),
        "no cut": ([*asking(case, cut="")], "cannot begin"),
    }


def wrong_data(case: Case, bundle: Bundle) -> dict[str, tuple[list[Wire], str]]:
    """Messages out of order, images that are none, boundaries that do not fit."""
    opening, image, _ = case
    width, rows = bundle.manifest.decoder.width, opening.tokens.count(bundle.manifest.image_token)
    entering = replace(opening, cut="decoder.0", images=0)
    not_finite = bytes(4 * (rows * width - 1)) + np.float32(np.inf).tobytes()

    places = (bundle.manifest.image_token,) * bundle.manifest.family.tokens((0, 0))
    two = replace(opening, images=2, tokens=places + opening.tokens, prompt_length=len(places) + opening.prompt_length)

    def with_image(data: bytes) -> list[Wire]:
        return [opening, ImageChunk(data, last=True)]

    def with_rows(*parts: np.ndarray[Any, Any]) -> list[Wire]:
        return [entering, *(Boundary(part, last=part is parts[-1]) for part in parts)]

    return {
        "nothing": ([], "must open"),
        "draft first": ([Draft(0, (1,)), *asking(case)], "must open"),
        "image first": ([ImageChunk(image, last=True), opening], "must open"),
        "no kind": ([pb.AgentMessage()], "no known kind"),
        "opened twice": ([*asking(case, effort=0.0), opening], "takes drafts"),
        "second image": ([*asking(case, effort=0.0), ImageChunk(image, last=True)], "takes drafts"),
        "image missing": ([opening], "0 came"),
        "draft for an image": ([opening, Draft(3, (1,))], "0 came"),
        "unfinished image": ([opening, ImageChunk(image, last=False)], "0 came"),
        "one of two images": ([two, ImageChunk(image, last=True)], "1 came"),
        "an image too many": ([replace(opening, images=2), *[ImageChunk(image, last=True)] * 2], "image tokens"),
        "too many images": ([replace(opening, images=33)], "too many"),
        "image unannounced": ([replace(opening, images=0), ImageChunk(image, last=True)], "image tokens"),
        "empty image": (with_image(b""), "empty"),
        "not an image": (with_image(b"%PDF-1.7 and so on"), "not a readable image"),
        "truncated": (with_image(image[: len(image) // 2]), "truncated or damaged"),
        "tiny": (with_image(png(1, 1)), "at least"),
        "narrow": (with_image(png(10, 1000)), "crop"),
        "bomb": (with_image(bomb(13_000)), "megapixels"),
        "long chunk": ([opening, ImageChunk(bytes(CHUNK + 1), last=True)], "too long"),
        "endless image": ([opening, *[ImageChunk(bytes(CHUNK), last=False)] * 33], "over 32 MiB"),
        "endless boundary": (
            [entering, *[Boundary(np.zeros((CHUNK // 4 // width, width), np.float32), last=False)] * 33],
            "not the number sent",
        ),
        "no boundary": ([entering], "rows were to come, 0 came"),
        "image at the decoder": ([entering, ImageChunk(image, last=True)], "rows were to come, 0 came"),
        "wide rows": (with_rows(np.zeros((rows, width + 1), np.float32)), "wide"),
        "a row too few": (with_rows(np.zeros((rows - 1, width), np.float32)), "not the number sent"),
        "a row too many": (
            with_rows(np.zeros((rows, width), np.float32), np.zeros((1, width), np.float16)),
            "not the number sent",
        ),
        "three dimensions": (with_rows(np.zeros((1, rows, width), np.float32)), "2 dimensions"),
        "not finite": (
            [
                entering,
                pb.AgentMessage(
                    boundary=pb.Boundary(rows=pb.Tensor(type="FLOAT32", shape=[rows, width], data=not_finite))
                ),
            ],
            "not finite",
        ),
        "not a tensor": ([entering, pb.AgentMessage(boundary=pb.Boundary(last=True))], "type 0"),
        "short data": (
            [
                entering,
                pb.AgentMessage(boundary=pb.Boundary(rows=pb.Tensor(type="FLOAT32", shape=[9, width], data=b"1234"))),
            ],
            "cannot have 4 bytes",
        ),
        "empty rows": (
            [
                entering,
                pb.AgentMessage(boundary=pb.Boundary(rows=pb.Tensor(type="FLOAT32", shape=[0, 2**32 - 1, 2**32 - 1]))),
            ],
            "none empty",
        ),
    }


@pytest.mark.threat("tensors", "spans", "handles", "bombs", "late")
@pytest.mark.parametrize("kind", [wrong_tokens, wrong_data])
def test_what_is_wrong_is_refused_and_the_worker_goes_on(
    bundle: Bundle, case: Case, kind: Callable[[Case, Bundle], dict[str, tuple[list[Wire], str]]]
) -> None:
    """All of them one after the other on one worker, good sessions in between and one open all the while."""

    async def run(client: Client) -> None:
        opening, _, answer = case
        beside = Talk(client)
        await beside.say(*asking(case, effort=0.0))
        assert isinstance(await beside.hear(), Opened)
        assert await beside.hear() == Confirmed(opening.prompt_length, answer[:1], 0)
        for number, (name, (messages, words)) in enumerate(kind(case, bundle).items()):
            said = await client.converse(messages)
            assert isinstance(said[-1], InputError), name
            assert words in str(said[-1]), name
            assert tokens(said) in ((), answer[:1]), name
            if number % 5 == 0:
                await answered_rightly(client, case)
        await beside.say(Draft(opening.prompt_length + 1, answer[1:]))
        rest: list[Any] = []
        while not isinstance(rest[-1] if rest else None, Finished):
            rest.append(await beside.hear())
        assert answer[:1] + tokens(rest) == answer
        beside.call.cancel()

    on_worker(bundle, run)


def test_another_model_is_a_failed_precondition(bundle: Bundle, case: Case) -> None:
    async def run(client: Client) -> None:
        for model in ("", "0" * 64, "\n"):
            said = await client.converse(asking(case, model=model))
            assert [type(message) for message in said] == [ModelMismatch]
            assert status_of(said[0]) is grpc.StatusCode.FAILED_PRECONDITION
        await answered_rightly(client, case)

    on_worker(bundle, run)


@pytest.mark.threat("late", "floods")
def test_a_message_over_the_limit_is_refused_by_grpc(bundle: Bundle, case: Case) -> None:
    async def run(client: Client) -> None:
        long = pb.AgentMessage(image=pb.ImageChunk(data=bytes(2 << 20)))
        call = client.stub.Session(_each([case[0], long]), timeout=SECONDS)
        with contextlib.suppress(grpc.aio.AioRpcError):
            assert [message async for message in call] == []
        assert await call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        await answered_rightly(client, case)

    on_worker(bundle, run)


async def waiting(client: Client, case: Case, *, seconds: float = SECONDS) -> Talk:
    """A session that holds its slot: without effort and drafts it waits after its first token."""
    talk = Talk(client, seconds=seconds)
    await talk.say(*asking(case, effort=0.0))
    assert isinstance(await talk.hear(), Opened)
    assert await talk.hear() == Confirmed(case[0].prompt_length, case[2][:1], 0)
    return talk


def test_a_full_worker_is_busy_and_serves_again_when_there_is_room(bundle: Bundle, case: Case) -> None:
    async def run(client: Client) -> None:
        talks = [await waiting(client, case) for _ in range(2)]
        assert await client.sessions() == 2
        said = await client.converse(asking(case))
        assert [type(message) for message in said] == [WorkerBusy]
        assert status_of(said[0]) is grpc.StatusCode.RESOURCE_EXHAUSTED
        talks[0].call.cancel()
        async with asyncio.timeout(SECONDS):
            while await client.sessions() == 2:
                pass
        await answered_rightly(client, case)
        talks[1].call.cancel()

    on_worker(bundle, run)


def test_a_full_worker_says_so_before_the_upload(bundle: Bundle, case: Case) -> None:
    async def run(client: Client) -> None:
        holding = await waiting(client, case)
        refused = Talk(client)
        await refused.say(case[0])
        assert isinstance(await refused.hear(), WorkerBusy)
        holding.call.cancel()

    on_worker(bundle, run, slots=1)


@pytest.mark.threat("floods")
def test_openings_at_once_are_as_many_as_slots(bundle: Bundle, case: Case) -> None:
    """What is uploaded lies in memory, so one that could find no slot is refused before."""

    async def run(client: Client) -> None:
        talks = [Talk(client), Talk(client)]
        hearing = {asyncio.create_task(talk.hear()) for talk in talks}
        for talk in talks:
            await talk.say(case[0])
        done, waiting = await asyncio.wait(hearing, timeout=SECONDS, return_when=asyncio.FIRST_COMPLETED)
        refusals = [task.result() for task in done]
        assert [type(refusal) for refusal in refusals] == [WorkerBusy]
        assert "being opened" in str(refusals[0])
        for talk in talks:
            talk.call.cancel()
        await asyncio.wait(waiting)
        async with asyncio.timeout(SECONDS):
            while isinstance((await client.converse(asking(case)))[-1], WorkerBusy):
                pass
        await answered_rightly(client, case)

    on_worker(bundle, run, slots=1)


def test_who_leaves_while_an_image_is_prepared_keeps_the_place_until_it_is(
    bundle: Bundle, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def waits(data: bytes, formats: tuple[str, ...]) -> Image.Image:
        begun.set()
        may_end.wait(SECONDS)
        return decode_image(data, formats)

    monkeypatch.setattr(opening_module, "decode_image", waits)

    async def run(client: Client) -> None:
        leaving = Talk(client)
        await leaving.say(*asking(case))
        assert await asyncio.to_thread(begun.wait, SECONDS)
        leaving.call.cancel()
        await asyncio.sleep(0.2)  # until the worker has heard of it
        refused = Talk(client)
        await refused.say(case[0])
        async with asyncio.timeout(SECONDS / 3):
            assert isinstance(await refused.hear(), WorkerBusy)
        may_end.set()
        async with asyncio.timeout(SECONDS):
            while isinstance((await client.converse(asking(case)))[-1], WorkerBusy):
                pass
        await answered_rightly(client, case)

    try:
        on_worker(bundle, run, slots=1)
    finally:
        may_end.set()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One of HTTP/2: RFC 9113, section 4.1."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def unread_probe(stream: int, authority: str) -> bytes:
    """A call of Probe, whose headers are literals: RFC 7541, section 6.2.2."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/{SERVICE}/Probe",
        ":authority": authority,
        "te": "trailers",
        "content-type": "application/grpc",
    }
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    message = pb.ProbeRequest(answer=CHUNK).SerializeToString()
    return frame(1, 4, stream, block) + frame(0, 1, stream, struct.pack(">BI", 0, len(message)) + message)


@pytest.mark.threat("floods")
def test_probes_whose_answers_nobody_reads_are_few(bundle: Bundle, case: Case) -> None:
    async def main() -> None:
        async with (
            serve(bundle, WorkerOptions(slots=1, context=256, limits=ServingLimits(probes=3))) as address,
            grpc.aio.insecure_channel(address) as channel,
            asyncio.timeout(SECONDS),
        ):
            client = Client(channel)
            for _ in range(5):  # one after the other they are no matter
                assert len((await client.stub.Probe(pb.ProbeRequest(answer=9))).data) == 9
            host, port = address.split(":")
            _, hoarder = await asyncio.open_connection(host, int(port))
            no_window = frame(4, 0, 0, struct.pack(">HI", 4, 0))
            hoarder.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + no_window)
            hoarder.write(b"".join(unread_probe(stream, address) for stream in (1, 3, 5)))
            refused: grpc.aio.AioRpcError | None = None
            while refused is None:
                try:
                    await client.stub.Probe(pb.ProbeRequest(answer=9))
                except grpc.aio.AioRpcError as error:
                    refused = error
            assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "probes" in (refused.details() or "")
            await answered_rightly(client, case)
            hoarder.close()
            answered = False
            while not answered:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await client.stub.Probe(pb.ProbeRequest(answer=9))
                    answered = True

    asyncio.run(main())


@pytest.mark.threat("floods")
def test_calls_at_once_are_limited(bundle: Bundle, case: Case) -> None:
    async def run(client: Client) -> None:
        talks = [await waiting(client, case) for _ in range(2)]
        with pytest.raises(grpc.aio.AioRpcError, match="RESOURCE_EXHAUSTED"):
            await client.sessions()
        for talk in talks:
            talk.call.cancel()

    on_worker(bundle, run, limits=ServingLimits(more_calls=0))


@pytest.mark.parametrize("pieces", [[], [ImageChunk(b"half", last=False)]])
def test_an_upload_that_never_ends_is_ended(bundle: Bundle, case: Case, pieces: list[AgentMessage]) -> None:
    async def run(client: Client) -> None:
        idle = Talk(client)
        await idle.say(case[0], *pieces)
        error = await idle.hear()
        assert isinstance(error, InputError)
        assert "to arrive" in str(error)
        await idle.call.done_writing()
        assert await idle.call.code() is grpc.StatusCode.INVALID_ARGUMENT

    on_worker(bundle, run, limits=ServingLimits(opening_seconds=0.2))


@pytest.mark.threat("handles")
def test_a_draft_beyond_the_context_is_cut_there(bundle: Bundle, case: Case) -> None:
    opening, _, answer = case
    long = answer + (1,) * 10_000

    async def run(client: Client) -> None:
        drafts = [Draft(opening.prompt_length, long), Draft(5_000, (1,)), Draft(2**32 - 1, (1,))]
        said = await client.converse([*asking(case, effort=0.5, draft=long), *drafts])
        assert tokens(said) == answer

    on_worker(bundle, run)


@pytest.mark.threat("floods")
def test_a_flood_of_drafts_before_the_session_is_open_ends_it(
    bundle: Bundle, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    flood = [Draft(case[0].prompt_length, (1,) * 100)] * 3
    heard, come = [], threading.Event()

    def hearing(message: pb.AgentMessage) -> AgentMessage:
        heard.append(message.WhichOneof("kind"))
        if heard.count("draft") == len(flood):
            come.set()
        return agent_from_wire(message)

    def waits(data: bytes, formats: tuple[str, ...]) -> Image.Image:
        come.wait(SECONDS)
        return decode_image(data, formats)

    monkeypatch.setattr(inbox, "agent_from_wire", hearing)
    monkeypatch.setattr(opening_module, "decode_image", waits)

    async def run(client: Client) -> None:
        said = await client.converse([*asking(case, effort=0.0), *flood])
        assert isinstance(said[-1], InputError)
        assert "before the session was open" in str(said[-1])
        await client.wait_until_free()

    on_worker(bundle, run)


def test_a_worker_whose_engine_broke_is_not_healthy(
    bundle: Bundle, case: Case, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("an illegal memory access")

    monkeypatch.setattr(Target, "run", broken)

    async def run(client: Client) -> None:
        health = health_pb2_grpc.HealthStub(client.channel)
        for _ in range(2):
            assert isinstance((await client.converse(asking(case)))[-1], WorkerFailed)
        for service in ("", SERVICE):
            reply = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING

    on_worker(bundle, run)
    assert "illegal memory access" in caplog.text


async def cancelled(client: Client, case: Case) -> None:
    (await waiting(client, case)).call.cancel()


async def cancelled_in_the_answer(client: Client, case: Case) -> None:
    talk = Talk(client)
    await talk.say(*asking(case))
    await talk.hear()
    talk.call.cancel()


async def cancelled_before_the_image(client: Client, case: Case) -> None:
    talk = Talk(client)
    await talk.say(case[0])
    talk.call.cancel()


async def told_to_cancel(client: Client, case: Case) -> None:
    talk = await waiting(client, case)
    await talk.say(Cancel())
    await talk.call.done_writing()
    assert await talk.call.read() is grpc.aio.EOF
    assert await talk.call.code() is grpc.StatusCode.OK


async def out_of_time(client: Client, case: Case) -> None:
    talk = await waiting(client, case, seconds=0.5)
    with contextlib.suppress(grpc.aio.AioRpcError):
        await talk.call.read()
    assert await talk.call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    "leave", [cancelled, cancelled_in_the_answer, cancelled_before_the_image, told_to_cancel, out_of_time]
)
def test_an_agent_that_leaves_frees_its_slot(
    bundle: Bundle, case: Case, leave: Callable[[Client, Case], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    async def run(client: Client) -> None:
        for _ in range(3):
            await leave(client, case)
            await client.wait_until_free()
        await answered_rightly(client, case)

    on_worker(bundle, run, slots=1)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_an_agent_whose_connection_breaks_frees_its_slot(bundle: Bundle, case: Case) -> None:
    async def main() -> None:
        async with serve(bundle, WorkerOptions(slots=1, context=256)) as address:
            async with grpc.aio.insecure_channel(address) as broken:
                await waiting(Client(broken), case)
            async with grpc.aio.insecure_channel(address) as channel:
                await Client(channel).wait_until_free()
                await answered_rightly(Client(channel), case)

    asyncio.run(main())


def test_a_worker_that_stops_ends_its_sessions(bundle: Bundle, case: Case) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            address = await stack.enter_async_context(serve(bundle, WorkerOptions(slots=1, context=256)))
            async with grpc.aio.insecure_channel(address) as channel:
                talk = await waiting(Client(channel), case)
                await stack.aclose()
                assert isinstance(await talk.hear(), WorkerUnavailable)
                with pytest.raises(grpc.aio.AioRpcError):
                    await talk.hear()
                assert await talk.call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)

    asyncio.run(main())
