"""Ray's part: an actor for every worker on its node, and one for the controller. No session's data goes through Ray.

`environment.prepare` comes before an import of this module.
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

PLACE_SECONDS = 60.0  # for Ray to start an actor on a node that was said to have room
ANSWER_SECONDS = 60.0  # for an actor's word: longer than all that it waits for itself
KILL_SECONDS = 5.0  # for an actor to kill its worker, which takes a moment, before the actor is killed itself
KNOCK_SECONDS = 1.0  # for Ray's controller to take a connection
GONE_SECONDS = 3.0  # after which nobody brings back the controller of a Ray that was started here
AWAY_SECONDS = 45.0  # for that of another Ray, which may be restarted; after a minute Ray ends what it started
_STORE_BYTES = 80 << 20  # of Ray's own store, which holds next to nothing here: about the least it takes

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """What a cluster is to be.

    The directory is at `listen`. `options` are those of each worker's `cutline cloud` but for --listen and --threads;
    it gets `threads` cores and `gpus` GPUs of its node, and `drain` seconds to end what is open. Directory and workers
    serve by `server_keys` and `tokens`, the workers are looked at by `keys`; all these are files of the nodes. With
    `metrics` each worker shows them, at any free port.
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
    """Be a client of the Ray at `address`, or of one that is started on this machine alone, until the end.

    Raises WorkerUnavailable if there is none.
    """
    here: dict[str, Any] = {
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
            **(here if address is None else {"address": address}),
        )
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        where = "can be started here" if address is None else f"answers at {address}"
        raise WorkerUnavailable(f"no Ray {where}: {_first_line(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()


class HeadGone(WorkerUnavailable):
    """Ray's own controller is gone, and nobody brings it back."""


class Head:
    """Ray's own controller at `address`, which places workers and is needed by none that serves.

    One that takes no connection for `patience` seconds is gone.
    """

    def __init__(self, address: str, *, patience: float) -> None:
        self._address = address
        self._patience = patience
        self._seen = time.monotonic()

    @classmethod
    def of(cls, address: str | None) -> Head | None:
        """That of the Ray that this process is a client of, at `address`; None where it is out of reach."""
        if address is not None and address.startswith("ray://"):
            return None
        found: str = ray.get_runtime_context().gcs_address
        return cls(found, patience=GONE_SECONDS if address is None else AWAY_SECONDS)

    def check(self) -> None:
        """Raises HeadGone."""
        host, port = parse_address(self._address)
        try:
            with socket.create_connection((host.strip("[]"), port), timeout=KNOCK_SECONDS):
                self._seen = time.monotonic()
        except OSError as error:
            if (gone := time.monotonic() - self._seen) > self._patience:
                raise HeadGone(
                    f"Ray's controller at {self._address} is gone for {gone:.0f} seconds ({error.strerror or error}): "
                    "no worker can be started any more; start the cluster again"
                ) from None


class Cluster:
    """A controller as an actor of Ray, and what it tells. Raises InputError if the directory cannot be had so."""

    def __init__(self, order: ClusterSpec) -> None:
        nodes = _nodes()
        host, _ = parse_address(order.listen)
        if is_loopback(host) and len({node.address for node in nodes}) > 1:
            raise InputError(
                f"{host} is of one machine, and this cluster has several; --listen at an address of its own"
            )
        self._drain = order.drain
        controller: Any = ray.remote(_ControllerActor)
        self._actor = controller.options(num_cpus=0, **_home(nodes, host)).remote(order)
        self.address: str = self._ask(self._actor.open.remote(), PLACE_SECONDS)

    def listing(self) -> Listing:
        """All its workers. Raises WorkerFailed if the controller is no more."""
        found: Listing = self._ask(self._actor.listing.remote(everyone=True), ANSWER_SECONDS)
        return found

    def close(self) -> None:
        """Have the workers drain, and end."""
        self._ask(self._actor.close.remote(), self._drain + END_SECONDS + ANSWER_SECONDS)

    def _ask(self, asked: Any, seconds: float) -> Any:
        try:
            return ray.get(asked, timeout=seconds)
        except RayTaskError as error:
            raise _cause(error) from None
        except (RayError, GetTimeoutError) as error:
            raise WorkerFailed(f"the cluster's controller is gone: {_first_line(error)}") from None


class _ControllerActor:
    """A controller and its directory, on the node that has the directory's address."""

    def __init__(self, order: ClusterSpec) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._order = order
        self._stack = contextlib.AsyncExitStack()
        self._controller = Controller(
            self._launch, _nodes, limits=order.limits, need=Need(cpus=order.threads, gpus=order.gpus)
        )

    async def open(self) -> str:
        """The directory's address. Raises InputError."""
        order = self._order
        address = await self._stack.enter_async_context(
            serve(
                self._controller,
                listen=order.listen,
                keys=order.server_keys,
                tokens=order.tokens,
                operator=order.keys,
            )
        )
        await self._stack.enter_async_context(self._controller)
        return address

    async def listing(self, *, model: str = "", everyone: bool = False) -> Listing:
        return self._controller.listing(model=model, everyone=everyone)

    async def close(self) -> None:
        await self._stack.aclose()

    def _launch(self, node: Node) -> _Remote:
        order = self._order
        host, _ = parse_address(order.listen)
        if not (is_loopback(host) or is_loopback(node.address)):
            host = node.address  # a Ray of this machine alone knows no other than loopback
        metrics = ("--metrics", f"{host}:0") if order.metrics else ()
        options = ("--listen", f"{host}:0", *metrics, *_security(order), *order.options)
        return _Remote(
            ray.remote(_SupervisorActor)
            .options(
                num_cpus=order.threads,
                num_gpus=order.gpus,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.name, soft=False),
            )
            .remote(options, keys=order.keys, threads=order.threads, drain=order.drain)
        )


def _security(order: ClusterSpec) -> tuple[str, ...]:
    """The options by which a worker serves whom the directory serves."""
    server = order.server_keys
    files = {
        "--tls-cert": server and server.certificate,
        "--tls-key": server and server.key,
        "--client-ca": server and server.client_ca,
        "--revoked": server and server.revoked,
        "--tokens": order.tokens,
    }
    given = tuple(text for option, file in files.items() if file is not None for text in (option, str(file)))
    return given or ("--insecure",)


class _SupervisorActor(Supervisor):
    """A supervisor on its worker's node."""

    def __init__(self, options: tuple[str, ...], *, keys: AgentKeys, threads: int, drain: float) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        super().__init__(options, keys=keys, threads=threads, drain=drain)


class _Remote:
    """A supervisor's actor as the controller sees it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def start(self) -> Endpoints:
        return await _answer(self._actor.start.remote(), PLACE_SECONDS + START_SECONDS)

    async def look(self, after: float) -> Description:
        return await _answer(self._actor.look.remote(after), after + ANSWER_SECONDS)

    async def stop(self) -> None:
        await _answer(self._actor.stop.remote(), None)

    async def kill(self) -> None:
        with contextlib.suppress(WorkerError):  # it is gone already, and its worker with it
            await _answer(self._actor.kill.remote(), KILL_SECONDS)
        with contextlib.suppress(TimeoutError):  # without Ray's controller the actor ends with this cluster
            await asyncio.wait_for(asyncio.to_thread(ray.kill, self._actor), KILL_SECONDS)


async def _answer(asked: Awaitable[T], seconds: float | None) -> T:
    """What an actor answers. Raises what it raised, or WorkerUnavailable if it is gone."""
    try:
        return await asyncio.wait_for(asked, seconds)
    except RayTaskError as error:
        raise _cause(error) from None
    except RayError as error:
        raise WorkerUnavailable(f"Ray lost it: {_first_line(error)}") from None
    except TimeoutError:
        raise WorkerUnavailable("Ray gave it no room, or lost it: no answer") from None


def _nodes() -> tuple[Node, ...]:
    """The machines that take part now."""
    return tuple(
        Node(
            one["NodeID"], one["NodeManagerAddress"], one["Resources"].get("CPU", 0.0), one["Resources"].get("GPU", 0.0)
        )
        for one in ray.nodes()  # type: ignore[no-untyped-call]
        if one["Alive"]
    )


def _home(nodes: Sequence[Node], host: str) -> dict[str, Any]:
    """Where Ray is to put the controller: on the node of this address, else on that of this process, else anywhere."""
    names = [node.name for node in nodes if node.address == host] or [ray.get_runtime_context().get_node_id()]
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(names[0], soft=False)}


def _cause(error: RayTaskError) -> CutlineError:
    cause = error.cause
    return cause if isinstance(cause, CutlineError) else WorkerFailed(f"the cluster failed: {_first_line(cause)}")


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
