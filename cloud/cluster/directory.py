"""The Directory service, which lists the ready workers for agents."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cutline.cloud.access.audit import Audit
from cutline.cloud.access.auth import AuthInterceptor, Callers
from cutline.cloud.access.connections import Connections, most_connections, options
from cutline.cloud.access.tls import server_credentials
from cutline.errors import InputError
from cutline.protos.channel.address import parse_address
from cutline.protos.channel.credentials import NO_KEYS, AgentKeys, ServerKeys
from cutline.protos.directory import Listing, listing_to_wire
from cutline.protos.v1 import directory_pb2 as pb
from cutline.protos.v1 import directory_pb2_grpc

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["Directory"].full_name

MAX_CALLS = 1024

_OPTIONS = [
    # A second directory on one port must fail instead of sharing its calls at random.
    ("grpc.so_reuseport", 0),
    # A request holds little more than a hash.
    ("grpc.max_receive_message_length", 4 << 10),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 16),
]


class Lists(Protocol):
    """The source of a directory's listings."""

    def listing(self, *, model: str, everyone: bool) -> Listing:
        """The workers of `model` ("" for any); with `everyone` also those that take no sessions."""
        ...

    def restart(self) -> None:
        """Replace all workers that run now."""
        ...


class DirectoryServicer(directory_pb2_grpc.DirectoryServicer):
    """Serves the listings of `source` to every authenticated caller; one that `is_operator` may restart workers."""

    def __init__(self, source: Lists, is_operator: Callable[[Any], bool]) -> None:
        self._source = source
        self._is_operator = is_operator

    async def List(self, request: pb.ListRequest, context: Any) -> pb.Listing:
        """The current workers."""
        return listing_to_wire(self._source.listing(model=request.model, everyone=request.all))

    async def Restart(self, request: pb.RestartRequest, context: Any) -> pb.RestartAnswer:
        """Replace the workers that run now."""
        if not self._is_operator(context):
            why = "only who has the token or the certificate that `cluster up` was given may restart its workers"
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, why)
        self._source.restart()
        return pb.RestartAnswer()


@contextlib.asynccontextmanager
async def serve(
    source: Lists,
    *,
    listen: str,
    keys: ServerKeys | None = None,
    tokens: Path | None = None,
    operator: AgentKeys = NO_KEYS,
) -> AsyncIterator[str]:
    """Serve a directory at `listen` (HOST:PORT, port 0 for any free one); yields its address.

    It authenticates callers as a worker with these `keys` and `tokens` does; without both it serves everybody. Who
    calls with the keys of the `operator` may restart workers. Raises InputError.
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

    def is_operator(context: Any) -> bool:
        try:
            return callers.match(operator, context.invocation_metadata() or (), context.auth_context())
        except InputError as error:
            log.warning("who may give orders is not known: %s", error)
            return False

    directory_pb2_grpc.add_DirectoryServicer_to_server(DirectoryServicer(source, is_operator), server)
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
