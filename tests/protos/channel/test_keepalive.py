"""Both ends' settings suit each other: a connection on which nothing is said stands."""

from __future__ import annotations

import asyncio
import contextlib
import time

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cutline.protos.channel import credentials
from cutline.protos.channel.keepalive import CLIENT, MIN_PING_SECONDS, PING_SECONDS, SERVER, Options

FASTER = 40  # times: what takes 140 seconds takes 3.5
UNBOUND = ("grpc.http2.max_pings_without_data", 0)  # else gRPC pings but once a minute after the second
PERMIT = "grpc.keepalive_permit_without_calls"


def faster(options: Options) -> list[tuple[str, int]]:
    return [(name, value // FASTER if name.endswith("_ms") else value) for name, value in options]


async def stands(server_options: Options, seconds: float) -> bool:
    """Whether a connection without calls is still there after so many seconds."""
    server = grpc.aio.server(options=faster(server_options))
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[*faster(CLIENT), UNBOUND]) as channel:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        end = time.monotonic() + seconds
        while (ready := channel.get_state() is grpc.ChannelConnectivity.READY) and (left := end - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(channel.wait_for_state_change(grpc.ChannelConnectivity.READY), left)
    await server.stop(None)
    return ready


def test_an_idle_connection_stands() -> None:
    assert asyncio.run(stands(SERVER, 6.0))


def test_a_server_that_takes_no_pings_between_calls_would_end_it() -> None:
    assert not asyncio.run(stands(tuple(one for one in SERVER if one[0] != PERMIT), 60.0))


def test_a_client_pings_less_often_than_a_server_takes() -> None:
    assert PING_SECONDS >= 2 * MIN_PING_SECONDS
    assert dict(CLIENT)["grpc.keepalive_time_ms"] > dict(SERVER)["grpc.http2.min_ping_interval_without_data_ms"]
    assert dict(CLIENT)[PERMIT] == dict(SERVER)[PERMIT] == 1


def test_every_channel_and_every_server_has_them() -> None:
    """Agents, and workers that go on to a next one, come by the same channel; a directory serves as a worker does."""
    from cutline.cloud.access.connections import options

    assert set(CLIENT) <= set(credentials._OPTIONS)
    assert set(SERVER) <= set(options(100))
