"""Connections that reload their keys: a gRPC channel uses the keys it was made with also when it reconnects."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import grpc

from cutline.protos.channel.credentials import AgentKeys, open_channel
from cutline.protos.channel.reloading import Renewed


class ChannelStub:
    """A channel, and the `stub` of a service on it. `connections` counts the connections that it has made."""

    def __init__(self, channel: Any, stub: Callable[[Any], Any]) -> None:
        self.channel = channel
        self.stub = stub(channel)
        self.idle = asyncio.Event()  # set while no call is in flight
        self.idle.set()
        self.connections = 0
        self._calls = set[Any]()

    @property
    def ready(self) -> bool:
        """Whether the channel is connected."""
        return self.channel.get_state() is grpc.ChannelConnectivity.READY

    def hold(self, call: Any) -> Any:
        """Track `call` until it ends; returns it."""
        if not self.ready:  # gRPC reconnects only for a call
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
    """A connection to the service at `address` by `keys`. It opens a new channel for new calls once key files change.

    Raises InputError for keys that cannot be read. For one event loop.
    """

    def __init__(self, address: str, keys: AgentKeys, stub: Callable[[Any], Any]) -> None:
        self._lines = Renewed(
            f"the certificate for {address}", keys.files, lambda: ChannelStub(open_channel(address, keys), stub)
        )
        self._line = self._lines.now()
        self._closing: dict[asyncio.Task[None], ChannelStub] = {}
        self._closed = False

    @property
    def line(self) -> ChannelStub:
        """The channel for a new call."""
        if not self._closed:
            self._switch(self._lines.changed())
        return self._line

    def leave(self, line: ChannelStub) -> None:
        """Use a new channel instead of the dead `line` for new calls, unless the keys cannot be read."""
        if line is self.line and not self._closed:
            self._switch(self._lines.reload())

    def _switch(self, line: ChannelStub | None) -> None:
        if line is not None:
            closing = asyncio.create_task(_close_when_idle(self._line))
            self._closing[closing] = self._line
            closing.add_done_callback(self._closing.pop)
            self._line = line

    async def close(self, *, grace: float = 0.0) -> None:
        """Close all channels; calls that are still in flight after `grace` seconds fail.

        A second call may cut the grace of a first one short, which gRPC's own grace does not allow.
        """
        self._closed = True
        closing = dict(self._closing)
        if grace:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    for line in (self._line, *closing.values()):
                        await line.idle.wait()
        for task in closing:
            task.cancel()
        for line in (self._line, *closing.values()):
            await line.channel.close()


def given_up() -> bool:
    """Whether the current task was cancelled, rather than the gRPC call that it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _close_when_idle(line: ChannelStub) -> None:
    while not line.idle.is_set():  # again, as the end of a call may start another, such as one that asks for the reason
        await line.idle.wait()
    await line.channel.close()
