"""Whether a worker is worth asking: a circuit that opens when it fails, and lets one try through after a while.

    closed ──failed──► open ──cool-down over──► half-open ──one trial──► closed, or open for longer
                        └────────────a probe was answered──────────────► closed

A cool-down holds back questions, not probes: who answers a probe is asked again at once. If questions fail there all
the same, its answers count for nothing until a probe has failed, too.

A pure state machine: every event gives a new circuit, and the time comes from outside.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cutline.edge.offload.status import Breaker

COOL_FIRST, COOL_MOST = 0.2, 30.0  # seconds that a circuit stays open after one failure, and after many
COOL_GROWTH = 3.0


@dataclass(frozen=True, slots=True)
class Circuit:
    """A worker's: `failures` in a row, `until` when it is left alone, and whether one `trial` is under way.

    It is `vouched` for by a probe alone, no question was answered since; `doubted` once that proved wrong.
    """

    failures: int = 0
    until: float = 0.0
    trial: bool = False
    vouched: bool = False
    doubted: bool = False

    def state(self, now: float) -> Breaker:
        """How it stands at the time `now`, for people."""
        if now < self.until:
            return Breaker.OPEN
        return Breaker.TRYING if self.failures else Breaker.CLOSED

    def lets(self, now: float) -> bool:
        """Whether the worker may be asked."""
        return now >= self.until and not self.trial

    def left(self, now: float) -> float:
        """Seconds until it may be asked, if no trial is under way."""
        return max(0.0, self.until - now)

    def asked(self) -> Circuit:
        """The circuit once the worker is asked: with failures behind it, that is the one trial."""
        return replace(self, trial=self.failures > 0)

    def dropped(self) -> Circuit:
        """The circuit once nobody waits for the worker's word any more."""
        return replace(self, trial=False)

    def worked(self) -> Circuit:
        """The circuit once the worker has done what it was asked."""
        return Circuit()

    def failed(self, now: float, *, chance: float, least: float = 0.0) -> Circuit:
        """The circuit once the worker has failed: open, for `least` seconds and more.

        `chance` (0..1) spreads the agents of one worker, which would else all come back at the same moment. What fails
        while the circuit is open was begun before, and is the same failure.
        """
        if now < self.until:
            return replace(self, until=max(self.until, now + least), failures=max(self.failures, 1), trial=False)
        wait = max(least, cool_down(self.failures + 1, chance=chance))
        return Circuit(failures=self.failures + 1, until=now + wait, doubted=self.doubted or self.vouched)

    def answered(self) -> Circuit:
        """The circuit once the worker has answered a probe."""
        return self if self.doubted or not self.failures else Circuit(vouched=True)

    def unanswered(self) -> Circuit:
        """The circuit once the worker has not answered a probe, or takes no questions: what it answers next is news."""
        return replace(self, doubted=False)

    def refused(self, now: float, seconds: float) -> Circuit:
        """The circuit once the worker has asked to be left alone for so long, which is no failure."""
        return replace(self, until=max(self.until, now + seconds), trial=False)


def cool_down(failures: int, *, chance: float) -> float:
    """Seconds to wait after so many failures in a row: exponentially more, and by `chance` (0..1) down to half."""
    longest = min(COOL_MOST, COOL_FIRST * COOL_GROWTH ** min(failures - 1, 30))
    return longest * (1.0 - chance / 2)
