"""HTTP/2 as no client speaks it, against a real worker that goes on answering an honest agent all the while."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from cutline.cloud.serving.limits import SERVING_LIMITS
from cutline.cloud.serving.server import SERVICE
from cutline.errors import WorkerBusy
from cutline.protos.client import WorkerClient

SECONDS = 20
ROOM = 64 << 20  # bytes by which a flood may make the worker grow; what it sends is more, or costs more if it is kept

# RFC 9113, section 6: types of frames, and flags.
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
CANCEL = struct.pack(">I", 8)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Section 4.1."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def length(text: bytes) -> bytes:
    """A string's length: RFC 7541, section 5.1."""
    if len(text) < 127:
        return bytes([len(text)])
    more, rest = b"\x7f", len(text) - 127
    while rest > 127:
        more, rest = more + bytes([rest % 128 + 128]), rest // 128
    return more + bytes([rest])


def field(name: str, value: bytes) -> bytes:
    """A literal header that is not kept: RFC 7541, section 6.2.2."""
    return b"\0" + length(name.encode()) + name.encode() + length(value) + value


def call(stream: int, *more: bytes, method: str = "Session", flags: int = END_HEADERS) -> bytes:
    """The frame that begins a call of the worker's."""
    asked = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/{SERVICE}/{method}",
        ":authority": "worker",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    block = b"".join(field(name, value.encode()) for name, value in asked.items()) + b"".join(more)
    return frame(HEADERS, flags, stream, block)


class Flood:
    """A raw connection. `heard` has the frames (type, flags, stream, payload) that came back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard: list[tuple[int, int, int, bytes]] = []
        self.reading = asyncio.create_task(self._read(reader))
        self._writer = writer

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(9)
                size, kind, flags, stream = int.from_bytes(head[:3], "big"), *struct.unpack(">BBI", head[3:])
                self.heard.append((kind, flags, stream, await reader.readexactly(size)))

    async def send(self, data: bytes) -> bool:
        """Whether it was taken; the worker may have hung up."""
        try:
            self._writer.write(data)
            await asyncio.wait_for(self._writer.drain(), SECONDS)
        except ConnectionError:
            return False
        return not self.reading.done()

    def count(self, kind: int) -> int:
        return sum(one[0] == kind for one in self.heard)

    async def hears(self, kind: int, count: int) -> None:
        """Wait for so many frames of a kind, or until the worker hangs up."""
        async with asyncio.timeout(SECONDS):
            while self.count(kind) < count and not self.reading.done():  # noqa: ASYNC110 (nobody else waits)
                await asyncio.sleep(0.02)

    async def hung_up(self) -> bool:
        """Whether the worker ends the connection, or has said that it will."""
        with contextlib.suppress(TimeoutError):
            await self.hears(GOAWAY, 1)
        return self.reading.done() or self.count(GOAWAY) > 0

    async def close(self) -> None:
        self._writer.transport.abort()
        await self.reading


@contextlib.asynccontextmanager
async def flood(address: str, *settings: tuple[int, int]) -> AsyncIterator[Flood]:
    host, port = address.rsplit(":", 1)
    one = Flood(*await asyncio.open_connection(host, int(port)))
    named = b"".join(struct.pack(">HI", name, value) for name, value in settings)
    await one.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, named) + frame(SETTINGS, ACK, 0))
    try:
        yield one
    finally:
        await one.close()


def on(victim: Any, meanwhile: Any, run: Callable[[], Awaitable[None]]) -> None:
    """Run a flood of the victim: others are served, it grows little, and is as it was before."""

    async def main() -> None:
        async with WorkerClient(victim.address) as client:
            await client.describe()
            before = victim.peak
            async with meanwhile(victim.address):
                await run()
            assert victim.peak - before < ROOM
            async with asyncio.timeout(SECONDS):
                while (await client.describe()).sessions:
                    pass

    asyncio.run(main())


@pytest.mark.threat("floods")
@pytest.mark.sampled(2_000, 20_000)
def test_calls_that_are_taken_back_at_once(victim: Any, meanwhile: Any, rounds: int) -> None:
    """Rapid reset: as fast as they go, on two connections, so many on each unless the worker hangs up."""

    async def one() -> None:
        async with flood(victim.address) as raw:
            for first in range(1, 2 * rounds, 400):
                streams = range(first, first + 400, 2)
                if not await raw.send(b"".join(call(one) + frame(RST_STREAM, 0, one, CANCEL) for one in streams)):
                    break

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(one())

    on(victim, meanwhile, run)


@pytest.mark.threat("floods")
def test_more_calls_than_a_connection_may_have(victim: Any, meanwhile: Any) -> None:
    """Those that are over are refused; sessions that say nothing hold no place of one that does."""

    async def run() -> None:
        async with flood(victim.address) as raw:
            for stream in range(1, 2 * 400, 2):
                assert await raw.send(call(stream))
            await raw.hears(RST_STREAM, 400 - 256)

    on(victim, meanwhile, run)


async def refused(client: WorkerClient) -> bool:
    try:
        await client.describe()
    except WorkerBusy:
        return True
    return False


@pytest.mark.threat("floods")
def test_more_calls_than_a_worker_takes_are_refused_until_they_end(victim: Any, honest: Any) -> None:
    """From many connections, so that none is over its own limit."""

    async def main() -> None:
        async with WorkerClient(victim.address) as client, contextlib.AsyncExitStack() as stack:
            for _ in range(3):
                raw = await stack.enter_async_context(flood(victim.address))
                await raw.send(b"".join(call(stream) for stream in range(1, 2 * 250, 2)))
            assert SERVING_LIMITS.more_calls + 64 < 3 * 250
            async with asyncio.timeout(SECONDS):
                while not await refused(client):
                    pass
            await stack.aclose()
            async with asyncio.timeout(SECONDS):
                while await refused(client):
                    pass
            assert await honest.asked(client) == honest.answer

    asyncio.run(main())


@pytest.mark.threat("floods")
def test_headers_without_end(victim: Any, meanwhile: Any) -> None:
    """In one frame after the other, and in one that is over the limit: no call comes of either."""

    async def run() -> None:
        async with flood(victim.address) as raw:
            taken = await raw.send(call(1, flags=0))
            sent = 0
            while taken and sent < 128 << 20 and not raw.count(GOAWAY):
                chunk = b"".join(field(f"x-{index}", bytes(90)) for index in range(120))
                taken = await raw.send(frame(CONTINUATION, 0, 1, chunk) * 16)
                sent += len(chunk) * 16
            await raw.send(frame(CONTINUATION, END_HEADERS, 1))
            await raw.hears(RST_STREAM, 1)
        async with grpc.aio.insecure_channel(victim.address) as channel:
            describe = channel.unary_unary(f"/{SERVICE}/Describe")
            for metadata in ((("x", "y" * 60_000),), tuple((f"x-{index}", "y" * 900) for index in range(60))):
                with pytest.raises(grpc.aio.AioRpcError, match="RESOURCE_EXHAUSTED"):
                    await describe(b"", metadata=metadata, timeout=SECONDS)

    on(victim, meanwhile, run)


@pytest.mark.threat("floods")
def test_messages_that_are_too_long_are_not_waited_for(victim: Any, meanwhile: Any) -> None:
    """A message says how long it is before it comes: 4 GiB, of which the worker takes nothing."""

    async def run() -> None:
        async with flood(victim.address) as raw:
            for stream in range(1, 40, 2):
                await raw.send(call(stream) + frame(DATA, 0, stream, struct.pack(">BI", 0, 2**32 - 1) + bytes(9000)))
            await raw.hears(HEADERS, 20)  # trailers, that say why

    on(victim, meanwhile, run)


@pytest.mark.threat("floods")
@pytest.mark.parametrize("kind", ["pings", "settings"])
def test_pings_and_settings_nobody_reads_the_answers_of(victim: Any, meanwhile: Any, kind: str) -> None:
    def one(index: int) -> bytes:
        if kind == "pings":
            return frame(PING, 0, 0, struct.pack(">Q", index))
        return frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1 + index % 9))

    async def run() -> None:
        async with flood(victim.address) as raw:
            taken, index = True, 0
            while taken and index < 200_000:
                taken = await raw.send(b"".join(one(index + offset) for offset in range(1000)))
                index += 1000
            if kind == "pings":
                assert await raw.hung_up()

    on(victim, meanwhile, run)
