"""How an agent stands at this moment, as `/cutline/state` and `/readyz` print it."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping

import msgspec

from cutline.core.escalations.recorder import JournalCounts
from cutline.core.request import Mode
from cutline.edge.generation.gate import Gate
from cutline.edge.generation.result import Audited
from cutline.models.bundle import Manifest


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


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate promises of the answers that it keeps in so many `groups` of requests.

    A share `risk` of them may differ, by the measure `agree`, from the answers that it was held `against`, as sure as
    `confidence`.
    """

    risk: float
    confidence: float
    agree: str
    against: str
    groups: int


class AgentState(msgspec.Struct, frozen=True, kw_only=True):
    """`ready`: a plain request is answered, else `why` it is not, and what to do; `modes` can answer now.

    `cuts` of the target can be asked for. `offline`: no worker is asked, whatever a question says. `plans`: mode `auto`
    plans, and so keeps to bounds; `tools`: the model may call some; `videos`: it has a mode for them. `upstream` is the
    URL of the server that is asked in place of workers, if one is. `promises` are those that the gate keeps now,
    `audits` what audits have shown, by group; `journal` is what became of what was kept for learning, None where
    nothing is.
    """

    ready: bool
    why: str | None = None
    offline: bool
    modes: tuple[Mode, ...]
    drafter: str
    target: str | None
    cuts: tuple[str, ...] = ()
    plans: bool = False
    tools: bool = False
    videos: bool = False
    upstream: str | None = None
    promises: tuple[Promise, ...] = ()
    audits: Mapping[str, Audited] = msgspec.field(default_factory=dict)
    journal: JournalCounts | None = None
    workers: tuple[WorkerState, ...] = ()


def promises_of(gate: Gate) -> tuple[Promise, ...]:
    """What a gate promises, each promise once."""
    made = Counter((one.risk, one.confidence, one.agree, one.against) for one in gate.groups.values() if one.is_open)
    return tuple(
        Promise(risk=risk, confidence=confidence, agree=agree, against=against, groups=groups)
        for (risk, confidence, agree, against), groups in sorted(made.items())
    )


def unready(drafter: Manifest, *, workers: bool, upstream: bool) -> str | None:
    """Why an agent of a `drafter`, or of its target alone, answers no request of mode `auto`, if so, and what to do.

    What the gate does not keep is verified by `workers`, or answered by an `upstream`, where there are any.
    """
    if drafter.role == "target" and not workers:
        return "there is neither a drafter nor a worker; give --worker"
    if drafter.target is None and not upstream:
        return f"{drafter.name} was exported without a target, so no worker can verify it; ask with mode edge"
    if drafter.calibration is None and not (workers or upstream):
        return f"{drafter.name} is not calibrated, and nobody verifies it; run `cutline calibrate`, or give --worker"
    return None
