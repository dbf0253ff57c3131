"""A directory's listings as plain frozen types, and its client."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import grpc

from cutline.errors import InputError, WorkerError, WorkerFailed, WorkerUnavailable
from cutline.protos.channel.address import parse_address
from cutline.protos.channel.connection import Connection
from cutline.protos.channel.credentials import NO_KEYS, AgentKeys
from cutline.protos.status import exception_of
from cutline.protos.v1 import directory_pb2 as pb
from cutline.protos.v1 import directory_pb2_grpc

ASK_SECONDS = 5.0
MAX_WORKERS = 4096  # in a listing, so that a message stays under 1 MiB


class Standing(enum.StrEnum):
    """The state of a worker in its cluster; see the .proto."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    RESTING = "resting"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedWorker:
    """A worker in a listing; see the .proto for each field."""

    name: str
    address: str
    standing: Standing
    since: float
    model: str = ""
    start: str = ""
    end: str = ""
    queue_seconds: float = 0.0
    sessions: int = 0
    max_sessions: int = 0
    failures: int = 0
    why: str = ""
    metrics: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The workers of a cluster at one moment. `version` counts within an `epoch`, which is one run of the directory."""

    epoch: str
    version: int
    wanted: int
    workers: tuple[ListedWorker, ...]
    outdated: int = 0


class DirectoryClient:
    """A client of the directory at `address` (HOST:PORT), with `keys`.

    Raises InputError for an address of another form, or another machine without `ca`.
    """

    def __init__(self, address: str, keys: AgentKeys = NO_KEYS) -> None:
        if parse_address(address)[1] == 0:
            raise InputError(f"the directory's address {address!r} has port 0; give HOST:PORT of one that listens")
        self.address = address
        self._connection = Connection(address, keys, directory_pb2_grpc.DirectoryStub)
        self._keys = keys

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def list(self, *, model: str = "", everyone: bool = False) -> Listing:
        """The workers of `model` ("" for any); with `everyone` also those that take no sessions. Raises WorkerError."""
        try:
            request = pb.ListRequest(model=model, all=everyone)
            line, who = self._connection.line, self._keys.metadata()
            message = await line.hold(line.stub.List(request, timeout=ASK_SECONDS, metadata=who))
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from None
        try:
            return listing_from_wire(message)
        except InputError as error:
            raise WorkerFailed(f"the directory at {self.address} does not keep to the protocol: {error}") from None

    async def restart(self) -> None:
        """Replace every worker that runs now, one after the other. Raises WorkerError."""
        try:
            line, who = self._connection.line, self._keys.metadata()
            await line.hold(line.stub.Restart(pb.RestartRequest(), timeout=ASK_SECONDS, metadata=who))
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from None

    def _translated(self, error: grpc.aio.AioRpcError) -> WorkerError:
        match error.code():
            case grpc.StatusCode.UNAVAILABLE:
                return WorkerUnavailable(f"no directory answers at {self.address}; is the cluster up?")
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return WorkerUnavailable(f"the directory at {self.address} did not answer in time")
            case grpc.StatusCode.UNIMPLEMENTED:
                return WorkerFailed(f"what answers at {self.address} is no directory of a cluster")
        cause = exception_of(error.code(), error.details() or "")
        return cause if isinstance(cause, WorkerError) else WorkerFailed(f"the directory at {self.address}: {cause}")


def listing_to_wire(listing: Listing) -> pb.Listing:
    """A listing for the wire."""
    return pb.Listing(
        epoch=listing.epoch,
        version=listing.version,
        wanted=listing.wanted,
        workers=[_listed_to_wire(one) for one in listing.workers],
        outdated=listing.outdated,
    )


def listing_from_wire(message: pb.Listing) -> Listing:
    """A listing from the wire. Raises InputError."""
    return Listing(
        epoch=message.epoch,
        version=message.version,
        wanted=message.wanted,
        workers=_listed(message.workers),
        outdated=message.outdated,
    )


def _listed_to_wire(one: ListedWorker) -> pb.Listed:
    fields = {name: getattr(one, name) for name in ListedWorker.__slots__}
    return pb.Listed(**fields | {"standing": one.standing.name})


def _listed(messages: Sequence[pb.Listed]) -> tuple[ListedWorker, ...]:
    if len(messages) > MAX_WORKERS:
        raise InputError(f"{len(messages)} workers in one listing are too many; it may have {MAX_WORKERS}")
    return tuple(_listed_from_wire(one) for one in messages)


def _listed_from_wire(one: pb.Listed) -> ListedWorker:
    try:
        standing = Standing[pb.Listed.Standing.Name(one.standing)]
    except (KeyError, ValueError):  # a later version's: taken for one that takes no sessions
        standing = Standing.RESTING
    if not (0 <= one.queue_seconds < math.inf and math.isfinite(one.since)):
        raise InputError("it tells times that are none")
    for address in filter(None, (one.address, one.metrics)):
        parse_address(address)
    if standing is Standing.READY and not one.address:
        raise InputError("it lists a worker without an address")
    fields = {name: getattr(one, name) for name in ListedWorker.__slots__}
    return ListedWorker(**fields | {"standing": standing})
