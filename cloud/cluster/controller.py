"""The controller: keeps as many workers as are needed, starts again what dies, and knows who is ready.

What to do is decided by the pure functions of `members` and `scaling`; this is the loop that does it. How a worker is
started, on whose machine, is the business of a `Launch`.
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
    told,
)
from cutline.errors import WorkerError
from cutline.protos.directory import Listing, Standing
from cutline.protos.messages import Description

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
LOOK_SECONDS = 1.0
LEAVE_SECONDS = 4.0  # longer than agents wait before they ask the directory again


class Supervised(Protocol):
    """A worker with its supervisor, on whatever machine."""

    async def start(self) -> Endpoints:
        """Start it, and say where it is. Raises WorkerError."""
        ...

    async def look(self, after: float) -> Description:
        """How it is in `after` seconds. Raises WorkerError as soon as it is no more, or no use any more."""
        ...

    async def stop(self) -> None:
        """Have it end what is open and go. Raises WorkerError."""
        ...

    async def kill(self) -> None:
        """Leave nothing of it behind; of no effect where nothing is."""
        ...


Launch = Callable[[Node], Supervised]


class Controller:
    """Keeps between `limits.least` and `limits.most` workers on the `nodes`, each of which takes `need` of its node.

    A worker that is one too many leaves the directory `leave` seconds before it refuses sessions. Use as an async
    context manager: at the end the workers drain.
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
        self._limits = limits
        self._need = need
        self._leave = leave
        self._scale = Scale(wanted=limits.least)
        self._members: dict[str, Member] = {}
        self._workers: dict[str, Supervised] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._supervising: dict[str, asyncio.Task[None]] = {}
        self._epoch = secrets.token_hex(8)
        self._version = 0
        self._told: tuple[object, ...] = ()

    async def __aenter__(self) -> Controller:
        self._keeping = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._keeping.cancel()
        await asyncio.wait([self._keeping])
        self._scale = Scale(wanted=0)
        self._become(levelled(tuple(self._members.values()), 0, time.time()), leave=0.0)
        while self._tasks:
            await asyncio.wait(self._tasks)

    def listing(self, *, model: str = "", everyone: bool = False) -> Listing:
        """The members as the directory tells of them: those that are ready, or everyone."""
        now = tuple(
            (member.name, member.endpoints, member.standing, serves(member)) for member in self._members.values()
        )
        if now != self._told:
            self._told = now
            self._version += 1
        found = [listed(member) for member in self._members.values() if everyone or serves(member)]
        workers = tuple(one for one in found if model in ("", one.model))
        return Listing(
            epoch=self._epoch,
            version=self._version,
            wanted=self._scale.wanted,
            workers=workers,
            outdated=sum(member.outdated for member in self._members.values()),
        )

    def restart(self) -> None:
        """Have every worker that runs now replaced, one after the other: see `replaced`."""
        log.info("the workers that run are to be replaced")
        self._members = {name: outdated(member) for name, member in self._members.items()}

    async def _keep(self) -> None:
        while True:
            try:
                await self._step()
            except Exception:  # of whoever knows the nodes or launches there: it may be well again soon
                log.exception("a step of the controller failed")
            await asyncio.sleep(TICK_SECONDS)

    async def _step(self) -> None:
        now = time.time()
        members = tuple(self._members.values())
        restarting = any(member.outdated for member in members)
        self._scale = scale(
            self._scale,
            loads(members),
            self._limits,
            now,
            starting=restarting or any(member.standing is Standing.STARTING for member in members),
            homeless=not restarting and any(member.homeless for member in members),
        )
        self._become(replaced(members, self._scale.wanted, now), leave=self._leave)
        if due(self._members.values(), now):
            # Who knows them may take long over it, or be away; who asks the directory does not wait for that.
            self._start_those_due(await asyncio.to_thread(self._nodes), now)

    def _become(self, members: Sequence[Member], *, leave: float) -> None:
        """Have these members, and let those go that drain now."""
        before, self._members = self._members, {member.name: member for member in members}
        for member in members:
            was = before.get(member.name, member)
            if member.standing is Standing.DRAINING and was.standing is not Standing.DRAINING:
                log.info("%s drains", member.name)
                if was.standing is Standing.STARTING:  # nothing is open there, and it may never come to start
                    self._supervising[member.name].cancel()
                else:
                    self._run(self._let_go(self._workers[member.name], leave))

    def _start_those_due(self, nodes: Sequence[Node], now: float) -> None:
        for member in due(self._members.values(), now):
            node = place(nodes, self._members.values(), self._need, avoid=member.node if member.failures else "")
            if node is None:
                self._members[member.name] = homeless(member, now)
                continue
            self._workers[member.name] = one = self._launch(node)
            self._members[member.name] = started(member, node.name, now)
            self._supervising[member.name] = self._run(self._supervise(member.name, one))

    async def _supervise(self, name: str, one: Supervised) -> None:
        """Have one worker from its start to its end."""
        why = "it could not be supervised; the log says more"
        try:
            endpoints = await one.start()
            after = 0.0
            while True:
                now = await one.look(after)
                after = LOOK_SECONDS
                before = self._members[name]
                self._members[name] = told(before, endpoints, now, time.time())
                if before.standing is Standing.STARTING:
                    log.info("%s is ready at %s", name, endpoints.address)
        except WorkerError as error:
            why = str(error)
        except Exception:
            log.exception("supervising %s failed", name)
        finally:
            del self._workers[name], self._supervising[name]
            self._end(name, why)
            await one.kill()

    def _end(self, name: str, why: str) -> None:
        member = ended(self._members[name], why, time.time())
        if member is None:
            log.info("%s has left", name)
            del self._members[name]
        else:
            log.warning("%s: %s", name, why)
            self._members[name] = member

    async def _let_go(self, one: Supervised, leave: float) -> None:
        await asyncio.sleep(leave)
        with contextlib.suppress(WorkerError):  # it is gone already, and who supervises it sees that
            await one.stop()

    def _run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
