"""Measured links against the emulated ones, in virtual seconds: a busy machine does not make them look slower."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.devices.emulator import LinkEmulator
from cutline.devices.link import LinkProfile
from cutline.edge.diagnostics.link_probe import measure_link, rate, round_trip
from cutline.errors import InputError, WorkerFailed, WorkerUnavailable
from cutline.protos.channel.address import parse_address
from cutline.protos.channel.credentials import AgentKeys
from cutline.protos.client import WorkerClient
from cutline.protos.v1 import worker_pb2 as pb
from cutline.protos.v1 import worker_pb2_grpc
from cutline.testing.virtual_time import run_virtually

CLOSE = 0.2  # a measured figure may be off by this share


class Answering(worker_pb2_grpc.WorkerServicer):
    """A worker that describes itself and answers probes, `short` of some bytes."""

    def __init__(self, short: int = 0) -> None:
        self.short = short

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.Description:
        return pb.Description(model="m", name="n", version="v", start="image", end="end")

    async def Probe(self, request: pb.ProbeRequest, context: Any) -> pb.ProbeAnswer:
        return pb.ProbeAnswer(data=bytes(request.answer - self.short))


@contextlib.asynccontextmanager
async def serving(servicer: Answering) -> AsyncIterator[str]:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 2 << 20)])
    worker_pb2_grpc.add_WorkerServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


class PlainClient:
    """Probes over a plain connection: gRPC's own threads live in real time."""

    def __init__(self, address: str, keys: AgentKeys) -> None:
        self._address = parse_address(address)

    async def __aenter__(self) -> PlainClient:
        self._reader, self._writer = await asyncio.open_connection(*self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def describe(self) -> None:
        await self.probe(up=0, down=0)

    async def probe(self, *, up: int, down: int) -> None:
        self._writer.write(struct.pack(">II", up, down) + bytes(up))
        await self._reader.readexactly(1 + down)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What it is asked for, and a byte."""
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            up, down = struct.unpack(">II", await reader.readexactly(8))
            await reader.readexactly(up)
            writer.write(bytes(1 + down))
    writer.close()


def emulated(rtt: float, up: float, down: float, *, jitter: float = 0.0) -> LinkProfile:
    return LinkProfile(
        name="lab",
        rtt_ms=rtt,
        uplink_mbps=up,
        downlink_mbps=down,
        jitter_ms=jitter,
        source="measured",
        reference="made for these tests",
    )


def figures(found: LinkProfile, profile: LinkProfile) -> list[tuple[float, Any]]:
    """What was found, and what it should be about."""
    keys = ("rtt_ms", "uplink_mbps", "downlink_mbps")
    return [(getattr(found, key), pytest.approx(getattr(profile, key), rel=CLOSE)) for key in keys]


@pytest.mark.parametrize(
    "profile", [emulated(20.0, 20.0, 60.0), emulated(60.0, 4.0, 16.0, jitter=10.0)], ids=["near", "far"]
)
def test_a_link_is_measured_as_it_was_made(profile: LinkProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutline.edge.diagnostics.link_probe.WorkerClient", PlainClient)

    async def measure() -> LinkProfile:
        listening = await asyncio.start_server(answer, "127.0.0.1")
        host, port = listening.sockets[0].getsockname()
        async with listening, LinkEmulator(profile, target=(host, port)) as link:
            return await measure_link(link.address, name="found", seconds=4.0)

    found = run_virtually(measure())
    for one, other in figures(found, profile):
        assert one == other
    assert found.name == "found"
    assert found.source == "measured"
    assert found.jitter_ms <= profile.jitter_ms + 5.0


def test_nobody_at_the_other_end_is_said_in_one_line() -> None:
    with pytest.raises(WorkerUnavailable, match="no worker answers at 127"):
        asyncio.run(measure_link("127.0.0.1:1", name="x", seconds=1.0))
    with pytest.raises(InputError):
        asyncio.run(measure_link("nowhere", name="x", seconds=1.0))


def test_a_worker_that_answers_short_is_found_out() -> None:
    async def probe() -> None:
        async with serving(Answering(short=1)) as address, WorkerClient(address) as client:
            await client.probe(up=0, down=8)

    with pytest.raises(WorkerFailed, match="keep to the protocol"):
        asyncio.run(probe())


def test_the_round_trip_and_how_far_it_strays() -> None:
    assert round_trip([0.05] * 5) == (0.05, 0.0)
    middle, strays = round_trip([0.04, 0.05, 0.06, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 9.0])
    assert middle == 0.05
    assert strays == pytest.approx(0.01)  # of nine in ten: one outlier is no jitter


@given(
    base=st.floats(1e-4, 1.0), speed=st.floats(1e4, 1e8), size=st.integers(1 << 14, 1 << 20), count=st.integers(1, 5)
)
def test_a_rate_is_what_a_larger_call_took_longer(base: float, speed: float, size: int, count: int) -> None:
    longer = size / speed
    expected = size / max(longer, base / 10)
    assert rate([base] * count, [base + longer] * count, size) == pytest.approx(expected, rel=1e-3)
    assert rate([base], [base / 2], size) == pytest.approx(size * 10 / base)  # noise hides it
