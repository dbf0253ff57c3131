"""Measures the link to a worker with the protocol's own messages, so that the results apply to sessions.

A small call takes one round trip, and a call with many bytes one round trip plus the bytes by the rate. So the rate
follows from the difference; the round trip is measured again beside each large call.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

from cutline.devices.link import LinkProfile
from cutline.devices.measurement.rates import significant
from cutline.protos.channel.credentials import NO_KEYS, AgentKeys
from cutline.protos.client import WorkerClient
from cutline.protos.tensors import CHUNK

MAX_TRIPS, MIN_TRIPS = 40, 5  # small calls for the round trip
FIRST_SIZE = 16 << 10  # bytes of the first large call

Call = Callable[[int], Awaitable[None]]  # sends or receives so many bytes


async def measure_link(worker: str, keys: AgentKeys = NO_KEYS, *, name: str, seconds: float) -> LinkProfile:
    """Measure the link to the worker at HOST:PORT for about `seconds`. Raises InputError, WorkerError."""
    async with WorkerClient(worker, keys) as client:
        await client.describe()  # connects, and fails early if there is no worker

        async def up(size: int) -> None:
            await client.probe(up=size, down=0)

        async def down(size: int) -> None:
            await client.probe(up=0, down=size)

        rtt, jitter = round_trip(await _trips(up, seconds / 4))
        rates = [await _rate(call, rtt, seconds * 3 / 8) for call in (up, down)]
    return LinkProfile(
        name=name,
        rtt_ms=significant(rtt * 1000),
        uplink_mbps=significant(rates[0] * 8e-6),
        downlink_mbps=significant(rates[1] * 8e-6),
        jitter_ms=significant(jitter * 1000),
        source="measured",
        reference=f"cutline profile link, {datetime.now(UTC).date()}; losses show as jitter and lower rates",
    )


def round_trip(seconds: Sequence[float]) -> tuple[float, float]:
    """The median round trip, and the 90th percentile of the deviations from it, at most the median."""
    median = statistics.median(seconds)
    deviations = sorted(abs(trip - median) for trip in seconds)
    return median, min(median, deviations[int(0.9 * (len(deviations) - 1))])


def rate(small: Sequence[float], large: Sequence[float], size: int) -> float:
    """Bytes a second, from the seconds of small calls and of large calls with `size` more bytes.

    The difference counts as at least a tenth of a small call's time, as noise may hide it.
    """
    base = statistics.median(small)
    return size / max(statistics.median(large) - base, base / 10)


async def _trips(call: Call, budget: float) -> list[float]:
    """Seconds of small calls in sequence."""
    await _timed(call, 0)
    end, trips = time.monotonic() + budget, list[float]()
    while len(trips) < MIN_TRIPS or (len(trips) < MAX_TRIPS and time.monotonic() < end):
        trips.append(await _timed(call, 0))
    return trips


async def _rate(call: Call, rtt: float, budget: float) -> float:
    """Bytes a second of `call`, measured by calls large enough to take a good part of the budget."""
    end, size = time.monotonic() + budget, FIRST_SIZE
    while (taken := await _timed(call, size)) < rtt + budget / 6 and size < CHUNK:
        size *= 2
    small, large = [await _timed(call, 0)], list[float]()
    while not large or time.monotonic() + taken < end:
        large.append(await _timed(call, size))
        small.append(await _timed(call, 0))
    return rate(small, large, size)


async def _timed(call: Call, size: int) -> float:
    began = time.monotonic()
    await call(size)
    return time.monotonic() - began
