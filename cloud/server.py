"""The one place where a gRPC server is made, with the reason beside each option."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from typing import Any

import grpc
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cutline.cloud.budget import MOST_SLOTS
from cutline.cloud.chain import NextWorker
from cutline.cloud.engine import Engine
from cutline.cloud.observer import NOBODY, Observer
from cutline.cloud.servicer import WorkerServicer
from cutline.cloud.target import Target
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.models.layerline import END
from cutline.models.wire import Wire
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
    # gRPC waits a minute for the answer to a ping unless this says otherwise, too.
    ("grpc.http2.ping_timeout_ms", 10_000),
    # Agents ping too, also between requests; the default would close their connections for that.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.max_concurrent_streams", 256),
]


@contextlib.asynccontextmanager
async def serve(
    bundle: Bundle,
    *,
    listen: str,
    slots: int | None,
    context: int,
    device: str,
    dtype: torch.dtype | None = None,
    layers: tuple[str, str] = ("image", END),
    next_worker: str | None = None,
    wires: Collection[Wire] = tuple(Wire),
    observer: Observer = NOBODY,
) -> AsyncIterator[str]:
    """Serve `layers` (start, end) of a bundle's target at `listen` (HOST:PORT, port 0 for any free one).

    Gives the address it has. Layers that end before the head need the worker at the address `next_worker` for the
    rest. Boundary rows are taken in the formats `wires`; `observer` is told what happens. `slots` and `dtype` are those
    of Target. Raises InputError if the address is taken or none of this machine's, if memory has no room, or if the
    next worker cannot go on there, then also ModelMismatch and WorkerUnavailable.
    """
    # gRPC itself would serve at 443 where no port is given, and at another port where it is over 65535.
    host, _ = parse_address(listen)
    manifest, (start, end) = bundle.manifest, layers
    server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=(slots or MOST_SLOTS) + MAX_CALLS)
    # Before the model is loaded, which takes its time.
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError:
        raise InputError(f"cannot listen at {listen}: taken, or not an address of this machine") from None
    context = min(context, manifest.decoder.context)
    async with contextlib.AsyncExitStack() as stack:
        onward = None
        if next_worker is not None:
            onward = await stack.enter_async_context(NextWorker(next_worker, manifest, cut=end))
            context = min(context, (await onward.describe()).context)
        target = Target(bundle, slots=slots, context=context, device=device, start=start, end=end, dtype=dtype)
        engine = Engine(target, manifest.stop_tokens, observer=observer)
        observer.serving(engine.max_sessions, lambda: engine.sessions)
        worker = WorkerServicer(
            engine,
            manifest,
            context=context,
            start=start,
            end=end,
            wires=wires,
            onward=onward,
            observer=observer,
        )
        worker_pb2_grpc.add_WorkerServicer_to_server(worker, server)
        await stack.enter_async_context(_running(server, engine))
        yield f"{host}:{port}"


@contextlib.asynccontextmanager
async def _running(server: Any, engine: Engine) -> AsyncIterator[None]:
    """Start both, and end both in order."""
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    for service in ("", SERVICE):
        await checks.set(service, health_pb2.HealthCheckResponse.SERVING)
    loop = asyncio.get_running_loop()
    engine.start(lambda: asyncio.run_coroutine_threadsafe(checks.enter_graceful_shutdown(), loop))
    await server.start()
    try:
        yield
    finally:
        await checks.enter_graceful_shutdown()
        # New sessions are refused from here on; open ones may end, and those that do not hear why they must.
        stopped = asyncio.create_task(server.stop(grace=2 * GRACE_SECONDS))
        await asyncio.wait([stopped], timeout=GRACE_SECONDS)
        await asyncio.to_thread(engine.stop)
        await stopped
