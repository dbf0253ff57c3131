"""The cluster on Ray: one actor for each worker, on its node, and one for the controller. No session data goes via Ray.

Call `ray_env.prepare` before importing this module.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cutline.cloud.cluster.autoscaler import ScalingLimits
from cutline.cloud.cluster.controller import Controller
from cutline.cloud.cluster.directory import serve
from cutline.cloud.cluster.members import Endpoints, Need, Node
from cutline.cloud.cluster.supervisor import END_SECONDS, START_SECONDS, Supervisor
from cutline.errors import CutlineError, InputError, WorkerError, WorkerFailed, WorkerUnavailable
from cutline.protos.channel.address import is_loopback, parse_address
from cutline.protos.channel.credentials import NO_KEYS, AgentKeys, ServerKeys
from cutline.protos.directory import Listing
from cutline.protos.messages import Description

PLACE_SECONDS = 60.0  # for Ray to start an actor on a node that it said has room
ANSWER_SECONDS = 60.0  # for an actor's answer: longer than any timeout within the actor
KILL_SECONDS = 5.0  # for an actor to kill its worker, before the actor itself is killed
CONNECT_SECONDS = 1.0  # for a connection to Ray's controller
LOCAL_HEAD_SECONDS = 3.0  # without a connection: nobody restarts the controller of a Ray that was started here
REMOTE_HEAD_SECONDS = 45.0  # the same for another Ray, which may be restarted; after 60 s Ray ends its actors
_STORE_BYTES = 80 << 20  # of Ray's object store, which holds next to nothing here: about Ray's minimum

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """The specification of a cluster.

    The directory listens at `listen`. Each worker runs `cutline cloud` with `options` plus --listen and --threads, on
    `threads` cores and `gpus` GPUs of its node, and has `drain` seconds to end open sessions. Directory and workers
    authenticate callers by `server_keys` and `tokens`; supervisors call workers with `keys`. All these are files on the
    nodes. With `metrics` each worker serves metrics at any free port.
    """

    listen: str
    options: tuple[str, ...]
    limits: ScalingLimits
    threads: int
    gpus: float
    drain: float
    server_keys: ServerKeys | None = None
    tokens: Path | None = None
    keys: AgentKeys = NO_KEYS
    metrics: bool = False


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to the Ray at `address`, or start one on this machine for None; disconnect at the end.

    Raises WorkerUnavailable if that fails.
    """
    local: dict[str, Any] = {
        "address": "local",
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
    }
    try:
        ray.init(
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            namespace="cutline",
            **(local if address is None else {"address": address}),
        )
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        where = "can be started here" if address is None else f"answers at {address}"
        raise WorkerUnavailable(f"no Ray {where}: {_first_line(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()


class HeadGone(WorkerUnavailable):
    """Ray's own controller is gone for good."""


class Head:
    """Ray's own controller at `address`. It starts workers; those that run do without it.

    It counts as gone if it accepts no connection for `patience` seconds.
    """

    def __init__(self, address: str, *, patience: float) -> None:
        self._address = address
        self._patience = patience
        self._seen = time.monotonic()

    @classmethod
    def of(cls, address: str | None) -> Head | None:
        """The controller of the connected Ray at `address`; None if only a proxy is in reach."""
        if address is not None and address.startswith("ray://"):
            return None
        found: str = ray.get_runtime_context().gcs_address
        return cls(found, patience=LOCAL_HEAD_SECONDS if address is None else REMOTE_HEAD_SECONDS)

    def check(self) -> None:
        """Raises HeadGone."""
        host, port = parse_address(self._address)
        try:
            with socket.create_connection((host.strip("[]"), port), timeout=CONNECT_SECONDS):
                self._seen = time.monotonic()
        except OSError as error:
            if (gone := time.monotonic() - self._seen) > self._patience:
                raise HeadGone(
                    f"Ray's controller at {self._address} is gone for {gone:.0f} seconds ({error.strerror or error}): "
                    "no worker can be started any more; start the cluster again"
                ) from None


class Cluster:
    """A client of the controller's actor, which it starts. Raises InputError if the directory cannot be served."""

    def __init__(self, spec: ClusterSpec) -> None:
        nodes = _nodes()
        host, _ = parse_address(spec.listen)
        if is_loopback(host) and len({node.address for node in nodes}) > 1:
            raise InputError(
                f"{host} is of one machine, and this cluster has several; --listen at an address of its own"
            )
        self._drain = spec.drain
        controller: Any = ray.remote(_ControllerActor)
        self._actor = controller.options(num_cpus=0, **_home(nodes, host)).remote(spec)
        self.address: str = self._ask(self._actor.open.remote(), PLACE_SECONDS)

    def listing(self) -> Listing:
        """All its workers. Raises WorkerFailed if the controller is gone."""
        found: Listing = self._ask(self._actor.listing.remote(everyone=True), ANSWER_SECONDS)
        return found

    def resize(self, limits: ScalingLimits) -> None:
        """Keep as many workers as these `limits` say, from now on. Raises WorkerFailed if the controller is no more."""
        self._ask(self._actor.resize.remote(limits), ANSWER_SECONDS)

    def close(self) -> None:
        """Drain the workers and end the cluster."""
        self._ask(self._actor.close.remote(), self._drain + END_SECONDS + ANSWER_SECONDS)

    def _ask(self, call: Any, seconds: float) -> Any:
        try:
            return ray.get(call, timeout=seconds)
        except RayTaskError as error:
            raise _cause(error) from None
        except (RayError, GetTimeoutError) as error:
            raise WorkerFailed(f"the cluster's controller is gone: {_first_line(error)}") from None


class _ControllerActor:
    """The actor of a controller and its directory, on the node with the directory's address."""

    def __init__(self, spec: ClusterSpec) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._spec = spec
        self._stack = contextlib.AsyncExitStack()
        self._controller = Controller(
            self._launch, _nodes, limits=spec.limits, need=Need(cpus=spec.threads, gpus=spec.gpus)
        )

    async def open(self) -> str:
        """Start controller and directory; returns the directory's address. Raises InputError."""
        spec = self._spec
        address = await self._stack.enter_async_context(
            serve(
                self._controller,
                listen=spec.listen,
                keys=spec.server_keys,
                tokens=spec.tokens,
                operator=spec.keys,
            )
        )
        await self._stack.enter_async_context(self._controller)
        return address

    async def listing(self, *, model: str = "", everyone: bool = False) -> Listing:
        return self._controller.listing(model=model, everyone=everyone)

    async def resize(self, limits: ScalingLimits) -> None:
        self._controller.limits = limits

    async def close(self) -> None:
        await self._stack.aclose()

    def _launch(self, node: Node) -> _Remote:
        spec = self._spec
        host, _ = parse_address(spec.listen)
        if not (is_loopback(host) or is_loopback(node.address)):
            host = node.address  # in a Ray of this machine alone it is loopback
        metrics = ("--metrics", f"{host}:0") if spec.metrics else ()
        options = ("--listen", f"{host}:0", *metrics, *_security(spec), *spec.options)
        return _Remote(
            ray.remote(_SupervisorActor)
            .options(
                num_cpus=spec.threads,
                num_gpus=spec.gpus,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.name, soft=False),
            )
            .remote(options, keys=spec.keys, threads=spec.threads, drain=spec.drain)
        )


def _security(spec: ClusterSpec) -> tuple[str, ...]:
    """The options by which a worker authenticates callers as the directory does."""
    server = spec.server_keys
    files = {
        "--tls-cert": server and server.certificate,
        "--tls-key": server and server.key,
        "--client-ca": server and server.client_ca,
        "--revoked": server and server.revoked,
        "--tokens": spec.tokens,
    }
    given = tuple(text for option, file in files.items() if file is not None for text in (option, str(file)))
    return given or ("--insecure",)


class _SupervisorActor(Supervisor):
    """The actor of a supervisor, on its worker's node."""

    def __init__(self, options: tuple[str, ...], *, keys: AgentKeys, threads: int, drain: float) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        super().__init__(options, keys=keys, threads=threads, drain=drain)


class _Remote:
    """The controller's client of a supervisor's actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def start(self) -> Endpoints:
        return await _answer(self._actor.start.remote(), PLACE_SECONDS + START_SECONDS)

    async def look(self, after: float) -> Description:
        return await _answer(self._actor.look.remote(after), after + ANSWER_SECONDS)

    async def stop(self) -> None:
        await _answer(self._actor.stop.remote(), None)

    async def kill(self) -> None:
        with contextlib.suppress(WorkerError):  # the actor is gone already, and its worker with it
            await _answer(self._actor.kill.remote(), KILL_SECONDS)
        with contextlib.suppress(TimeoutError):  # Ray's controller is gone: the actor ends with this cluster
            await asyncio.wait_for(asyncio.to_thread(ray.kill, self._actor), KILL_SECONDS)


async def _answer(call: Awaitable[T], seconds: float | None) -> T:
    """The answer of an actor. Raises what the actor raised, or WorkerUnavailable if it is gone."""
    try:
        return await asyncio.wait_for(call, seconds)
    except RayTaskError as error:
        raise _cause(error) from None
    except RayError as error:
        raise WorkerUnavailable(f"Ray lost it: {_first_line(error)}") from None
    except TimeoutError:
        raise WorkerUnavailable("Ray gave it no room, or lost it: no answer") from None


def _nodes() -> tuple[Node, ...]:
    """The live nodes of the cluster."""
    return tuple(
        Node(
            node["NodeID"],
            node["NodeManagerAddress"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    )


def _home(nodes: Sequence[Node], host: str) -> dict[str, Any]:
    """Ray's options to place the controller on the node with address `host`, else on this process's node."""
    names = [node.name for node in nodes if node.address == host] or [ray.get_runtime_context().get_node_id()]
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(names[0], soft=False)}


def _cause(error: RayTaskError) -> CutlineError:
    cause = error.cause
    return cause if isinstance(cause, CutlineError) else WorkerFailed(f"the cluster failed: {_first_line(cause)}")


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
