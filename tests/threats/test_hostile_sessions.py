"""Sessions that are attacks, on a real worker that goes on answering an honest agent all the while."""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from cutline.cloud.model.model_runner import Target
from cutline.cloud.serving import admission as opening_module
from cutline.cloud.serving.server import Access, WorkerOptions, serve
from cutline.errors import CutlineError, InputError, VersionMismatch, WorkerFailed, WorkerForgot
from cutline.models.bundle import Bundle
from cutline.protos.channel.credentials import TENANT_KEY, AgentKeys
from cutline.protos.channel.token_file import token_entry
from cutline.protos.client import WorkerClient
from cutline.protos.codec import agent_to_wire, worker_from_wire
from cutline.protos.digests import image_digest
from cutline.protos.messages import Open, Opened, image_chunks
from cutline.protos.tensors import CHUNK
from cutline.protos.v1 import worker_pb2 as pb

SECONDS = 30

Attack = Sequence[pb.AgentMessage | bytes]


def raw(message: pb.AgentMessage | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


async def attacked(channel: Any, messages: Attack) -> tuple[grpc.StatusCode, list[Any]]:
    """The status of a session of these messages, bytes as they are, and what the worker said."""
    call = channel.stream_stream("/cutline.v1.Worker/Session", raw, pb.WorkerMessage.FromString)

    async def each() -> AsyncIterator[Any]:
        for message in messages:
            yield message

    talk, said = call(each(), timeout=SECONDS), list[Any]()
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for message in talk:
            said.append(worker_from_wire(message))
    return await talk.code(), said


def files(opening: Open, *images: bytes) -> list[pb.AgentMessage]:
    pieces = [piece for image in images for piece in image_chunks(image)]
    return [agent_to_wire(opening), *map(agent_to_wire, pieces)]


def on(victim: Any, meanwhile: Any, run: Callable[[Any], Any]) -> None:
    """Run an attack on the victim, and know that others were served."""

    async def main() -> None:
        async with meanwhile(victim.address), grpc.aio.insecure_channel(victim.address) as channel:
            await run(channel)

    asyncio.run(main())


def hostile_tensors(rows: int, width: int) -> dict[str, pb.Tensor]:
    """Of a type, length, shape or content that a tensor of (rows, width) never has."""
    zeros, shape = bytes(4 * rows * width), [rows, width]
    half = bytes(2 * rows * width)
    made: dict[str, pb.Tensor] = {
        f"type {number}": pb.Tensor(type=number, shape=shape, data=zeros)  # type: ignore[arg-type]
        for number in (0, 6, 99, 2**31 - 1, -1)
    }
    made |= {
        f"shape {one}": pb.Tensor(type="FLOAT32", shape=one, data=zeros)
        for one in (
            [],
            [0, width],
            [rows + 1, width],
            [rows * width],
            [1] * 5,
            [2**16, 2**16],
            [2**31, 2],
            [2**32 - 1] * 4,
        )
    }
    nan, infinite = struct.pack("<I", 0x7FC00000), struct.pack("<I", 0xFF800000)
    return made | {
        "no data": pb.Tensor(type="FLOAT32", shape=shape),
        "a byte less": pb.Tensor(type="FLOAT32", shape=shape, data=zeros[1:]),
        "a message more": pb.Tensor(type="FLOAT32", shape=[1, CHUNK // 4 + 1], data=bytes(CHUNK + 4)),
        "not a number": pb.Tensor(type="FLOAT32", shape=shape, data=zeros[4:] + nan),
        "infinite": pb.Tensor(type="FLOAT32", shape=shape, data=infinite + zeros[4:]),
        "infinite halves": pb.Tensor(type="FLOAT16", shape=shape, data=b"\x00\x7c" + half[2:]),
        "bfloat16 that is none": pb.Tensor(type="BFLOAT16", shape=shape, data=half[2:] + b"\xc0\x7f"),
        "scales for floats": pb.Tensor(type="FLOAT32", shape=shape, data=zeros, scales=bytes(4 * rows)),
        "no scales": pb.Tensor(type="INT8", shape=shape, data=bytes(rows * width)),
        "scales below zero": pb.Tensor(
            type="INT8", shape=shape, data=bytes(rows * width), scales=struct.pack("<f", -1) * rows
        ),
        "scales that overflow": pb.Tensor(
            type="INT8", shape=shape, data=b"\x7f" * rows * width, scales=struct.pack("<f", 3e38) * rows
        ),
    }


@pytest.mark.threat("tensors")
def test_tensors_that_are_none_end_their_own_session(victim: Any, meanwhile: Any, honest: Any, bundle: Bundle) -> None:
    rows, width = honest.opening.tokens.count(bundle.manifest.image_token), bundle.manifest.decoder.width
    opening = agent_to_wire(replace(honest.opening, cut="decoder.0", images=0))

    async def run(channel: Any) -> None:
        for name, tensor in hostile_tensors(rows, width).items():
            boundary = pb.AgentMessage(boundary=pb.Boundary(rows=tensor, last=True))
            code, said = await attacked(channel, [opening, boundary])
            later = name in ("type 6", "type 99", f"type {2**31 - 1}", "type -1")  # as a newer agent may know them
            assert code is (grpc.StatusCode.UNIMPLEMENTED if later else grpc.StatusCode.INVALID_ARGUMENT), name
            assert [type(one) for one in said] == [VersionMismatch if later else InputError], name
        for garbage in (b"\xff" * 40, b"\x1a\xff\xff\xff\xff\x0f", bytes(CHUNK)):
            code, said = await attacked(channel, [opening, garbage])
            assert code is not grpc.StatusCode.OK
            assert not any(isinstance(one, Opened) for one in said)

    on(victim, meanwhile, run)


@pytest.mark.threat("tensors", "pickle")
def test_a_tensor_of_code_is_numbers(victim: Any, meanwhile: Any, honest: Any, bundle: Bundle, tmp_path: Path) -> None:
    """What would run if anything unpickled it, in all places where bytes may come."""
    ran = tmp_path / "ran"
    code = f"cposix\nsystem\n(S'touch {ran}'\ntR.".encode()
    rows, width = honest.opening.tokens.count(bundle.manifest.image_token), bundle.manifest.decoder.width
    opening = replace(honest.opening, cut="decoder.0", images=0)
    tensor = pb.Tensor(type="FLOAT32", shape=[rows, width], data=code.ljust(4 * rows * width, b"\0"))

    async def run(channel: Any) -> None:
        boundary = pb.AgentMessage(boundary=pb.Boundary(rows=tensor, last=True))
        status, _ = await attacked(channel, [agent_to_wire(opening), boundary])
        assert status is grpc.StatusCode.OK  # they are numbers, of which it makes what it can
        assert (await attacked(channel, [code]))[0] is not grpc.StatusCode.OK
        assert (await attacked(channel, files(honest.opening, code)))[0] is grpc.StatusCode.INVALID_ARGUMENT
        named = replace(honest.opening, digests=(code[:32],))
        assert (await attacked(channel, files(named, honest.image)))[0] is grpc.StatusCode.INVALID_ARGUMENT

    on(victim, meanwhile, run)
    assert not ran.exists()


@pytest.mark.threat("spans")
def test_image_tokens_that_fit_no_image_stop_nobody(victim: Any, meanwhile: Any, honest: Any, bundle: Bundle) -> None:
    """Prompts with image tokens anywhere, several at once; one is answered only if it has as many as its images."""
    dice = random.Random(7)  # noqa: S311
    image, words = bundle.manifest.image_token, [token for token in honest.opening.tokens if token > 20]
    right = honest.opening.tokens.count(image)
    good: Open = honest.opening

    def opening() -> Open:
        count = dice.choice([0, 1, right - 1, right, right + 1, 2 * right, 100])
        tokens = [image] * count + dice.choices(words, k=10)
        dice.shuffle(tokens)
        return replace(
            good,
            tokens=tuple(tokens),
            prompt_length=len(tokens) - dice.choice([0, 0, 3]),
            images=dice.choice([0, 1, 1, 2, 16]),
            grids=dice.choice([(), ((0, 0),), ((1, 1),), ((0, 0),) * 3, ((2**32 - 1, 1),)]),
            draft=(image,) * dice.choice([0, 5]),
            max_tokens=3,
        )

    async def run(channel: Any) -> None:
        gate = asyncio.Semaphore(2)  # so that none is refused for want of room

        async def one(asked: Open) -> bool:
            async with gate:
                code, _ = await attacked(channel, files(asked, *[honest.image] * asked.images))
            busy = code is grpc.StatusCode.RESOURCE_EXHAUSTED
            fits = asked.tokens[: asked.prompt_length].count(image) == right * asked.images
            assert busy or (code is grpc.StatusCode.INVALID_ARGUMENT) or (fits and code is grpc.StatusCode.OK), asked
            return code is grpc.StatusCode.OK

        answered = await asyncio.gather(*(one(opening()) for _ in range(60)))
        assert 0 < sum(answered) < 30

    on(victim, meanwhile, run)


def black(side: int) -> bytes:
    """A whole PNG of one bit a pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + (side + 7) // 8) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def many_scans() -> bytes:
    """A progressive JPEG of 16 megapixels, of which one scan stands there 2000 times."""
    file = io.BytesIO()
    Image.new("L", (4096, 4096)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    start = data.index(b"\xff\xda", data.index(b"\xff\xda") + 1)
    end = data.index(b"\xff", start + 2)
    return data[:start] + data[start:end] * 2000 + data[start:]


@pytest.mark.threat("bombs", "formats", "aspect")
def test_pictures_that_are_attacks_cost_a_worker_nothing(victim: Any, meanwhile: Any, honest: Any) -> None:
    def saved(size: tuple[int, int], kind: str = "PNG") -> bytes:
        file = io.BytesIO()
        Image.new("RGB", size).save(file, kind)
        return file.getvalue()

    pictures = {
        "13000 by 13000": black(13_000),
        "many scans": many_scans(),
        "a dot": saved((1, 1)),
        "a line": saved((8, 4000)),
        "a line the other way": saved((16_000, 8)),
        "TIFF": saved((64, 64), "TIFF"),
        "FITS": b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800),
        "FPX": bytes.fromhex("d0cf11e0a1b11ae1") + bytes(4096),
    }
    assert len(pictures["13000 by 13000"]) < 25_000

    async def run(channel: Any) -> None:
        before = victim.peak
        for name, picture in pictures.items():
            async with asyncio.timeout(20):
                code, said = await attacked(channel, files(honest.opening, picture))
            assert code is grpc.StatusCode.INVALID_ARGUMENT, name
            assert isinstance(said[-1], InputError), name
        assert victim.peak - before < 64 << 20

    on(victim, meanwhile, run)


SECRET = "no such block at 0x7f3a9c0012d0 in /home/operator/models/secret.bin"


@pytest.mark.threat("words")
@pytest.mark.parametrize("place", ["preparing", "running"])
def test_what_a_library_says_stays_in_the_log(
    bundle: Bundle, honest: Any, place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*_: object, **__: object) -> Any:
        raise RuntimeError(SECRET)

    if place == "preparing":
        monkeypatch.setattr(opening_module, "decode_image", breaks)
    else:
        monkeypatch.setattr(Target, "run", breaks)

    async def main() -> None:
        async with (
            serve(bundle, WorkerOptions(slots=1, context=256)) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            call = channel.stream_stream(
                "/cutline.v1.Worker/Session", pb.AgentMessage.SerializeToString, pb.WorkerMessage.FromString
            )
            talk, told = call(iter(files(honest.opening, honest.image)), timeout=SECONDS), list[str]()
            try:
                async for message in talk:
                    told.append(str(message))
            except grpc.aio.AioRpcError as error:
                told += [str(error), str(error.details()), str(error.trailing_metadata())]
            assert sum("failed" in one for one in told) > 1
            assert not any(part in one for one in told for part in ("0x7f", "/home", "block", "RuntimeError"))

    asyncio.run(main())
    assert SECRET in caplog.text


@pytest.mark.threat("handles", "caches")
def test_another_tenants_images_are_not_there(bundle: Bundle, honest: Any, meanwhile: Any, tmp_path: Path) -> None:
    """Over the wire, by their right digest: as if nobody had ever sent them, whatever name the other one goes by."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(token_entry("harbour", "one") + token_entry("warehouse", "two"))
    named = replace(honest.opening, digests=(image_digest(honest.image),))
    known = replace(named, images=0, known=1)

    async def opened(address: str, token: str, opening: Open, *images: bytes, within: str = "") -> Opened:
        metadata = [(TENANT_KEY, within)] if within else []
        pieces = [piece for image in images for piece in image_chunks(image)]
        async with (
            WorkerClient(address, AgentKeys(token=token)) as client,
            client.session(opening, pieces, timeout=SECONDS, metadata=metadata) as session,
        ):
            events = [event async for event in session.events()]
        assert isinstance(events[0], Opened)
        return events[0]

    async def main() -> None:
        async with serve(bundle, WorkerOptions(slots=4, context=256), access=Access(tokens=tokens)) as address:
            first = await opened(address, "one", named, honest.image)
            assert (first.kept, first.reused) == (True, 0)
            assert (await opened(address, "one", known)).reused > 0
            async with meanwhile(address, AgentKeys(token="one")):
                for within in ("", "harbour", "one"):
                    with pytest.raises(WorkerForgot):
                        await opened(address, "two", known, within=within)
                with pytest.raises(WorkerForgot):  # nor has another one of the same tenant's
                    await opened(address, "one", known, within="warehouse")
                other = await opened(address, "two", named, honest.image)
                assert (other.kept, other.reused) == (True, 0)  # kept, and worked out anew

    asyncio.run(main())


@pytest.mark.threat("handles")
def test_numbers_that_point_elsewhere_are_refused(victim: Any, meanwhile: Any, honest: Any, bundle: Bundle) -> None:
    """Layers, positions, counts and tokens at and beyond every end."""
    largest, outside = 2**32 - 1, bundle.manifest.decoder.vocabulary
    after = honest.opening.prompt_length
    upload = list(map(agent_to_wire, image_chunks(honest.image)))
    openings: list[dict[str, Any]] = [
        *({"cut": cut} for cut in ("vision.4", "decoder.4", "decoder.-1", "vision.99999999999", "end", "../image")),
        *({"tokens": (*honest.opening.tokens, token)} for token in (outside, largest)),
        *({"draft": (token,)} for token in (outside, largest)),
        *({"prompt_length": count} for count in (0, after + 1, largest)),
        {"images": largest},
        {"known": largest},
        {"known": 1},
        {"alternatives": largest},
        {"digests": (b"\0" * 31,)},
    ]

    async def run(channel: Any) -> None:
        for changes in openings:
            code, said = await attacked(channel, [agent_to_wire(replace(honest.opening, **changes)), *upload])
            assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ABORTED), changes
            assert isinstance(said[-1], CutlineError)
            assert not isinstance(said[-1], WorkerFailed), changes
        opening = agent_to_wire(replace(honest.opening, effort=1.0))
        for position in (0, 1, after - 1, after + 9_999, largest):  # of no use, and no harm
            draft = pb.AgentMessage(draft=pb.Draft(position=position, tokens=[5] * 50))
            code, said = await attacked(channel, [opening, *upload, draft])
            told = tuple(token for one in said for token in getattr(one, "tokens", ()))
            assert (code, told) == (grpc.StatusCode.OK, honest.answer), position
        rows = np.zeros((2, bundle.manifest.decoder.width), np.float32)
        tensor = pb.Tensor(type="FLOAT32", shape=rows.shape, data=rows.tobytes())
        draft = pb.AgentMessage(draft=pb.Draft(position=after, tokens=[5], rows=tensor))
        code, _ = await attacked(channel, [opening, *upload, draft])
        assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OK)

    on(victim, meanwhile, run)
