"""Strangers who hold connections, or take back calls without end, shut nobody out who was let in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from cutline.cloud.access.audit import Audit
from cutline.cloud.access.auth import CALL_LIMITS, AuthInterceptor, Callers, CallLimits
from cutline.cloud.access.connections import (
    HANDSHAKE_SECONDS,
    Connections,
    most_connections,
    options,
    parse_peer,
    to_close,
)
from cutline.cloud.telemetry.log_limit import LimitedLog
from cutline.errors import WorkerBusy, WorkerUnavailable
from cutline.protos.client import WorkerClient
from cutline.protos.codec import agent_to_wire
from cutline.protos.messages import Open
from cutline.protos.v1 import worker_pb2 as pb
from cutline.protos.v1 import worker_pb2_grpc

SECONDS = 120
PREFACE = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + b"\0\0\0\4\1\0\0\0\0"
)  # settings, and their answer


class Talker(worker_pb2_grpc.WorkerServicer):
    """Says who it is, and in a session goes on for ever."""

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.Description:
        return pb.Description(model="m")

    async def Probe(self, request: pb.ProbeRequest, context: Any) -> pb.ProbeAnswer:
        return pb.ProbeAnswer()

    async def Session(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.WorkerMessage]:
        async for _ in request_iterator:
            while True:
                yield pb.WorkerMessage(confirmed=pb.Confirmed(tokens=[1]))
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def serving(most: int, limits: CallLimits = CALL_LIMITS) -> AsyncIterator[tuple[str, Connections]]:
    connections = Connections(most)
    gate = AuthInterceptor(Callers(), Audit(), calls=256, connections=connections, limits=limits)
    server = grpc.aio.server(interceptors=[gate], options=options(most))
    worker_pb2_grpc.add_WorkerServicer_to_server(Talker(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with connections.watch(port):
        yield f"127.0.0.1:{port}", connections
    await server.stop(None)


@pytest.mark.threat("connections")
def test_connections_that_say_nothing_shut_nobody_out(caplog: pytest.LogCaptureFixture) -> None:
    async def hangs_up(reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(1 << 16):
                pass

    async def run() -> None:
        async with serving(24) as (address, _), WorkerClient(address) as known:
            await known.describe()
            port, held = int(address.rpartition(":")[2]), list[asyncio.StreamWriter]()
            ended = list[asyncio.Task[None]]()
            for _ in range(60):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(PREFACE)
                held.append(writer)
                ended.append(asyncio.create_task(hangs_up(reader)))
            async with asyncio.timeout(SECONDS):
                while sum(not one.done() for one in ended) > 12:  # half of them  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                while True:  # whoever comes is served
                    with contextlib.suppress(WorkerUnavailable):
                        async with WorkerClient(address) as new:
                            await new.describe()
                            break
            assert known.connected, "who was let in stays"
            for writer in held:
                writer.transport.abort()
            await asyncio.wait(ended)

    with caplog.at_level(logging.WARNING, "cutline.cloud.access.connections"):
        asyncio.run(run())
    assert "of callers that never said who they are" in caplog.text
    assert "from 127.0.0.1" in caplog.text


def test_what_grpc_is_told() -> None:
    told = dict(options(100))
    assert told["grpc.server_handshake_timeout_ms"] == HANDSHAKE_SECONDS * 1000 <= 5000
    assert told["grpc.max_allowed_incoming_connections"] == 100
    assert told["grpc.max_connection_idle_ms"] > 190_000, "an agent may be silent for minutes"
    assert most_connections() >= 2


def test_who_is_many_makes_room_for_who_is_one() -> None:
    many, one = [("192.0.2.1", port) for port in range(5)], ("192.0.2.2", 7)
    assert to_close([one, *many], room=3) == tuple(many[:3]), "the oldest of the address that has most"
    assert to_close([*many, one], room=6) == ()
    assert to_close([*many, one], room=0)[-1] in (many[-1], one)
    assert len(to_close([*many, one], room=0)) == 6


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("ipv4:192.0.2.1:5", ("192.0.2.1", 5)),
        ("ipv6:%5B::1%5D:50051", ("::1", 50051)),
        ("ipv6:[::ffff:192.0.2.1]:5", ("192.0.2.1", 5)),
        ("unix:/tmp/socket", None),
    ],
)
def test_a_peer_as_grpc_writes_it(text: str, peer: tuple[str, int] | None) -> None:
    assert parse_peer(text) == peer


OPENING = agent_to_wire(Open(model="m", tokens=(1, 2), prompt_length=2, max_tokens=8))


async def take_back(address: str, calls: int) -> None:
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub: Any = worker_pb2_grpc.WorkerStub(channel)

        async def one(index: int) -> None:
            call = stub.Session(timeout=SECONDS)
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError, asyncio.InvalidStateError):
                if index % 3:
                    await call.write(OPENING)
                    if index % 2:
                        await call.read()
                call.cancel()

        await asyncio.gather(*map(one, range(calls)))


async def give_up_for_ever(client: WorkerClient) -> None:
    async with asyncio.timeout(SECONDS):
        while True:
            call = client.line.stub.Session()
            await call.write(OPENING)
            call.cancel()
            await client.describe()


@pytest.mark.threat("connections")
def test_calls_that_are_taken_back_cost_who_makes_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended, limits = list[str](), CallLimits(cancelled_a_second=1.0)

    async def run() -> None:
        async with serving(100, limits) as (address, connections), WorkerClient(address) as other:
            monkeypatch.setattr(connections, "end", ended.append)
            for _ in range(5):
                await take_back(address, 20)
            await other.describe()

    asyncio.run(run())
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR], "no traceback"
    assert not ended, "each connection is new here"

    async def insist() -> None:
        async with serving(100, limits) as (address, _), WorkerClient(address) as one, WorkerClient(address) as other:
            with pytest.raises((WorkerBusy, WorkerUnavailable)):
                await give_up_for_ever(one)
            await other.describe()

    asyncio.run(insist())


def test_of_many_lines_of_a_kind_one_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutline.cloud.telemetry.log_limit.PAUSE_SECONDS", 0.01)
    written = list[dict[str, object]]()

    async def run() -> None:
        lines = LimitedLog(lambda fields: written.append(dict(fields)))
        for number in range(100):
            lines.add({"number": number})
        async with asyncio.timeout(SECONDS):
            while len(written) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    asyncio.run(run())
    assert written == [{"number": 0, "count": 1}, {"number": 99, "count": 99}]
