"""The members of a cluster, and what becomes of them: placed, ready, dead, rested, started again. Pure functions.

A member is a place for one worker. It keeps its name when its worker dies and another is started for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cutline.cloud.cluster.autoscaler import WorkerLoad
from cutline.protos.directory import ListedWorker, Standing
from cutline.protos.messages import Description

FIRST_REST = 0.5  # seconds before a worker that died is started again; each failure after the first doubles them
LONGEST_REST = 60.0
STEADY_SECONDS = 60.0  # who served so long did not fail for the reasons of its start

_LIVE = (Standing.STARTING, Standing.READY)


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster and what Ray may give away of it; `name` is Ray's."""

    name: str
    address: str
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Need:
    """What a worker takes of its node."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a worker listens, and where it shows metrics, "" if it shows none."""

    address: str
    metrics: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One place. `since` is when its standing began; it rests `until` then, both in seconds of Unix time.

    It is `homeless` while it rests because no node had room for its worker, and `outdated` while a worker runs there
    that a restart has to replace.
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
    """The node for one more worker: of those with room the one with the fewest, not `avoid` if another has room too.

    None where none has room. Where several are alike, the first.
    """
    hosts = [member.node for member in members if member.standing is not Standing.RESTING]
    best: tuple[bool, int] | None = None
    chosen: Node | None = None
    for node in nodes:
        count = hosts.count(node.name)
        # Shares of a device add up with rounding errors.
        if (count + 1) * need.cpus > node.cpus + 1e-6 or (count + 1) * need.gpus > node.gpus + 1e-6:
            continue
        rank = (node.name == avoid, count)
        if best is None or rank < best:
            best, chosen = rank, node
    return chosen


def levelled(members: Sequence[Member], wanted: int, now: float) -> tuple[Member, ...]:
    """`members` with as many as `wanted` that do not drain.

    New ones rest, until now. Who is too many: first those that no node has room for, then others that rest, then those
    that start, then those with the fewest sessions; the ones that rest are gone at once, the others drain.
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
    """Its worker, if it has one, is to be replaced."""
    return replace(member, outdated=member.standing is not Standing.RESTING)


def replaced(members: Sequence[Member], wanted: int, now: float) -> tuple[Member, ...]:
    """`members` after a step of a restart, which replaces the outdated one after the other; else as `levelled`.

    One more than `wanted` is started. Once all that are new are ready the outdated one with the fewest sessions drains,
    and the next step comes when it has left. Where no node has room for one more it drains before, to make room.
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
    """Those that have rested."""
    return tuple(member for member in members if member.standing is Standing.RESTING and member.until <= now)


def started(member: Member, node: str, now: float) -> Member:
    """It is being started on `node`."""
    return replace(member, standing=Standing.STARTING, since=now, node=node, why="", homeless=False)


def told(member: Member, endpoints: Endpoints, described: Description, now: float) -> Member:
    """Its worker says how it is: a first time, again, or that it drains."""
    member = replace(member, endpoints=endpoints, described=described)
    if described.draining:
        return draining(member, now)
    return replace(member, standing=Standing.READY, since=now) if member.standing is Standing.STARTING else member


def draining(member: Member, now: float) -> Member:
    """It takes no new sessions from now on."""
    return replace(member, standing=Standing.DRAINING, since=now) if member.standing in _LIVE else member


def ended(member: Member, why: str, now: float) -> Member | None:
    """Its worker is no more: it rests before another is started, unless it was to leave."""
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
    """No node has room for it: it looks again after a while."""
    return replace(member, until=now + FIRST_REST, why="no node has room for it", homeless=True)


def rest_seconds(failures: int) -> float:
    """How long to wait before a start after so many `failures` (1 or more) in a row."""
    return min(LONGEST_REST, FIRST_REST * 2.0 ** min(failures - 1, 16))


def loads(members: Iterable[Member]) -> tuple[WorkerLoad, ...]:
    """The loads of those that take sessions."""
    return tuple(
        WorkerLoad(queue_seconds=told.queue_seconds, sessions=told.sessions, max_sessions=told.max_sessions)
        for member in members
        if serves(member) and (told := member.described) is not None
    )


def serves(member: Member) -> bool:
    """Whether it takes sessions: its worker is ready, and so is all of the chain after it."""
    return member.standing is Standing.READY and member.described is not None and not member.described.blocked


def listed(member: Member) -> ListedWorker:
    """A member as the directory tells of it."""
    plain = ListedWorker(
        name=member.name,
        address=member.endpoints.address,
        metrics=member.endpoints.metrics,
        standing=member.standing,
        since=member.since,
        failures=member.failures,
        why=member.why or (member.described.blocked if member.described is not None else ""),
    )
    if (told := member.described) is None:
        return plain
    return replace(
        plain,
        model=told.model,
        start=told.start,
        end=told.end,
        queue_seconds=told.queue_seconds,
        sessions=told.sessions,
        max_sessions=told.max_sessions,
    )
