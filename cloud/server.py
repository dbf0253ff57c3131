"""The one place where a gRPC server is made, with the reason beside each option."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cutline.cloud.engine import Engine
from cutline.cloud.servicer import WorkerServicer
from cutline.cloud.target import Target
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.protos.address import parse_address
from cutline.protos.v1 import worker_pb2, worker_pb2_grpc

SERVICE = worker_pb2.DESCRIPTOR.services_by_name["Worker"].full_name

GRACE_SECONDS = 1.5
MAX_CALLS = 256  # beside the open sessions: uploads, refusals, and questions about health

_OPTIONS = [
    # Two workers on one port would share its calls at random; a second one must fail instead.
    ("grpc.so_reuseport", 0),
    # Tensors and images come in pieces of 1 MiB; what is larger is an attack or a mistake.
    ("grpc.max_receive_message_length", (1 << 20) + (1 << 16)),
    ("grpc.max_metadata_size", 16 << 10),
    # A device that vanished without a goodbye frees its session within half a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Agents ping too, also between requests; the default would close their connections for that.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.max_concurrent_streams", 256),
]


@contextlib.asynccontextmanager
async def serve(bundle: Bundle, *, listen: str, slots: int, context: int, device: str) -> AsyncIterator[str]:
    """Serve the target of `bundle` at `listen` (HOST:PORT, port 0 for any free one); gives the address it has.

    Raises InputError if the address is taken or none of this machine's.
    """
    # gRPC itself would serve at 443 where no port is given, and at another port where it is over 65535.
    host, _ = parse_address(listen)
    server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=slots + MAX_CALLS)
    # Before the model is loaded, which takes its time.
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError:
        raise InputError(f"cannot listen at {listen}: taken, or not an address of this machine") from None
    context = min(context, bundle.manifest.decoder.context)
    engine = Engine(Target(bundle, slots=slots, context=context, device=device), bundle.manifest.stop_tokens)
    worker_pb2_grpc.add_WorkerServicer_to_server(WorkerServicer(engine, bundle.manifest, context=context), server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    for service in ("", SERVICE):
        await checks.set(service, health_pb2.HealthCheckResponse.SERVING)
    loop = asyncio.get_running_loop()
    engine.start(lambda: asyncio.run_coroutine_threadsafe(checks.enter_graceful_shutdown(), loop))
    await server.start()
    try:
        yield f"{host}:{port}"
    finally:
        await checks.enter_graceful_shutdown()
        # New sessions are refused from here on; open ones may end, and those that do not hear why they must.
        stopped = asyncio.create_task(server.stop(grace=2 * GRACE_SECONDS))
        await asyncio.wait([stopped], timeout=GRACE_SECONDS)
        await asyncio.to_thread(engine.stop)
        await stopped
