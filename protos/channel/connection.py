"""A connection that outlives the files it was made with: gRPC keeps a channel's keys, also where it connects anew."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import grpc

from cutline.protos.channel.credentials import AgentKeys, open_channel
from cutline.protos.channel.reloading import Renewed


class ChannelStub:
    """A channel, and the `stub` of a service on it. `connections` rises with each connection that it makes."""

    def __init__(self, channel: Any, stub: Callable[[Any], Any]) -> None:
        self.channel = channel
        self.stub = stub(channel)
        self.idle = asyncio.Event()  # no call is under way
        self.idle.set()
        self.connections = 0
        self._calls = set[Any]()

    @property
    def ready(self) -> bool:
        """Whether the connection stands."""
        return self.channel.get_state() is grpc.ChannelConnectivity.READY

    def hold(self, call: Any) -> Any:
        """The `call`, until whose end this line is in use."""
        if not self.ready:  # gRPC connects anew for a call alone
            self.connections += 1
        self._calls.add(call)
        self.idle.clear()
        call.add_done_callback(self._ended)
        return call

    def _ended(self, call: Any) -> None:
        self._calls.discard(call)
        if not self._calls:
            self.idle.set()


class Connection:
    """The way to a service at `address` by `keys`: a line, and for new calls another once the keys' files have changed.

    Raises InputError for keys that do not read. Use it from one event loop.
    """

    def __init__(self, address: str, keys: AgentKeys, stub: Callable[[Any], Any]) -> None:
        self._lines = Renewed(
            f"the certificate for {address}", keys.files, lambda: ChannelStub(open_channel(address, keys), stub)
        )
        self._line = self._lines.now()
        self._partings: dict[asyncio.Task[None], ChannelStub] = {}
        self._closed = False

    @property
    def line(self) -> ChannelStub:
        """The line for a new call."""
        if not self._closed:
            self._take(self._lines.changed())
        return self._line

    def leave(self, line: ChannelStub) -> None:
        """Have new calls go over another line than this, over which nothing is heard; not if the keys do not read."""
        if line is self.line and not self._closed:
            self._take(self._lines.anew())

    def _take(self, line: ChannelStub | None) -> None:
        if line is not None:
            parting = asyncio.create_task(_part(self._line))
            self._partings[parting] = self._line
            parting.add_done_callback(self._partings.pop)
            self._line = line

    async def close(self, *, grace: float = 0.0) -> None:
        """Close all lines; what is under way on them fails, after `grace` seconds.

        It may be closed at once while another call of this waits: gRPC's own wait cannot be cut short.
        """
        self._closed = True
        partings = dict(self._partings)
        if grace:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    for line in (self._line, *partings.values()):
                        await line.idle.wait()
        for parting in partings:
            parting.cancel()
        for line in (self._line, *partings.values()):
            await line.channel.close()


def given_up() -> bool:
    """Whether it is this task that is cancelled, and not the call that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _part(line: ChannelStub) -> None:
    """Close a line once it is in use no more."""
    while not line.idle.is_set():  # what follows a call, as asking why it was refused, may begin by then
        await line.idle.wait()
    await line.channel.close()
