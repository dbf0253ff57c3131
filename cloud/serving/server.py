"""The one place where a gRPC server is made, with the reason beside each option."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import grpc
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cutline.cloud.access.audit import Audit
from cutline.cloud.access.auth import AuthInterceptor, Callers
from cutline.cloud.access.connections import Connections, most_connections, options
from cutline.cloud.access.quota import Shares
from cutline.cloud.access.tls import server_credentials
from cutline.cloud.engine.cost_model import PACING, Pacing
from cutline.cloud.engine.engine import Engine
from cutline.cloud.engine.image_cache import ImageCache
from cutline.cloud.model.device import compute_dtype
from cutline.cloud.model.memory import MOST_SLOTS
from cutline.cloud.model.model_runner import Capacity, Target
from cutline.cloud.serving.admission import ServedSpan
from cutline.cloud.serving.limits import SERVING_LIMITS, ServingLimits
from cutline.cloud.serving.pipeline import NextWorker
from cutline.cloud.serving.ranks import Ranks
from cutline.cloud.serving.readiness import Lookout
from cutline.cloud.serving.servicer import WorkerServicer
from cutline.cloud.telemetry.observer import NOBODY, Observer
from cutline.cloud.telemetry.watchdog import Watchdog
from cutline.core.wire import Wire
from cutline.errors import InputError, WorkerFailed
from cutline.models.bundle import Bundle
from cutline.models.law.grammars import Grammars
from cutline.models.layerline import END
from cutline.models.vocabulary import Vocabulary
from cutline.protos.channel.address import parse_address
from cutline.protos.channel.credentials import NO_KEYS, AgentKeys, ServerKeys
from cutline.protos.v1 import worker_pb2, worker_pb2_grpc

log = logging.getLogger(__name__)

SERVICE = worker_pb2.DESCRIPTOR.services_by_name["Worker"].full_name

GRACE_SECONDS = 1.0  # for calls that were told of their end


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may come, and how: over TLS by `keys`, with one of the `tokens` in a file; without both, everybody.

    To the next worker it goes by the keys `onward`.
    """

    keys: ServerKeys | None = None
    tokens: Path | None = None
    onward: AgentKeys = NO_KEYS


ANYBODY = Access()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What a worker serves, where, and how its model runs.

    It serves the `layers` (start, end) of a target at `listen` (HOST:PORT, port 0 for any free one). Layers that end
    before the head need the worker at the address `next_worker` for the rest. Boundary rows are taken in the formats
    `wires`. Sessions hold `context` tokens, or without it as many as the model and the next worker can and memory has
    room for; `slots` and `images` are those of Capacity. torch computes on `device`, as `compute_dtype` has it if asked
    for `dtype`, with layers `compiled` or not; `tensor_parallel` devices share every layer of the decoder, see `Ranks`.
    Its engine keeps to a `pacing`, its calls and sessions to `limits`. Once it is to end it takes no new sessions, and
    open ones get `drain` seconds.
    """

    listen: str = "127.0.0.1:0"
    layers: tuple[str, str] = ("image", END)
    next_worker: str | None = None
    wires: Collection[Wire] = tuple(Wire)
    slots: int | None = None
    images: int | None = None
    context: int | None = None
    device: str = "cpu"
    dtype: torch.dtype | None = None
    compiled: bool = False
    tensor_parallel: int = 1
    drain: float = GRACE_SECONDS
    pacing: Pacing = PACING
    limits: ServingLimits = SERVING_LIMITS


_OPTIONS = [
    # Two workers on one port would share its calls at random; a second one must fail instead.
    ("grpc.so_reuseport", 0),
    # Tensors and images come in pieces of 1 MiB; what is larger is an attack or a mistake.
    ("grpc.max_receive_message_length", (1 << 20) + (1 << 16)),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 256),
]


@contextlib.asynccontextmanager
async def serve(
    bundle: Bundle,
    serving: WorkerOptions,
    *,
    access: Access = ANYBODY,
    observer: Observer = NOBODY,
    on_broken: Callable[[], object] = lambda: None,
) -> AsyncIterator[str]:
    """Serve a bundle's target as `serving` says, to whom `access` lets in; gives the address that it has.

    `observer` is told what happens, and `on_broken` is called once no session can be served any more. Raises InputError
    if the address is taken or none of this machine's, if memory has no room, if keys do not read, if layers cannot be
    compiled, or if the next worker cannot go on there, then also ModelMismatch, AccessDenied and WorkerUnavailable.
    """
    # gRPC itself would serve at 443 where no port is given, and at another port where it is over 65535.
    host, _ = parse_address(serving.listen)
    manifest, limits = bundle.manifest, serving.limits
    callers = Callers.of(access.keys, access.tokens)
    calls = (serving.slots or MOST_SLOTS) + limits.more_calls
    connections = Connections(most_connections())
    server = grpc.aio.server(
        interceptors=[AuthInterceptor(callers, Audit(), calls=calls, connections=connections, limits=limits.calls)],
        options=[*_OPTIONS, *options(connections.most)],
        maximum_concurrent_rpcs=calls,
    )
    # Before the model is loaded, which takes its time.
    try:
        if access.keys is None:
            port = server.add_insecure_port(serving.listen)
        else:
            port = server.add_secure_port(serving.listen, server_credentials(access.keys))
    except RuntimeError:
        raise InputError(f"cannot listen at {serving.listen}: taken, or not an address of this machine") from None
    most = manifest.decoder.context
    async with contextlib.AsyncExitStack() as stack:
        onward = None
        if serving.next_worker is not None:
            cut = serving.layers[1]
            further = NextWorker(serving.next_worker, manifest, cut=cut, keys=access.onward, limits=limits)
            onward = await stack.enter_async_context(further)
            most = min(most, (await onward.describe()).context)
        hold = min(serving.context or most, most)
        capacity = Capacity(context=hold, slots=serving.slots, images=serving.images, shorten=serving.context is None)
        layers, device = serving.layers, serving.device
        dtype, ranks = compute_dtype(bundle, serving.dtype, device), None
        if serving.tensor_parallel > 1:
            count = serving.tensor_parallel
            ranks = Ranks(bundle, count, layers=layers, capacity=capacity, device=device, dtype=dtype)
            stack.enter_context(ranks)
        target = Target(
            bundle,
            capacity,
            layers=layers,
            device=device if ranks is None else ranks.device,
            dtype=dtype,
            group=None if ranks is None else ranks.group,
            compiled=serving.compiled,
        )
        if target.context < hold:
            log.warning(
                "sessions hold %d tokens and not %d, for which memory has no room; --context says otherwise",
                target.context,
                hold,
            )
        image_cache = ImageCache(target.image_room, observer=observer)
        engine = Engine(target, manifest.stop_tokens, image_cache=image_cache, pacing=serving.pacing, observer=observer)
        observer.serving(engine.max_sessions, lambda: engine.sessions)
        worker = WorkerServicer(
            engine,
            manifest,
            ServedSpan(context=target.context, layers=layers, wires=serving.wires),
            onward=onward,
            observer=observer,
            shares=Shares(callers.limits, places=engine.max_sessions, slow_seconds=limits.slow_seconds),
            grammars=Grammars(functools.partial(Vocabulary.open, bundle), manifest) if target.chooses else None,
            limits=limits,
        )
        worker_pb2_grpc.add_WorkerServicer_to_server(worker, server)
        if ranks is not None:
            ranks.watch(engine.give_up)
            observer.divided(ranks.processes)
        await stack.enter_async_context(connections.watch(port))
        hangs = functools.partial(_give_up, engine, ranks, observer)
        watchdog = Watchdog(lambda: engine.progress.work, hangs)
        watchdog.start()
        stack.callback(watchdog.stop)
        running = _running(server, engine, worker, ranks, drain=serving.drain, on_broken=on_broken)
        checks = await stack.enter_async_context(running)
        if onward is not None:
            await stack.enter_async_context(_looking_on(onward, worker, checks, observer))
        yield f"{host}:{port}"


def _give_up(engine: Engine, ranks: Ranks | None, observer: Observer, seconds: float) -> None:
    """The engine's thread hangs for so many `seconds`, on its device or in wait for a rank."""
    log.critical("the engine is at one step for %.0f seconds: its device hangs; start the worker again", seconds)
    observer.hung()
    if ranks is not None:
        ranks.kill()
    engine.abandon(WorkerFailed("a device of the worker no longer answers; start it again"))


@contextlib.asynccontextmanager
async def _running(
    server: Any,
    engine: Engine,
    worker: WorkerServicer,
    ranks: Ranks | None,
    *,
    drain: float,
    on_broken: Callable[[], object],
) -> AsyncIterator[Any]:
    """Start server and engine, and end both in order; gives the health service."""
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    await _set(checks, serving=True)
    loop = asyncio.get_running_loop()

    async def break_down() -> None:
        await checks.enter_graceful_shutdown()
        on_broken()

    engine.start(lambda: asyncio.run_coroutine_threadsafe(break_down(), loop))
    await server.start()
    try:
        yield checks
    finally:
        await checks.enter_graceful_shutdown()
        # New sessions are refused from here on, and so that balancers see it and agents hear why, the port stays open;
        # open ones may end, and those that do not hear why they must.
        await worker.drain(drain)
        if not await asyncio.to_thread(engine.stop):
            log.warning("the engine's step does not end; it is left behind")
            if ranks is not None:
                ranks.kill()
        await server.stop(grace=GRACE_SECONDS)


@contextlib.asynccontextmanager
async def _looking_on(
    onward: NextWorker, worker: WorkerServicer, checks: Any, observer: Observer
) -> AsyncIterator[None]:
    """Have this worker be ready as long as the next one is."""

    async def looked(why: str, seconds: float) -> None:
        observer.beyond(ready=not why, seconds=seconds)
        if why != worker.blocked:
            worker.blocked = why
            await _set(checks, serving=not why)

    looking = asyncio.create_task(Lookout(onward.check, looked, pause=onward.limits.look_seconds).run())
    looking.add_done_callback(_tell_ended)
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.wait([looking])


def _tell_ended(looking: asyncio.Task[NoReturn]) -> None:
    if not looking.cancelled() and (error := looking.exception()) is not None:
        log.error("the next worker is not looked at any more", exc_info=error)


async def _set(checks: Any, *, serving: bool) -> None:
    """Say to who asks for this worker's health whether it takes sessions; of no effect once it stops."""
    status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
    for service in ("", SERVICE):
        await checks.set(service, status)
