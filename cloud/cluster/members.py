"""The members of a cluster and their transitions: started, ready, draining, resting after a failure. Pure functions.

A member is a slot for one worker. It keeps its name when its worker dies and a new one is started.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cutline.cloud.cluster.autoscaler import WorkerLoad
from cutline.protos.directory import ListedWorker, Standing
from cutline.protos.messages import Description

FIRST_REST = 0.5  # seconds before a worker that died is restarted; each further failure doubles them
LONGEST_REST = 60.0
STEADY_SECONDS = 60.0  # a worker that served so long did not fail because of its start: its failures count from 1 again

_LIVE = (Standing.STARTING, Standing.READY)


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster and the resources that Ray may allocate on it; `name` is Ray's node id."""

    name: str
    address: str
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Need:
    """The resources of a node that one worker takes."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The address where a worker listens, and that of its metrics, "" if it has none."""

    address: str
    metrics: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One slot. Its standing began at `since`, and a rest ends at `until`, both in seconds of Unix time.

    It is `homeless` while it rests because no node had room for its worker, and `outdated` while a restart has yet to
    replace its worker.
    """

    name: str
    standing: Standing
    since: float
    until: float = 0.0
    node: str = ""
    endpoints: Endpoints = Endpoints("")
    described: Description | None = None
    failures: int = 0
    why: str = ""
    homeless: bool = False
    outdated: bool = False


def place(nodes: Sequence[Node], members: Iterable[Member], need: Need, *, avoid: str = "") -> Node | None:
    """The node for one more worker, None if no node has room.

    Of the nodes with room it is the first one with the fewest workers, but `avoid` only if no other has room.
    """
    hosts = [member.node for member in members if member.standing is not Standing.RESTING]
    best: tuple[bool, int] | None = None
    chosen: Node | None = None
    for node in nodes:
        count = hosts.count(node.name)
        # The slack is for rounding errors of fractional GPUs.
        if (count + 1) * need.cpus > node.cpus + 1e-6 or (count + 1) * need.gpus > node.gpus + 1e-6:
            continue
        rank = (node.name == avoid, count)
        if best is None or rank < best:
            best, chosen = rank, node
    return chosen


def levelled(members: Sequence[Member], wanted: int, now: float) -> tuple[Member, ...]:
    """`members` with `wanted` of them that do not drain.

    A new member's rest ends now. Surplus ones are chosen in this order: homeless, resting, starting, fewest sessions.
    Resting ones are removed at once, the others drain.
    """
    staying = [member for member in members if member.standing is not Standing.DRAINING]
    if len(staying) < wanted:
        names = {member.name for member in members}
        free = (name for number in itertools.count() if (name := f"worker-{number}") not in names)
        added = (Member(name=name, standing=Standing.RESTING, since=now, until=now) for name in free)
        return (*members, *itertools.islice(added, wanted - len(staying)))
    surplus = {member.name for member in sorted(staying, key=_worth)[: len(staying) - wanted]}
    return tuple(
        draining(member, now) if member.name in surplus else member
        for member in members
        if not (member.name in surplus and member.standing is Standing.RESTING)
    )


def outdated(member: Member) -> Member:
    """Mark its worker, if it has one, to be replaced."""
    return replace(member, outdated=member.standing is not Standing.RESTING)


def replaced(members: Sequence[Member], wanted: int, now: float) -> tuple[Member, ...]:
    """`members` after a step of a restart, which replaces outdated workers one by one; without one as `levelled`.

    First one more than `wanted` is started. Once all new workers are ready, the outdated one with the fewest sessions
    drains, and when it has left the next step begins. If no node has room for one more, it drains first.
    """
    staying = [member for member in members if member.standing is not Standing.DRAINING]
    old = [member for member in staying if member.outdated]
    if not old or any(member.outdated and member.standing is Standing.DRAINING for member in members):
        return levelled(members, wanted, now)
    if len(staying) <= wanted:
        return levelled(members, wanted + 1, now)
    new = [member for member in staying if not member.outdated]
    if all(serves(member) or member.homeless for member in new):
        leaving = min(old, key=_worth).name
        return tuple(draining(member, now) if member.name == leaving else member for member in members)
    return tuple(members)


def _worth(member: Member) -> tuple[bool, int, int]:
    order = (Standing.RESTING, Standing.STARTING, Standing.READY)
    return not member.homeless, order.index(member.standing), member.described.sessions if member.described else 0


def due(members: Iterable[Member], now: float) -> tuple[Member, ...]:
    """The members whose rest is over."""
    return tuple(member for member in members if member.standing is Standing.RESTING and member.until <= now)


def started(member: Member, node: str, now: float) -> Member:
    """The member after a start on `node` began."""
    return replace(member, standing=Standing.STARTING, since=now, node=node, why="", homeless=False)


def updated(member: Member, endpoints: Endpoints, described: Description, now: float) -> Member:
    """The member after its worker described itself: it is ready, or draining if the worker drains."""
    member = replace(member, endpoints=endpoints, described=described)
    if described.draining:
        return draining(member, now)
    return replace(member, standing=Standing.READY, since=now) if member.standing is Standing.STARTING else member


def draining(member: Member, now: float) -> Member:
    """The member draining from now on, if it has a worker."""
    return replace(member, standing=Standing.DRAINING, since=now) if member.standing in _LIVE else member


def ended(member: Member, why: str, now: float) -> Member | None:
    """The member after its worker ended because of `why`: it rests before the next start. None if it was draining."""
    if member.standing is Standing.DRAINING:
        return None
    steady = member.standing is Standing.READY and now - member.since > STEADY_SECONDS
    failures = 1 if steady else member.failures + 1
    until = now + rest_seconds(failures)
    return Member(
        name=member.name,
        standing=Standing.RESTING,
        since=now,
        until=until,
        node=member.node,
        failures=failures,
        why=why,
    )


def homeless(member: Member, now: float) -> Member:
    """The member after no node had room for it: it rests for FIRST_REST."""
    return replace(member, until=now + FIRST_REST, why="no node has room for it", homeless=True)


def rest_seconds(failures: int) -> float:
    """Seconds to wait before a start after so many `failures` (1 or more) in a row."""
    return min(LONGEST_REST, FIRST_REST * 2.0 ** min(failures - 1, 16))


def loads(members: Iterable[Member]) -> tuple[WorkerLoad, ...]:
    """The loads of the members that take sessions."""
    return tuple(
        WorkerLoad(queue_seconds=worker.queue_seconds, sessions=worker.sessions, max_sessions=worker.max_sessions)
        for member in members
        if serves(member) and (worker := member.described) is not None
    )


def serves(member: Member) -> bool:
    """Whether it takes sessions: its worker is ready, and so are all workers of the chain behind it."""
    return member.standing is Standing.READY and member.described is not None and not member.described.blocked


def listed(member: Member) -> ListedWorker:
    """A member as the directory lists it."""
    plain = ListedWorker(
        name=member.name,
        address=member.endpoints.address,
        metrics=member.endpoints.metrics,
        standing=member.standing,
        since=member.since,
        failures=member.failures,
        why=member.why or (member.described.blocked if member.described is not None else ""),
    )
    if (worker := member.described) is None:
        return plain
    return replace(
        plain,
        model=worker.model,
        start=worker.start,
        end=worker.end,
        queue_seconds=worker.queue_seconds,
        sessions=worker.sessions,
        max_sessions=worker.max_sessions,
    )
