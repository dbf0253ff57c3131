"""The agent's side of the protocol: a client of one worker, and its sessions."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable
from types import TracebackType
from typing import Any, Self

import grpc

from cutline.errors import AccessDenied, CutlineError, InputError, WorkerBusy, WorkerFailed, WorkerUnavailable
from cutline.protos.channel.address import parse_address
from cutline.protos.channel.connection import ChannelStub, Connection, given_up
from cutline.protos.channel.credentials import NO_KEYS, AgentKeys, link_fault
from cutline.protos.codec import agent_to_wire, description_from_wire, worker_from_wire
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
)
from cutline.protos.status import exception_of
from cutline.protos.v1 import worker_pb2 as pb
from cutline.protos.v1 import worker_pb2_grpc

CONNECT_SECONDS = 5.0
PROBE_SECONDS = 60.0
REFUSAL_SECONDS = 1.0
TICK = 1e-3  # seconds: the resolution of measured times
BEAT_BYTES = 60  # sent for a heartbeat: gRPC's frames around an empty message, as measured

# gRPC's error if a connection has more streams than the worker allows: HTTP/2's REFUSED_STREAM, RFC 9113.
_REFUSED_STREAM = "RST_STREAM with error code 7"
# gRPC's error if the worker has its maximum of calls.
_REFUSED_CALL = "Concurrent RPC limit exceeded"


class WorkerClient:
    """A client of the worker at `address` (HOST:PORT), with `keys`. For one event loop.

    Raises InputError for an address of another form, keys that cannot be read, or another machine without `ca`.
    """

    def __init__(self, address: str, keys: AgentKeys = NO_KEYS) -> None:
        if parse_address(address)[1] == 0:
            raise InputError(f"the worker's address {address!r} has port 0; give HOST:PORT of one that listens")
        self.address = address
        self._keys = keys
        self._connection = Connection(address, keys, worker_pb2_grpc.WorkerStub)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        """Whether it is connected, so that a session starts at once."""
        return self._connection.line.ready

    @property
    def connection(self) -> Hashable:
        """Identifies the current connection; the value changes with each reconnect."""
        line = self._connection.line
        return line, line.connections

    @property
    def line(self) -> ChannelStub:
        """The channel for a new session."""
        return self._connection.line

    def leave(self, line: ChannelStub) -> None:
        """Use another channel than `line` for new sessions; open ones stay on it."""
        self._connection.leave(line)

    async def close(self, *, grace: float = 0.0) -> None:
        """Close the connection; sessions that are still open after `grace` seconds fail.

        A second call may cut the grace of a first one short.
        """
        await self._connection.close(grace=grace)

    async def describe(self) -> Description:
        """The worker's description of itself. Raises WorkerError."""
        try:
            line, who = self._connection.line, self._keys.metadata()
            described = await line.hold(line.stub.Describe(pb.DescribeRequest(), timeout=CONNECT_SECONDS, metadata=who))
        except grpc.aio.AioRpcError as error:
            raise _translated(error.code(), error.details(), self.address, self._keys) from None
        except grpc.aio.UsageError:
            raise WorkerUnavailable(f"the connection to the worker at {self.address} was closed") from None
        except asyncio.CancelledError:  # the connection was closed during the call
            if given_up():
                raise
            raise WorkerUnavailable(f"the connection to the worker at {self.address} was closed") from None
        try:
            return description_from_wire(described)
        except InputError as error:
            raise WorkerFailed(f"the worker at {self.address} does not keep to the protocol: {error}") from None

    async def probe(self, *, up: int, down: int) -> None:
        """Send `up` bytes and receive `down`, each at most CHUNK. Raises WorkerError."""
        request = pb.ProbeRequest(data=os.urandom(up), answer=down)
        try:
            line, who = self._connection.line, self._keys.metadata()
            answer = await line.hold(line.stub.Probe(request, timeout=PROBE_SECONDS, metadata=who))
        except grpc.aio.AioRpcError as error:
            raise _translated(error.code(), error.details(), self.address, self._keys) from None
        if len(answer.data) != down:
            raise WorkerFailed(f"the worker at {self.address} does not keep to the protocol: it answered a probe short")

    def session(
        self,
        opening: Open,
        upload: Iterable[ImageChunk | Boundary],
        *,
        timeout: float | None,
        metadata: Iterable[tuple[str, str]] = (),
    ) -> WorkerSession:
        """A session with this `opening` and `upload`. It fails unless it finishes within `timeout` seconds.

        `metadata` is sent in addition to the credentials.
        """
        return self._begin(itertools.chain((opening,), upload), timeout, metadata)

    def place(self, *, timeout: float | None, metadata: Iterable[tuple[str, str]] = ()) -> WorkerSession:
        """Reserve a place on the worker for a session that `WorkerSession.open` opens later."""
        return self._begin((), timeout, metadata)

    def _begin(
        self, first: Iterable[AgentMessage], timeout: float | None, metadata: Iterable[tuple[str, str]]
    ) -> WorkerSession:
        line, who = self._connection.line, self._keys.metadata()  # once, so that changed files do not end a session
        try:
            call = line.hold(line.stub.Session(timeout=timeout, metadata=(*who, *metadata)))
        except grpc.aio.UsageError:
            raise WorkerUnavailable(f"the connection to the worker at {self.address} was closed") from None
        beat, refusal = functools.partial(self._beat, line, who), functools.partial(self._refusal, line, who)
        return WorkerSession(self.address, call, first, keys=self._keys, beat=beat, refusal=refusal)

    async def _beat(self, line: ChannelStub, who: tuple[tuple[str, str], ...]) -> bool:
        """Send an empty probe; returns False if the link is down."""
        try:
            await line.hold(line.stub.Probe(pb.ProbeRequest(), metadata=who))
        except grpc.aio.AioRpcError as error:
            return error.code() is not grpc.StatusCode.UNAVAILABLE  # a refusal is an answer, too
        except grpc.aio.UsageError:  # the connection was closed
            return False
        return True

    async def _refusal(self, line: ChannelStub, who: tuple[tuple[str, str], ...]) -> CutlineError | None:
        """The worker's refusal of an empty probe; None if it answers, or is slow."""
        try:
            await line.hold(line.stub.Probe(pb.ProbeRequest(), timeout=REFUSAL_SECONDS, metadata=who))
        except grpc.aio.AioRpcError as error:
            found = _translated(error.code(), error.details(), self.address, self._keys)
            return found if isinstance(found, AccessDenied | WorkerBusy) else None
        except grpc.aio.UsageError:  # the connection was closed
            return None
        except asyncio.CancelledError:  # the connection was closed during the call
            if given_up():
                raise
        return None


class WorkerSession:
    """One session. `bytes_up` and `bytes_down` count its messages. Its errors are raised by `events`.

    How many `passes` of the model it took part in is known once it has ended.
    `heard` is the monotonic time of the worker's last message, or of the session's start before any.
    """

    def __init__(
        self,
        address: str,
        call: Any,
        first: Iterable[AgentMessage] = (),
        *,
        keys: AgentKeys = NO_KEYS,
        beat: Callable[[], Awaitable[bool]] | None = None,
        refusal: Callable[[], Awaitable[CutlineError | None]] | None = None,
    ) -> None:
        self.address = address
        self.bytes_up = 0
        self.bytes_down = 0
        self.finished: Finished | None = None
        self.passes = 0
        self.heard = time.monotonic()
        self.answered = False  # whether the worker has sent anything
        self.given = 0  # bytes of messages handed to gRPC, sent or not
        self.carried = 0.0  # a lower bound of the uplink's rate, bytes a second
        self._proven = 0  # bytes of `given` that have arrived for certain
        self._in_flight = deque[tuple[float, int]]()  # time and last byte of each message that may not have arrived
        self._beat = beat
        self._refusal = refusal
        self._keys = keys
        self._call = call
        self._first = first

    async def __aenter__(self) -> Self:
        """Send the first messages."""
        await self._send_all(self._first)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """End the session at once."""
        self._call.cancel()

    async def open(self, opening: Open, upload: Iterable[ImageChunk | Boundary]) -> None:
        """Open the session of a reserved place, and send its upload."""
        await self._send_all(itertools.chain((opening,), upload))

    async def upload(self, piece: ImageChunk | Boundary) -> None:
        """Send a further piece of the upload, after the session was opened with only part of it."""
        await self._send(piece)

    async def offer(self, draft: Draft) -> None:
        """Send a draft; does nothing once the session has ended. Raises InputError on rows its format cannot hold."""
        await self._send(draft)

    @property
    def unproven(self) -> int:
        """Bytes that may still be in flight to the worker."""
        return self.given - self._proven

    def prove(self, given: int) -> None:
        """Note that the first `given` bytes have arrived."""
        first = None
        while self._in_flight and self._in_flight[0][1] <= given:
            at, _ = self._in_flight.popleft()
            first = at if first is None else first
        if first is not None:
            seconds = max(time.monotonic() - first, TICK)
            self.carried = max(self.carried, (given - self._proven) / seconds)
            self._proven = given

    async def beat(self) -> bool:
        """Send a heartbeat over the session's connection and wait; returns whether the worker answered."""
        if self._beat is None:
            return True
        given = self.given
        self.bytes_up += BEAT_BYTES
        answered = await self._beat()
        if answered:
            self._hear()
            self.prove(given)
        return answered

    def _hear(self) -> None:
        self.heard, self.answered = time.monotonic(), True

    async def events(self) -> AsyncIterator[Opened | Confirmed | Finished]:
        """The worker's events, Finished last. Raises WorkerError, or InputError if the worker refuses the session."""
        while self.finished is None:
            try:
                message = await self._call.read()
            except grpc.aio.AioRpcError as error:
                raise await self._why(error.code(), error.details()) from None
            except asyncio.CancelledError:
                if given_up():
                    raise
                raise WorkerUnavailable(f"the connection to the worker at {self.address} was closed") from None
            if message is grpc.aio.EOF:
                raise await self._why(await self._call.code(), await self._call.details())
            self._hear()
            self.bytes_down += message.ByteSize()
            try:
                event = worker_from_wire(message)
            except InputError as error:
                raise WorkerFailed(f"the worker at {self.address} does not keep to the protocol: {error}") from None
            if isinstance(event, CutlineError):
                raise event
            if isinstance(event, Finished):
                self.finished = event
                self.passes = event.passes
            yield event

    async def _why(self, code: grpc.StatusCode, details: str | None) -> CutlineError:
        """The exception for a call that ended early."""
        # If a worker refuses a call while its first messages are written, gRPC reports only the failed write.
        refusal = None
        if code is grpc.StatusCode.INTERNAL and not self.answered and self._refusal is not None:
            refusal = await self._refusal()
        return refusal or _translated(code, details, self.address, self._keys)

    async def _send_all(self, messages: Iterable[AgentMessage]) -> None:
        try:
            for message in messages:
                await self._send(message)
        except BaseException:
            self._call.cancel()
            raise

    async def _send(self, message: AgentMessage) -> None:
        wire = agent_to_wire(message)
        self.given += wire.ByteSize()
        self._in_flight.append((time.monotonic(), self.given))
        try:
            await self._call.write(wire)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The session has ended. Whether it failed is seen when reading, not from the error of a late write.
            return
        except asyncio.CancelledError:  # the connection was closed
            if given_up():
                raise
            return
        self.bytes_up += wire.ByteSize()


def _translated(code: grpc.StatusCode, details: str | None, address: str, keys: AgentKeys) -> CutlineError:
    """The exception for a call that ended early, with a message for people in place of gRPC's."""
    match code:
        case grpc.StatusCode.OK:
            return WorkerUnavailable(f"the worker at {address} ended the session before the answer")
        case grpc.StatusCode.UNAVAILABLE if _REFUSED_STREAM in (details or ""):
            return WorkerBusy(f"the worker at {address} takes no more sessions of this agent; try again later")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if _REFUSED_CALL in (details or ""):
            return WorkerBusy(f"the worker at {address} has as many calls as it takes; try again later")
        case grpc.StatusCode.UNAVAILABLE:
            return WorkerUnavailable(link_fault(details or "", address, keys))
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return WorkerUnavailable(f"the worker at {address} did not answer in time")
        case grpc.StatusCode.INTERNAL:
            # A worker that fails sends a message first; without one this status is gRPC's, for a link that broke.
            return WorkerUnavailable(f"the link to the worker at {address} broke")
    return exception_of(code, details or "")
