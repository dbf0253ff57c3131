"""The Directory service: tells agents which workers are ready."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cutline.cloud.audit import Audit
from cutline.cloud.connections import Connections, most_connections, options
from cutline.cloud.identity import AuthInterceptor, Callers
from cutline.cloud.tls import server_credentials
from cutline.errors import InputError
from cutline.protos.address import parse_address
from cutline.protos.directory import Listing, listing_to_wire
from cutline.protos.security import ServerKeys
from cutline.protos.v1 import directory_pb2 as pb
from cutline.protos.v1 import directory_pb2_grpc

SERVICE = pb.DESCRIPTOR.services_by_name["Directory"].full_name

MAX_CALLS = 1024

_OPTIONS = [
    # A second directory on one port must fail instead of sharing its calls at random.
    ("grpc.so_reuseport", 0),
    # A request is a hash.
    ("grpc.max_receive_message_length", 4 << 10),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 16),
]


class Lists(Protocol):
    """Who knows the workers."""

    def listing(self, *, model: str, everyone: bool) -> Listing:
        """Those of `model`, or of any; with `everyone` also those that take no sessions."""
        ...


class DirectoryServicer(directory_pb2_grpc.DirectoryServicer):
    """Tells what `source` knows."""

    def __init__(self, source: Lists) -> None:
        self._source = source

    async def List(self, request: pb.ListRequest, context: Any) -> pb.Listing:
        """The workers now."""
        return listing_to_wire(self._source.listing(model=request.model, everyone=request.all))


@contextlib.asynccontextmanager
async def serve(
    source: Lists, *, listen: str, keys: ServerKeys | None = None, tokens: Path | None = None
) -> AsyncIterator[str]:
    """Serve a directory at `listen` (HOST:PORT, port 0 for any free one); gives its address.

    To whom a worker with these `keys` and this file of `tokens` would serve; without both, to everybody. Raises
    InputError.
    """
    host, _ = parse_address(listen)
    callers, connections = Callers.of(keys, tokens), Connections(most_connections())
    server = grpc.aio.server(
        interceptors=[AuthInterceptor(callers, Audit(), calls=MAX_CALLS, connections=connections)],
        options=[*_OPTIONS, *options(connections.most)],
        maximum_concurrent_rpcs=MAX_CALLS,
    )
    try:
        if keys is None:
            port = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, server_credentials(keys))
    except RuntimeError:
        raise InputError(f"cannot listen at {listen}: taken, or not an address of that machine") from None
    directory_pb2_grpc.add_DirectoryServicer_to_server(DirectoryServicer(source), server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    for service in ("", SERVICE):
        await checks.set(service, health_pb2.HealthCheckResponse.SERVING)
    await server.start()
    try:
        async with connections.watch(port):
            yield f"{host}:{port}"
    finally:
        await server.stop(grace=0.5)
