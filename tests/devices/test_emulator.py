"""The emulator against its own settings: what a client and a server see over the link, by their own clocks.

The seconds are virtual, but for the sockets: a busy machine does not make the link look slower.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutline.devices.emulator import MSS, LinkEmulator, flight_time
from cutline.devices.link import LinkProfile
from cutline.testing.virtual_time import run_virtually

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def link(
    rtt_ms: float,
    uplink_mbps: float,
    downlink_mbps: float,
    *,
    jitter_ms: float = 0.0,
    loss: float = 0.0,
    outages: tuple[tuple[float, float], ...] = (),
) -> LinkProfile:
    return LinkProfile(
        name="test",
        rtt_ms=rtt_ms,
        uplink_mbps=uplink_mbps,
        downlink_mbps=downlink_mbps,
        source="measured",
        reference="made for these tests",
        jitter_ms=jitter_ms,
        loss=loss,
        outages=outages,
    )


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[tuple[str, int]]:
    """An echo server: it answers each byte with itself, and the end with the end."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
        writer.close()

    listening = await asyncio.start_server(echo, "127.0.0.1")
    async with listening:
        yield listening.sockets[0].getsockname()


@contextlib.asynccontextmanager
async def emulated(profile: LinkProfile) -> AsyncIterator[LinkEmulator]:
    """The link in front of an echo server."""
    async with server() as target, LinkEmulator(profile, target=target, seed=1) as emulator:
        yield emulator


@contextlib.asynccontextmanager
async def connection(emulator: LinkEmulator) -> AsyncIterator[Streams]:
    host, port = emulator.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def echoed(streams: Streams, payload: bytes) -> float:
    """Seconds until the whole payload has come back."""
    reader, writer = streams
    began = time.monotonic()
    writer.write(payload)
    assert await reader.readexactly(len(payload)) == payload
    return time.monotonic() - began


async def agrees(measure: Callable[[], Awaitable[float]], expected: float) -> None:
    assert await measure() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("profile", [link(30, 8, 40), link(60, 40, 8, jitter_ms=10)])
def test_round_trip_and_transfer_times_agree_with_the_profile(profile: LinkProfile) -> None:
    async def measure() -> None:
        async with emulated(profile) as emulator, connection(emulator) as streams:
            await echoed(streams, b"warm")

            async def round_trip() -> float:
                return statistics.median([await echoed(streams, b"ping") for _ in range(7)])

            async def transfer() -> float:
                return await echoed(streams, payload)

            await agrees(round_trip, profile.rtt_ms / 1000)
            # The slower direction is what an echo waits for: the faster one runs along with it.
            payload = bytes(400_000)
            slower = min(profile.uplink_mbps, profile.downlink_mbps) * 125_000
            await agrees(transfer, profile.rtt_ms / 1000 + len(payload) / slower)

    run_virtually(measure())


def test_the_round_trip_does_not_limit_the_rate() -> None:
    async def measure() -> None:
        async with emulated(link(300, 16, 16)) as emulator, connection(emulator) as streams:
            await echoed(streams, b"warm")
            # One chunk a round trip would take 300 ms for each 4 KB: a minute and more.
            await agrees(lambda: echoed(streams, bytes(1_000_000)), 0.8)

    run_virtually(measure())


def test_a_connection_costs_one_round_trip_before_its_first_bytes() -> None:
    async def measure() -> float:
        async with emulated(link(50, 10, 10)) as emulator:
            began = time.monotonic()
            async with connection(emulator) as streams:
                await echoed(streams, b"hello")
                return time.monotonic() - began

    async def check() -> None:
        await agrees(measure, 0.1)

    run_virtually(check())


def test_a_small_message_waits_behind_the_big_one_before_it() -> None:
    async def measure() -> None:
        async with emulated(link(10, 4, 100)) as emulator, connection(emulator) as streams:
            await echoed(streams, b"warm")
            reader, writer = streams
            writer.write(bytes(100_000))
            await writer.drain()
            began = time.monotonic()
            writer.write(b"last")
            assert (await reader.readexactly(100_004)).endswith(b"last")
            assert time.monotonic() - began > 0.18  # 100 KB at 4 Mbit/s are 200 ms

    run_virtually(measure())


def test_connections_share_the_rate() -> None:
    async def measure() -> None:
        async with emulated(link(10, 8, 80)) as emulator, connection(emulator) as one, connection(emulator) as two:
            await asyncio.gather(echoed(one, b"warm"), echoed(two, b"warm"))

            async def both() -> float:
                times = await asyncio.gather(echoed(one, bytes(150_000)), echoed(two, bytes(150_000)))
                assert min(times) > 0.2  # alone, either would take 0.16 s: they take turns
                return max(times)

            await agrees(both, 0.31)

    run_virtually(measure())


def test_bytes_keep_their_order_under_jitter_and_loss_and_are_counted() -> None:
    payload = np.random.default_rng(3).bytes(300_000)

    async def measure() -> None:
        profile = link(10, 50, 50, jitter_ms=10, loss=0.02)
        async with emulated(profile) as emulator, connection(emulator) as streams:
            await echoed(streams, payload)
            assert (emulator.bytes_up, emulator.bytes_down) == (len(payload), len(payload))

    run_virtually(measure())


def test_the_end_of_a_stream_arrives_after_its_bytes() -> None:
    async def measure() -> None:
        async with emulated(link(20, 4, 4)) as emulator, connection(emulator) as (reader, writer):
            writer.write(bytes(20_000))
            writer.write_eof()
            assert len(await reader.read()) == 20_000

    run_virtually(measure())


def test_a_receiver_that_does_not_read_makes_the_sender_wait() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stop.wait()
        writer.transport.abort()

    stop = asyncio.Event()

    async def measure() -> None:
        listening = await asyncio.start_server(silent, "127.0.0.1")
        target = listening.sockets[0].getsockname()
        async with listening, LinkEmulator(link(2, 2000, 2000), target=target) as emulator:
            async with connection(emulator) as (_, writer):

                async def flood() -> None:
                    while True:
                        writer.write(bytes(1 << 20))
                        await writer.drain()

                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(flood(), 0.7)
                assert emulator.bytes_up < 40 << 20
                writer.transport.abort()
            stop.set()

    run_virtually(measure())


def test_nothing_arrives_while_the_link_is_cut_and_nothing_is_lost() -> None:
    async def measure() -> None:
        async with emulated(link(10, 10, 10)) as emulator, connection(emulator) as streams:
            await echoed(streams, b"warm")
            emulator.cut()
            late = asyncio.create_task(echoed(streams, b"patience"))
            await asyncio.sleep(0.15)
            assert not late.done()
            emulator.restore()
            assert await late > 0.15

    run_virtually(measure())


def test_a_new_connection_waits_for_the_link() -> None:
    async def measure() -> None:
        async with emulated(link(10, 10, 10)) as emulator:
            emulator.cut()
            async with connection(emulator) as streams:
                late = asyncio.create_task(echoed(streams, b"patience"))
                await asyncio.sleep(0.1)
                assert not late.done()
                emulator.restore()
                await late

    run_virtually(measure())


def test_a_scheduled_outage_holds_bytes_back_until_it_is_over() -> None:
    async def measure() -> None:
        profile = link(10, 10, 10, outages=((0.1, 0.2), (0.4, 0.1)))
        async with server() as target:
            began = time.monotonic()
            async with LinkEmulator(profile, target=target) as emulator, connection(emulator) as streams:
                await asyncio.sleep(0.15)
                await echoed(streams, b"first")
                assert time.monotonic() - began > 0.29
                await asyncio.sleep(began + 0.45 - time.monotonic())
                emulator.cut()  # and an outage that ends does not undo a cut
                late = asyncio.create_task(echoed(streams, b"second"))
                await asyncio.sleep(0.15)
                assert not late.done()
                emulator.restore()
                await late

    run_virtually(measure())


def test_reset_breaks_both_ends_and_the_next_connection_works() -> None:
    async def measure() -> None:
        async with emulated(link(10, 10, 10)) as emulator, connection(emulator) as streams:
            await echoed(streams, b"warm")
            emulator.reset()
            with pytest.raises(ConnectionResetError):
                await streams[0].readexactly(1)
            async with connection(emulator) as streams:
                await echoed(streams, b"again")

    run_virtually(measure())


def test_an_unreachable_worker_shows_as_a_reset() -> None:
    async def measure() -> None:
        async with server() as target:
            pass  # its port is free again
        async with LinkEmulator(link(10, 10, 10), target=target) as emulator, connection(emulator) as (reader, _):
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)

    run_virtually(measure())


@settings(deadline=None, derandomize=True)
@given(
    rtt=st.just(0.0) | st.floats(0.01, 1000),
    share=st.floats(0, 1),
    loss=st.floats(0, 0.5),
    size=st.integers(1, 65536),
    seed=st.integers(0, 2**32),
)
def test_flight_is_half_a_round_trip_within_the_jitter_plus_whole_ones(
    rtt: float, share: float, loss: float, size: int, seed: int
) -> None:
    profile = link(rtt, 10, 10, jitter_ms=rtt * share, loss=loss)
    seconds = flight_time(profile, np.random.default_rng(seed), size=size)
    assert seconds >= 0
    if rtt > 0:
        trips = seconds / (rtt / 1000) - 0.5  # whole for each loss, give or take half the jitter each way
        assert abs(trips - round(trips)) <= share / 2 + 1e-6


def test_losses_come_at_the_profile_s_rate_and_follow_the_seed() -> None:
    profile = link(100, 10, 10, loss=0.02)

    def flights(seed: int, *, size: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        rng = np.random.default_rng(seed)
        return np.array([flight_time(profile, rng, size=size) for _ in range(20_000)])

    single, three = flights(5, size=MSS), flights(6, size=3 * MSS)
    assert np.mean(single > 0.06) == pytest.approx(0.02, abs=0.004)
    assert np.mean(three > 0.06) == pytest.approx(1 - 0.98**3, abs=0.006)
    assert np.array_equal(single, flights(5, size=MSS))
