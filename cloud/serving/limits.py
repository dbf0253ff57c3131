"""How long a worker waits for agents and for the next worker, and how much it takes at once."""

from __future__ import annotations

from dataclasses import dataclass

from cutline.cloud.access.auth import CALL_LIMITS, CallLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingLimits:
    """Of a worker's calls and sessions; what its engine keeps to is a `Pacing`."""

    calls: CallLimits = CALL_LIMITS
    more_calls: int = 256  # beside the open sessions: uploads, refusals, and questions about health
    probes: int = 16  # at once, of all agents; each may hold 1 MiB until it is read
    opening_seconds: float = 60.0  # for a session's images or boundary to arrive in
    slow_seconds: float = 5.0  # age at which an opening that still uploads may be evicted for another tenant's
    linger_seconds: float = 5.0  # for an agent to end its side of a session that is over
    silence_seconds: float = 1.0  # after which the next worker has died, if it answers no heartbeat either
    look_seconds: float = 1.0  # between two looks at the next worker
    place_seconds: float = 45.0  # that a place without an opening is held for there: less than its `opening_seconds`


SERVING_LIMITS = ServingLimits()
