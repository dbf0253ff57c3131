"""The agent's side of the protocol: a channel to one worker, and sessions on it that count what they cost."""

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
REFUSAL_SECONDS = 1.0
TICK = 1e-3  # seconds: nothing is measured finer
BEAT_BYTES = 60  # of a heartbeat, up: it has no message, but gRPC's frames around one; as measured

# What gRPC says where a connection has more streams than the worker allows: HTTP/2's REFUSED_STREAM, of RFC 9113.
_REFUSED_STREAM = "RST_STREAM with error code 7"
# And where the worker has as many calls as it takes.
_REFUSED_CALL = "Concurrent RPC limit exceeded"


class WorkerClient:
    """A connection to the worker at `address` (HOST:PORT), by `keys`. Use it from one event loop.

    Raises InputError for an address of another form, which gRPC would read as a name, a path or a scheme, for keys that
    do not read, and without any for an address that is not this machine's own.
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
        """Whether the connection stands, so that a session need not wait for one."""
        return self._connection.line.ready

    @property
    def connection(self) -> Hashable:
        """Which connection there is: another after each that broke."""
        line = self._connection.line
        return line, line.connections

    @property
    def line(self) -> ChannelStub:
        """What a new session goes over."""
        return self._connection.line

    def leave(self, line: ChannelStub) -> None:
        """Have new sessions go over another line than this; those on it may end there."""
        self._connection.leave(line)

    async def close(self, *, grace: float = 0.0) -> None:
        """Close the connection; sessions still open on it fail, after `grace` seconds.

        It may be closed at once while another call of this waits.
        """
        await self._connection.close(grace=grace)

    async def describe(self) -> Description:
        """What the worker serves. Raises WorkerError."""
        try:
            line, who = self._connection.line, self._keys.metadata()
            described = await line.hold(line.stub.Describe(pb.DescribeRequest(), timeout=CONNECT_SECONDS, metadata=who))
        except grpc.aio.AioRpcError as error:
            raise _translated(error.code(), error.details(), self.address, self._keys) from None
        except grpc.aio.UsageError:
            raise WorkerUnavailable(f"the connection to the worker at {self.address} was closed") from None
        except asyncio.CancelledError:  # likewise, while it was asked
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
        """A session opened with `opening` and what crosses its cut; it fails when not finished in `timeout` seconds.

        `metadata` goes with it beside what says who asks.
        """
        return self._begin(itertools.chain((opening,), upload), timeout, metadata)

    def place(self, *, timeout: float | None, metadata: Iterable[tuple[str, str]] = ()) -> WorkerSession:
        """A place on the worker, which counts it from now on, for a session that `WorkerSession.open` opens later."""
        return self._begin((), timeout, metadata)

    def _begin(
        self, first: Iterable[AgentMessage], timeout: float | None, metadata: Iterable[tuple[str, str]]
    ) -> WorkerSession:
        line, who = self._connection.line, self._keys.metadata()  # once: files that change meanwhile end no session
        try:
            call = line.hold(line.stub.Session(timeout=timeout, metadata=(*who, *metadata)))
        except grpc.aio.UsageError:
            raise WorkerUnavailable(f"the connection to the worker at {self.address} was closed") from None
        beat, refusal = functools.partial(self._beat, line, who), functools.partial(self._refusal, line, who)
        return WorkerSession(self.address, call, first, keys=self._keys, beat=beat, refusal=refusal)

    async def _beat(self, line: ChannelStub, who: tuple[tuple[str, str], ...]) -> bool:
        """Have the worker answer at once, with nothing. False where the link is down."""
        try:
            await line.hold(line.stub.Probe(pb.ProbeRequest(), metadata=who))
        except grpc.aio.AioRpcError as error:
            return error.code() is not grpc.StatusCode.UNAVAILABLE  # a refusal is an answer, too
        except grpc.aio.UsageError:  # the connection was closed
            return False
        return True

    async def _refusal(self, line: ChannelStub, who: tuple[tuple[str, str], ...]) -> CutlineError | None:
        """What the worker says to a call that asks for nothing, if that is a refusal and comes at once."""
        try:
            await line.hold(line.stub.Probe(pb.ProbeRequest(), timeout=REFUSAL_SECONDS, metadata=who))
        except grpc.aio.AioRpcError as error:
            found = _translated(error.code(), error.details(), self.address, self._keys)
            return found if isinstance(found, AccessDenied | WorkerBusy) else None
        except grpc.aio.UsageError:  # the connection was closed
            return None
        except asyncio.CancelledError:  # or is closed meanwhile
            if given_up():
                raise
        return None


class WorkerSession:
    """One session. `bytes_up` and `bytes_down` count its messages. Whatever goes wrong with it, `events` says.

    `heard` is when the worker's last word came, on the monotonic clock, at first when the session was begun.
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
        self.heard = time.monotonic()
        self.answered = False  # whether anything was heard
        self.given = 0  # bytes of messages that were to go up, sent or not
        self.carried = 0.0  # bytes a second that the link up has carried at least
        self._proven = 0  # bytes of these that have arrived
        self._under_way = deque[tuple[float, int]]()  # when the others were given, and up to which byte
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
        """End it, whatever it is about."""
        self._call.cancel()

    async def open(self, opening: Open, upload: Iterable[ImageChunk | Boundary]) -> None:
        """Open what has had a place alone so far, and send what crosses the cut."""
        await self._send_all(itertools.chain((opening,), upload))

    async def upload(self, piece: ImageChunk | Boundary) -> None:
        """Send a piece of what crosses the cut, where not all of it was there when the session was opened."""
        await self._send(piece)

    async def offer(self, draft: Draft) -> None:
        """Send a draft; of no effect once the session has ended. Raises InputError on rows its format cannot hold."""
        await self._send(draft)

    @property
    def unproven(self) -> int:
        """Bytes that may still be on their way up."""
        return self.given - self._proven

    def prove(self, given: int) -> None:
        """Take it that the first `given` bytes have arrived."""
        first = None
        while self._under_way and self._under_way[0][1] <= given:
            at, _ = self._under_way.popleft()
            first = at if first is None else first
        if first is not None:
            seconds = max(time.monotonic() - first, TICK)
            self.carried = max(self.carried, (given - self._proven) / seconds)
            self._proven = given

    async def beat(self) -> bool:
        """A heartbeat, by the session's connection: whether the worker has answered it, once it has or cannot."""
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
        """What the worker sends, Finished last. Raises WorkerError, or InputError if the worker refuses the session."""
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
            yield event

    async def _why(self, code: grpc.StatusCode, details: str | None) -> CutlineError:
        """The exception for a call that ended early."""
        # Where a worker refuses a call while its first messages are written, gRPC tells of the failed write alone.
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
        self._under_way.append((time.monotonic(), self.given))
        try:
            await self._call.write(wire)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The session has ended, well or not. Reading tells which; the error of a late write does not.
            return
        except asyncio.CancelledError:  # likewise where the connection was closed
            if given_up():
                raise
            return
        self.bytes_up += wire.ByteSize()


def _translated(code: grpc.StatusCode, details: str | None, address: str, keys: AgentKeys) -> CutlineError:
    """The exception for a call that ended early. What gRPC says of a broken link is for machines; say it for people."""
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
            # A worker says why it failed before it ends; this is gRPC's own word for a link that broke under a write.
            return WorkerUnavailable(f"the link to the worker at {address} broke")
    return exception_of(code, details or "")
