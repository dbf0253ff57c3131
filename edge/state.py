"""How an agent stands at this moment, as `/cutline/state` and `/readyz` print it."""

from __future__ import annotations

import enum

import msgspec

from cutline.edge.question import Mode


class Breaker(enum.StrEnum):
    """Whether a worker is asked: one that failed is left alone for a while."""

    CLOSED = "closed"  # it is asked
    OPEN = "open"  # it failed, and is left alone
    TRYING = "trying"  # it is being asked again, to see


class WorkerState(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that the agent knows. What is believed of the way to it is None where nothing is known yet.

    `retry_seconds` is when it is tried again, where its breaker is open.
    """

    address: str
    connected: bool
    breaker: Breaker = Breaker.CLOSED
    retry_seconds: float | None = None
    rtt_ms: float | None = None
    uplink_mbps: float | None = None
    queue_ms: float | None = None


class AgentState(msgspec.Struct, frozen=True, kw_only=True):
    """`ready` once the models are loaded; `modes` can answer now; `cuts` of the target can be asked for.

    `offline`: no worker is asked, whatever a question says. `plans`: mode `auto` plans, and so keeps to bounds.
    `upstream` is the URL of the server that is asked in place of workers, if one is.
    """

    ready: bool
    offline: bool
    modes: tuple[Mode, ...]
    drafter: str
    target: str | None
    cuts: tuple[str, ...] = ()
    plans: bool = False
    upstream: str | None = None
    workers: tuple[WorkerState, ...] = ()
