"""The controller of a cluster: starts, restarts, scales and drains workers, and lists the ready ones.

The pure functions of `members` and `autoscaler` decide, this loop acts. A `Launch` starts a worker on a node.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Protocol

from cutline.cloud.cluster.autoscaler import Scale, ScalingLimits, scale
from cutline.cloud.cluster.members import (
    Endpoints,
    Member,
    Need,
    Node,
    due,
    ended,
    homeless,
    levelled,
    listed,
    loads,
    outdated,
    place,
    replaced,
    serves,
    started,
    updated,
)
from cutline.errors import WorkerError
from cutline.protos.directory import Listing, Standing
from cutline.protos.messages import Description

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
LOOK_SECONDS = 1.0
LEAVE_SECONDS = 4.0  # longer than agents wait between two calls of the directory


class Supervised(Protocol):
    """A worker with its supervisor, on any machine."""

    async def start(self) -> Endpoints:
        """Start it; returns its endpoints. Raises WorkerError."""
        ...

    async def look(self, after: float) -> Description:
        """Its description in `after` seconds. Raises WorkerError as soon as it has ended or is broken."""
        ...

    async def stop(self) -> None:
        """Have it drain and end. Raises WorkerError."""
        ...

    async def kill(self) -> None:
        """Kill it, if it still runs."""
        ...


Launch = Callable[[Node], Supervised]


class Controller:
    """Runs `limits.least` to `limits.most` workers on the `nodes`; each needs `need` of its node.

    A surplus worker leaves the directory `leave` seconds before it refuses sessions. Use it as an async context
    manager: at the end the workers drain.
    """

    def __init__(
        self,
        launch: Launch,
        nodes: Callable[[], Sequence[Node]],
        *,
        limits: ScalingLimits,
        need: Need,
        leave: float = LEAVE_SECONDS,
    ) -> None:
        self._launch = launch
        self._nodes = nodes
        self.limits = limits
        self._need = need
        self._leave = leave
        self._scale = Scale(wanted=limits.least)
        self._members: dict[str, Member] = {}
        self._workers: dict[str, Supervised] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._supervising: dict[str, asyncio.Task[None]] = {}
        self._epoch = secrets.token_hex(8)
        self._version = 0
        self._listed: tuple[object, ...] = ()

    async def __aenter__(self) -> Controller:
        self._loop = asyncio.create_task(self._run_loop())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._loop.cancel()
        await asyncio.wait([self._loop])
        self._scale = Scale(wanted=0)
        self._update(levelled(tuple(self._members.values()), 0, time.time()), leave=0.0)
        while self._tasks:
            await asyncio.wait(self._tasks)

    def listing(self, *, model: str = "", everyone: bool = False) -> Listing:
        """The workers as the directory lists them: the ready ones of `model` ("" for any), or `everyone`."""
        now = tuple(
            (member.name, member.endpoints, member.standing, serves(member)) for member in self._members.values()
        )
        if now != self._listed:
            self._listed = now
            self._version += 1
        found = [listed(member) for member in self._members.values() if everyone or serves(member)]
        workers = tuple(worker for worker in found if model in ("", worker.model))
        return Listing(
            epoch=self._epoch,
            version=self._version,
            wanted=self._scale.wanted,
            workers=workers,
            outdated=sum(member.outdated for member in self._members.values()),
        )

    def restart(self) -> None:
        """Replace every worker that runs now, one after the other: see `replaced`."""
        log.info("the workers that run are to be replaced")
        self._members = {name: outdated(member) for name, member in self._members.items()}

    async def _run_loop(self) -> None:
        while True:
            try:
                await self._step()
            except Exception:  # of `nodes` or `launch`; the next step may succeed
                log.exception("a step of the controller failed")
            await asyncio.sleep(TICK_SECONDS)

    async def _step(self) -> None:
        now = time.time()
        members = tuple(self._members.values())
        restarting = any(member.outdated for member in members)
        self._scale = scale(
            self._scale,
            loads(members),
            self.limits,
            now,
            starting=restarting or any(member.standing is Standing.STARTING for member in members),
            homeless=not restarting and any(member.homeless for member in members),
        )
        self._update(replaced(members, self._scale.wanted, now), leave=self._leave)
        if due(self._members.values(), now):
            # In a thread, as `nodes` may block for long, and the directory must answer meanwhile.
            self._start_due(await asyncio.to_thread(self._nodes), now)

    def _update(self, members: Sequence[Member], *, leave: float) -> None:
        """Replace the members, and stop the workers of those that drain from now on."""
        before, self._members = self._members, {member.name: member for member in members}
        for member in members:
            previous = before.get(member.name, member)
            if member.standing is Standing.DRAINING and previous.standing is not Standing.DRAINING:
                log.info("%s drains", member.name)
                if previous.standing is Standing.STARTING:  # it has no sessions, and may never finish its start
                    self._supervising[member.name].cancel()
                else:
                    self._run(self._stop(self._workers[member.name], leave))

    def _start_due(self, nodes: Sequence[Node], now: float) -> None:
        for member in due(self._members.values(), now):
            node = place(nodes, self._members.values(), self._need, avoid=member.node if member.failures else "")
            if node is None:
                self._members[member.name] = homeless(member, now)
                continue
            self._workers[member.name] = worker = self._launch(node)
            self._members[member.name] = started(member, node.name, now)
            self._supervising[member.name] = self._run(self._supervise(member.name, worker))

    async def _supervise(self, name: str, worker: Supervised) -> None:
        """Start a worker and watch it until it ends."""
        why = "it could not be supervised; the log says more"
        try:
            endpoints = await worker.start()
            after = 0.0
            while True:
                description = await worker.look(after)
                after = LOOK_SECONDS
                before = self._members[name]
                self._members[name] = updated(before, endpoints, description, time.time())
                if before.standing is Standing.STARTING:
                    log.info("%s is ready at %s", name, endpoints.address)
        except WorkerError as error:
            why = str(error)
        except Exception:
            log.exception("supervising %s failed", name)
        finally:
            del self._workers[name], self._supervising[name]
            self._end(name, why)
            await worker.kill()

    def _end(self, name: str, why: str) -> None:
        member = ended(self._members[name], why, time.time())
        if member is None:
            log.info("%s has left", name)
            del self._members[name]
        else:
            log.warning("%s: %s", name, why)
            self._members[name] = member

    async def _stop(self, worker: Supervised, leave: float) -> None:
        await asyncio.sleep(leave)
        with contextlib.suppress(WorkerError):  # it has ended already, which `_supervise` sees
            await worker.stop()

    def _run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
