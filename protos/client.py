"""The agent's side of the protocol: a channel to one worker, and sessions on it that count what they cost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self

import grpc

from cutline.errors import CutlineError, InputError, WorkerBusy, WorkerFailed, WorkerUnavailable
from cutline.protos.address import parse_address
from cutline.protos.messages import (
    AgentMessage,
    Boundary,
    Confirmed,
    Description,
    Draft,
    Finished,
    ImageChunk,
    Open,
    Opened,
    agent_to_wire,
    description_from_wire,
    worker_from_wire,
)
from cutline.protos.status import exception_of
from cutline.protos.v1 import worker_pb2 as pb
from cutline.protos.v1 import worker_pb2_grpc

CONNECT_SECONDS = 5.0
PROBE_SECONDS = 60.0

# What gRPC says where a connection has more streams than the worker allows: HTTP/2's REFUSED_STREAM, of RFC 9113.
_REFUSED_STREAM = "RST_STREAM with error code 7"

_OPTIONS = [
    # A link that died without a word is noticed within half a minute, also while the worker is silent.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # gRPC waits a minute for the answer to a ping unless this says otherwise, too.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # After a failed try the next one comes soon: a device cannot wait out the default of two minutes.
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.max_receive_message_length", (1 << 20) + (1 << 16)),
    # An agent and its worker may share a machine with a proxy meant for browsers.
    ("grpc.enable_http_proxy", 0),
]


class WorkerClient:
    """A connection to the worker at `address` (HOST:PORT). Use it from one event loop.

    Raises InputError for an address of another form, which gRPC would read as a name, a path or a scheme.
    """

    def __init__(self, address: str) -> None:
        if parse_address(address)[1] == 0:
            raise InputError(f"the worker's address {address!r} has port 0; give HOST:PORT of one that listens")
        self.address = address
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._stub = worker_pb2_grpc.WorkerStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        """Whether the connection stands, so that a session need not wait for one."""
        return self._channel.get_state() is grpc.ChannelConnectivity.READY

    async def close(self) -> None:
        """Close the connection; sessions still open on it fail."""
        await self._channel.close()

    async def describe(self) -> Description:
        """What the worker serves. Raises WorkerUnavailable."""
        try:
            return description_from_wire(await self._stub.Describe(pb.DescribeRequest(), timeout=CONNECT_SECONDS))
        except grpc.aio.AioRpcError as error:
            raise _translated(error.code(), error.details(), self.address) from None

    async def probe(self, *, up: int, down: int) -> None:
        """Send `up` bytes and receive `down`, each at most CHUNK. Raises WorkerError."""
        request = pb.ProbeRequest(data=os.urandom(up), answer=down)
        try:
            answer = await self._stub.Probe(request, timeout=PROBE_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise _translated(error.code(), error.details(), self.address) from None
        if len(answer.data) != down:
            raise WorkerFailed(f"the worker at {self.address} does not keep to the protocol: it answered a probe short")

    def session(
        self, opening: Open, upload: Iterable[ImageChunk | Boundary], *, timeout: float | None
    ) -> WorkerSession:
        """A session opened with `opening` and what crosses its cut; it fails when not finished in `timeout` seconds."""
        return WorkerSession(self.address, self._stub.Session(timeout=timeout), opening, upload)


class WorkerSession:
    """One session. `bytes_up` and `bytes_down` count its messages. Whatever goes wrong with it, `events` says."""

    def __init__(self, address: str, call: Any, opening: Open, upload: Iterable[ImageChunk | Boundary]) -> None:
        self.bytes_up = 0
        self.bytes_down = 0
        self.finished: Finished | None = None
        self._address = address
        self._call = call
        self._opening = opening
        self._upload = upload

    async def __aenter__(self) -> Self:
        """Send the opening and what crosses the cut."""
        for message in (self._opening, *self._upload):
            await self._send(message)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.cancel()

    async def upload(self, piece: ImageChunk | Boundary) -> None:
        """Send a piece of what crosses the cut, where not all of it was there when the session was opened."""
        await self._send(piece)

    async def offer(self, draft: Draft) -> None:
        """Send a draft; of no effect once the session has ended. Raises InputError on rows its format cannot hold."""
        await self._send(draft)

    async def events(self) -> AsyncIterator[Opened | Confirmed | Finished]:
        """What the worker sends, Finished last. Raises WorkerError, or InputError if the worker refuses the session."""
        while self.finished is None:
            try:
                message = await self._call.read()
            except grpc.aio.AioRpcError as error:
                raise _translated(error.code(), error.details(), self._address) from None
            if message is grpc.aio.EOF:
                raise _translated(await self._call.code(), await self._call.details(), self._address)
            self.bytes_down += message.ByteSize()
            try:
                event = worker_from_wire(message)
            except InputError as error:
                raise WorkerFailed(f"the worker at {self._address} does not keep to the protocol: {error}") from None
            if isinstance(event, CutlineError):
                raise event
            if isinstance(event, Finished):
                self.finished = event
            yield event

    async def _send(self, message: AgentMessage) -> None:
        wire = agent_to_wire(message)
        try:
            await self._call.write(wire)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The session has ended, well or not. Reading tells which; the error of a late write does not.
            return
        self.bytes_up += wire.ByteSize()


def _translated(code: grpc.StatusCode, details: str | None, address: str) -> CutlineError:
    """The exception for a call that ended early. What gRPC says of a broken link is for machines; say it for people."""
    match code:
        case grpc.StatusCode.OK:
            return WorkerUnavailable(f"the worker at {address} ended the session before the answer")
        case grpc.StatusCode.UNAVAILABLE if _REFUSED_STREAM in (details or ""):
            return WorkerBusy(f"the worker at {address} takes no more sessions of this agent; try again later")
        case grpc.StatusCode.UNAVAILABLE:
            return WorkerUnavailable(f"no worker answers at {address}; is it running, and the link up?")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return WorkerUnavailable(f"the worker at {address} did not answer in time")
        case grpc.StatusCode.INTERNAL:
            # A worker says why it failed before it ends; this is gRPC's own word for a link that broke under a write.
            return WorkerUnavailable(f"the link to the worker at {address} broke")
    return exception_of(code, details or "")
