"""Emulates a link profile: a TCP proxy between a port on this machine and the worker behind the "link".

All connections through the proxy share one wire up and one wire down. A chunk of bytes

1. waits for its turn on the wire, which carries one chunk at a time at the profile's rate (`_Wire`),
2. is in flight for half the round trip, plus or minus jitter, and a round trip more for every loss (`flight_time`),
3. is written out at its arrival time, but never before the bytes that were sent ahead of it.

Many chunks are in flight at once, so the round trip does not limit the rate. Their number is bounded, so a receiver
that does not read makes the sender wait. A connection costs one round trip, as TCP's handshake does: the proxy accepts
at once, and holds the first bytes back for so long.

Not emulated: TCP's slow start and congestion control (a transfer has the whole rate from its first byte), packet
headers, and reordering, which TCP hides. Loss delays bytes but does not lower the rate.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from types import TracebackType
from typing import Self

import numpy as np

from cutline.devices.link import LinkProfile

MSS = 1460  # payload bytes of one TCP segment on Ethernet

_CHUNK_S = 0.002  # wire time of a chunk: short, so that connections take turns often
_CHUNK_MAX = 65536  # bytes: larger ones gain no speed
_AHEAD_S = 0.02  # how far ahead of the clock a wire is booked, so that a late wake-up leaves no gap on it
_EARLY_S = 0.0005  # event loops on epoll wake up to 1 ms late: aiming half of that early is right on average

_InFlight = asyncio.Queue[tuple[float, bytes]]  # (time of arrival, bytes), in order; empty bytes mark the sender's end


def flight_time(profile: LinkProfile, rng: np.random.Generator, *, size: int) -> float:
    """Seconds from the departure of a chunk's last bit to its arrival, for a chunk of `size` bytes; never negative.

    It is half the round trip, plus or minus up to half the jitter (uniform), and one round trip more for each loss of
    one of the chunk's segments. That is the cost of selective acknowledgement and fast retransmission in the middle of
    a stream (RFC 2018, RFC 8985): half for the receiver to report the gap, half to send the segment again. A loss at
    the very end of a burst costs TCP more (a probe after two round trips); that is left out, as is the 200 ms minimum
    of the retransmission timer, which rarely matters with those two.
    """
    seconds = (profile.rtt_ms + profile.jitter_ms * (rng.random() - 0.5)) / 2000
    lost = 1 - (1 - profile.loss) ** math.ceil(size / MSS)
    while rng.random() < lost:
        seconds += profile.rtt_ms / 1000
        lost = profile.loss  # only the lost segment is repeated
    return seconds


class LinkEmulator:
    """The link as an async context manager: connect to `address` instead of to `target`, a (host, port).

    `seed` fixes each connection's jitter and losses. Scheduled outages count from entering the context. While `target`
    cannot be reached, the link resets each connection after its handshake. Raises OSError if `port` is taken.

        async with LinkEmulator(load_link("4g"), target=("127.0.0.1", 50051)) as link:
            channel = grpc.aio.insecure_channel(link.address)
    """

    def __init__(
        self, profile: LinkProfile, *, target: tuple[str, int], seed: int = 0, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.profile = profile
        self.target = target
        self._seed = seed
        self._listen = (host, port)
        self._is_up = asyncio.Event()
        self._is_up.set()
        self._down_for: set[str] = set()
        self._up = _Wire(profile.uplink_mbps, self._is_up)
        self._down = _Wire(profile.downlink_mbps, self._is_up)
        self._connections: set[asyncio.Task[None]] = set()
        self._opened = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, *self._listen)
        self._outages = asyncio.create_task(self._schedule_outages())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self._outages.cancel()
        self.reset()
        await asyncio.gather(self._outages, *self._connections, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        """The port that the link listens on."""
        number: int = self._server.sockets[0].getsockname()[1]
        return number

    @property
    def address(self) -> str:
        """The link's address, as `host:port`."""
        return f"{self._listen[0]}:{self.port}"

    @property
    def bytes_up(self) -> int:
        """Bytes carried towards the target so far, over all connections."""
        return self._up.carried

    @property
    def bytes_down(self) -> int:
        """Bytes carried back from the target so far, over all connections."""
        return self._down.carried

    def cut(self) -> None:
        """Take the link down: from now on nothing arrives; bytes wait, and connections stay open."""
        self._take_down("cut")

    def restore(self) -> None:
        """Bring the link up again after `cut`; waiting bytes go on. A scheduled outage still holds."""
        self._bring_up("cut")

    def reset(self) -> None:
        """Break every open connection at both ends (TCP reset); new ones may follow."""
        for connection in self._connections:
            connection.cancel()

    def _take_down(self, reason: str) -> None:
        self._down_for.add(reason)
        self._is_up.clear()

    def _bring_up(self, reason: str) -> None:
        self._down_for.discard(reason)
        if not self._down_for:
            self._is_up.set()

    async def _schedule_outages(self) -> None:
        began = asyncio.get_running_loop().time()
        for start, duration in self.profile.outages:
            await _until(began + start)
            self._take_down("outage")
            await _until(began + start + duration)
            self._bring_up("outage")

    def _accept(self, from_device: asyncio.StreamReader, to_device: asyncio.StreamWriter) -> None:
        ends = [to_device]

        def finish(connection: asyncio.Task[None]) -> None:
            self._connections.discard(connection)
            for end in ends:
                _reset_unless_closed(end)

        connection = asyncio.create_task(self._connect(from_device, ends, self._opened))
        connection.add_done_callback(finish)
        self._connections.add(connection)
        self._opened += 1

    async def _connect(self, from_device: asyncio.StreamReader, ends: list[asyncio.StreamWriter], number: int) -> None:
        """Run one connection: handshake, both directions until both have ended, close."""
        await self._is_up.wait()
        await asyncio.sleep(self.profile.rtt_ms / 1000)
        try:
            from_worker, to_worker = await asyncio.open_connection(*self.target)
            ends.append(to_worker)
            async with asyncio.TaskGroup() as directions:
                for direction, wire in enumerate((self._up, self._down)):
                    source, sink = (from_worker, ends[0]) if direction else (from_device, to_worker)
                    in_flight = _InFlight(wire.window(self.profile))
                    rng = np.random.default_rng([self._seed, number, direction])
                    directions.create_task(self._send(source, wire, in_flight, rng))
                    directions.create_task(self._deliver(in_flight, sink))
            for end in ends:
                end.close()
        except* OSError:
            pass  # one side broke or could not be reached; `finish` resets the other

    async def _send(
        self, source: asyncio.StreamReader, wire: _Wire, in_flight: _InFlight, rng: np.random.Generator
    ) -> None:
        while chunk := await source.read(wire.chunk):
            departure = await wire.carry(len(chunk))
            await in_flight.put((departure + flight_time(self.profile, rng, size=len(chunk)), chunk))
        await in_flight.put((asyncio.get_running_loop().time() + self.profile.rtt_ms / 2000, b""))

    async def _deliver(self, in_flight: _InFlight, sink: asyncio.StreamWriter) -> None:
        while True:
            arrival, chunk = await in_flight.get()
            await _until(arrival)
            await self._is_up.wait()
            if not chunk:
                sink.write_eof()
                return
            sink.write(chunk)  # asyncio sets TCP_NODELAY on every TCP socket, so this leaves at once
            await sink.drain()


class _Wire:
    """One direction of the link, which its connections share chunk by chunk."""

    def __init__(self, mbps: float, is_up: asyncio.Event) -> None:
        self.rate = mbps * 125_000  # bytes a second
        self.chunk = min(max(int(self.rate * _CHUNK_S), MSS), _CHUNK_MAX)
        self.carried = 0
        self._is_up = is_up
        self._turn = asyncio.Lock()  # first come, first served
        self._free = 0.0

    def window(self, profile: LinkProfile) -> int:
        """Chunks that one connection may have in flight: enough to keep the wire busy during one loss."""
        seconds = (2 * profile.rtt_ms + profile.jitter_ms) / 1000 + _AHEAD_S
        return 16 + math.ceil(seconds * self.rate / self.chunk)

    async def carry(self, size: int) -> float:
        """Book the wire for `size` bytes; returns the time at which the last bit has left."""
        async with self._turn:
            await _until(self._free - _AHEAD_S)
            await self._is_up.wait()
            self._free = max(self._free, asyncio.get_running_loop().time()) + size / self.rate
            self.carried += size
            return self._free


async def _until(moment: float) -> None:
    wait = moment - _EARLY_S - asyncio.get_running_loop().time()
    if wait > 0:
        await asyncio.sleep(wait)


def _reset_unless_closed(writer: asyncio.StreamWriter) -> None:
    if not writer.transport.is_closing():
        # A linger time of 0 turns the close into a reset, so that the other side sees a broken connection.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
