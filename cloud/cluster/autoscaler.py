"""The wanted number of workers, from sessions' waiting times and the share of taken places. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLoad:
    """The load that a ready worker reports."""

    queue_seconds: float  # recent wait of sessions for their first pass
    sessions: int
    max_sessions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingLimits:
    """The range of workers, `least` to `most`, and when to scale.

    Up: for `grow_after` seconds sessions waited over `grow_queue` seconds, or took over `grow_fill` of all places.
    Down: for `shrink_after` seconds they waited under `shrink_queue`, and would take under `shrink_fill` of the places
    of one worker less. The gap between the two prevents oscillation. If no node had room for one more worker, scaling
    up pauses for `room_after` seconds.
    """

    least: int
    most: int
    grow_queue: float = 0.25
    grow_fill: float = 0.9
    grow_after: float = 5.0
    shrink_queue: float = 0.02
    shrink_fill: float = 0.5
    shrink_after: float = 120.0
    room_after: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How many workers are `wanted`; `pressure` for more (1), fewer (-1) or neither (0) has lasted since `since`.

    There is no scaling up before the time `barred`.
    """

    wanted: int
    pressure: int = 0
    since: float = 0.0
    barred: float = 0.0


def scale(
    state: Scale, loads: Sequence[WorkerLoad], limits: ScalingLimits, now: float, *, starting: bool, homeless: bool
) -> Scale:
    """The scale after the `loads` of all ready workers at the time `now` (seconds).

    It does not change while workers are `starting`, as their load is unknown. If some are `homeless`, which means that
    no node has room for them, one fewer is wanted.
    """
    wanted = min(max(state.wanted, limits.least), limits.most)
    if homeless:
        fewer = max(wanted - 1, limits.least)
        state = replace(state, barred=now + limits.room_after)
        if fewer < wanted:
            return replace(state, wanted=fewer, pressure=0, since=now)
    if starting:
        return replace(state, wanted=wanted)
    pressure = _pressure(loads, wanted, limits)
    if now < state.barred:
        pressure = min(pressure, 0)
    if pressure != state.pressure or wanted != state.wanted:
        return replace(state, wanted=wanted, pressure=pressure, since=now)
    patience = limits.grow_after if pressure > 0 else limits.shrink_after
    changed = min(max(wanted + pressure, limits.least), limits.most)
    if changed == wanted or now - state.since < patience:
        return state
    return replace(state, wanted=changed, pressure=0, since=now)


def _pressure(loads: Sequence[WorkerLoad], wanted: int, limits: ScalingLimits) -> int:
    count = len(loads)
    if not count:
        return 0
    wait = sum(load.queue_seconds for load in loads) / count
    taken, places = sum(load.sessions for load in loads), sum(load.max_sessions for load in loads)
    if wait > limits.grow_queue or taken > limits.grow_fill * places:
        return 1
    left = min(count, wanted - 1)  # scaling down removes a worker without sessions first
    fits = taken < limits.shrink_fill * places * left / count
    return -1 if wait < limits.shrink_queue and fits else 0
