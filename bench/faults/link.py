"""A link that fails on demand: a TCP proxy which, at a moment or at a byte, breaks, goes silent, lags, crawls or lies.

Where the link is down its bytes wait at the sender's, as TCP's do: when it is up again they go on, unless whatever is
in the middle has meanwhile forgotten the connection, and then nobody ever hears of that one again.
"""

from __future__ import annotations

import asyncio
import enum
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

_READ = 65536
_PACED = 128  # bytes at once, where they are carried at a pace
_LINGER = struct.pack("ii", 1, 0)  # closing is a reset


class Way(enum.IntEnum):
    """A direction of a link."""

    UP = 0  # from the device
    DOWN = 1


@dataclass(slots=True, eq=False)
class _Connection:
    """Both ends, the device's first; once it is `forgotten`, what comes is dropped in silence."""

    ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    forgotten: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def reset(self) -> None:
        for end in self.ends:
            _reset(end)


class FaultyLink:
    """A link as an async context manager: connect to `address` instead of to `target`, HOST:PORT, which may change.

    It carries `pace` bytes a second down where that is given.
    """

    def __init__(self, target: str, *, pace: float | None = None) -> None:
        self.target = target
        self._pace = pace
        self.carried = [0, 0]  # bytes, up and down
        self._held = [asyncio.Event(), asyncio.Event()]
        self._until = 0.0  # on the loop's clock: a burst of latency lasts so long
        self._connections: set[_Connection] = set()
        self._fuses: dict[Way, tuple[int, Callable[[], object]]] = {}
        self._truncates = False
        self._flips = 0  # buffers
        self._rate: float | None = None  # bytes a second, each way
        self._port = 0
        self._server: asyncio.Server | None = None
        self.heal()

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.heal()
        self.refuse()
        while self._connections:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    @property
    def address(self) -> str:
        """What to connect to."""
        return f"127.0.0.1:{self._port}"

    @property
    def connections(self) -> int:
        """How many are open, those that are forgotten too."""
        return len(self._connections)

    def fuse(self, way: Way, size: int, strike: Callable[[], object]) -> None:
        """Call `strike` once that many more bytes have gone that way: in the middle of a message, of a frame."""
        self._fuses[way] = self.carried[way] + size, strike

    def reset(self) -> None:
        """Break every connection at both ends; new ones may follow."""
        for connection in self._connections:
            if not connection.forgotten:
                connection.reset()

    def hold(self, *ways: Way) -> None:
        """Carry nothing any more, both ways or those named, and say nothing: a connection may still be made."""
        for way in ways or Way:
            self._held[way].clear()

    def truncate(self) -> None:
        """Carry half of what comes next, either way, and break."""
        self._truncates = True

    def flip(self, buffers: int) -> None:
        """Change a bit in each of the next so many buffers, both ways together."""
        self._flips = buffers

    def slow(self, kbits: float) -> None:
        """Carry so many kbit/s each way."""
        self._rate = kbits * 125

    def lag(self, seconds: float) -> None:
        """Carry nothing for so long, then everything: a burst of latency."""
        self._until = asyncio.get_running_loop().time() + seconds

    def refuse(self) -> None:
        """Break every connection, and take no new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in self._connections:
            connection.reset()

    def forget(self) -> None:
        """Nothing that is connected now is ever heard of again; new connections are as good as any."""
        for connection in self._connections:
            connection.forgotten = True

    def heal(self) -> None:
        """Undo all but what was broken or forgotten."""
        self._rate, self._until, self._truncates, self._flips = None, 0.0, False, 0
        self._fuses.clear()
        for held in self._held:
            held.set()

    async def restore(self) -> None:
        """Heal, and listen again after `refuse`."""
        self.heal()
        if self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, from_device: asyncio.StreamReader, to_device: asyncio.StreamWriter) -> None:
        try:
            host, port = self.target.rsplit(":", 1)
            await self._held[Way.UP].wait()
            from_worker, to_worker = await asyncio.open_connection(host, int(port))
        except OSError:
            _reset(to_device)
            return
        connection = _Connection((to_device, to_worker))
        self._connections.add(connection)
        for way, source in zip(Way, (from_device, from_worker), strict=True):
            connection.tasks.append(asyncio.create_task(self._pass(way, connection, source)))
        await asyncio.wait(connection.tasks)
        connection.reset()
        self._connections.discard(connection)

    async def _pass(self, way: Way, connection: _Connection, source: asyncio.StreamReader) -> None:
        """Carry one direction to its end, which is the other's too: HTTP/2 never ends one alone."""
        sink = connection.ends[1 - way]
        try:
            while data := await source.read(_READ if self._pace_of(way) is None else _PACED):
                if connection.forgotten:
                    continue
                await self._wait(way, len(data))
                for piece in self._burn(way, data):
                    if not await self._carry(way, connection, sink, piece):
                        return
        except OSError:
            pass
        finally:
            if connection.forgotten:  # the other end is to find out by itself
                _reset(connection.ends[way])
            else:
                await self._held[way].wait()
                connection.reset()

    async def _wait(self, way: Way, size: int) -> None:
        loop = asyncio.get_running_loop()
        if (rate := self._pace_of(way)) is not None:
            await asyncio.sleep(size / rate)
        if (left := self._until - loop.time()) > 0:
            await asyncio.sleep(left)
        await self._held[way].wait()

    def _pace_of(self, way: Way) -> float | None:
        """Bytes a second that go that way at most."""
        rates = [rate for rate in (self._rate, self._pace if way is Way.DOWN else None) if rate is not None]
        return min(rates, default=None)

    def _burn(self, way: Way, data: bytes) -> list[bytes]:
        """`data` in two pieces where a fuse burns down within it."""
        at = self._fuses[way][0] - self.carried[way] if way in self._fuses else len(data)
        return [data] if at >= len(data) else [data[:at], data[at:]]

    async def _carry(self, way: Way, connection: _Connection, sink: asyncio.StreamWriter, piece: bytes) -> bool:
        """Carry a piece, with what is wrong at this moment. False once the connection is broken or forgotten."""
        await self._held[way].wait()
        if connection.forgotten or sink.is_closing():
            return connection.forgotten
        if self._truncates:
            self._truncates = False
            sink.write(piece[: len(piece) // 2])
            sink.close()  # in order, or the half would be lost with the rest
            return False
        if self._flips and piece:
            self._flips -= 1
            at = len(piece) * 2 // 3
            piece = piece[:at] + bytes([piece[at] ^ 0x20]) + piece[at + 1 :]
        sink.write(piece)
        self.carried[way] += len(piece)
        if way in self._fuses and self.carried[way] >= self._fuses[way][0]:
            self._fuses.pop(way)[1]()
        await sink.drain()
        return not sink.is_closing()


def _reset(end: asyncio.StreamWriter) -> None:
    if not end.transport.is_closing():
        end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
        end.transport.abort()
