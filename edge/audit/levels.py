"""How strictly a group of requests is kept, and how audits change that: pure functions over frozen data.

A group is kept from its calibrated confidence on at a strictness of 0; each 1 more halves the doubt that is left. Every
audited answer that was kept moves it: up by STEP if it differs, and always down by STEP times half of the risk, never
below 0. That is an online conformal update (Gibbs and Candes 2021, "Adaptive conformal inference under distribution
shift"), and its bound is arithmetic, whatever the world does: at a strictness of LEVELS the group is shut, so of n
answers audited since it was last calibrated, fewer than n * risk / 2 + LEVELS / STEP + 1 differ. From 10 / risk answers
on, which are 200 at 5%, that is within the risk.

Of a group that is shut nothing is kept, but the target answers all of it, so all of it is compared. Once that shows
that the promise holds from some level on, the group is kept from the loosest of those. A group that is kept so strictly
that nothing of it is audited any more could never become looser, so it is shut as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cutline.edge.audit.evidence import CHANCE, Evidence, is_below

LEVELS = 8  # of strictness; at the last one a group is shut
SHUT = float(LEVELS)
STEP = 2.0
IDLE = 100  # answers that were not kept, without an audit among them, after which a group is shut
AIM = 0.5  # of the risk: the other half is for what differs before the strictness has followed
NOTHING = Evidence()


@dataclass(frozen=True, slots=True)
class Watched:
    """A group: all that was compared of it, its strictness, and what was seen since it was last opened or shut.

    `kept` is that of answers that were kept; `since`, of a group that is shut, that of each level. So many more were to
    be audited and are `unsent`, as their bounds forbid it.
    """

    all: Evidence = NOTHING
    strictness: float = 0.0
    kept: Evidence = NOTHING
    since: tuple[Evidence, ...] = (NOTHING,) * LEVELS
    unsent: int = 0
    idle: int = 0  # answers that were not kept since the last audit

    @property
    def shut(self) -> bool:
        """Whether nothing of it is kept."""
        return self.strictness >= SHUT

    @property
    def current(self) -> Evidence:
        """What was seen of answers that are kept now, or of all where none are."""
        lately = self.since[0] if self.shut else self.kept
        return lately if lately.audited else self.all


def threshold_at(calibrated: float, strictness: float) -> float | None:
    """The confidence from which on answers are kept; None where none are."""
    return None if strictness >= SHUT else 1.0 - (1.0 - calibrated) / 2.0**strictness


def passed_on(watched: Watched) -> Watched:
    """A group after an answer was not kept that its calibration alone would have kept; as it is if it is shut."""
    if watched.shut:
        return watched
    if watched.idle + 1 >= IDLE:
        return Watched(watched.all, SHUT, unsent=watched.unsent)
    return replace(watched, idle=watched.idle + 1)


def noted(watched: Watched, *, confidence: float, calibrated: float, risk: float, agreed: bool) -> Watched:
    """A group after an answer of this confidence was compared with the target's: a kept one, or any once it is shut."""
    everything = watched.all.with_one(agreed=agreed)
    if not watched.shut:
        kept = watched.kept.with_one(agreed=agreed)
        strictness = max(0.0, watched.strictness + STEP * ((not agreed) - AIM * risk))
        if strictness >= SHUT:
            return Watched(everything, SHUT, unsent=watched.unsent)
        return replace(watched, all=everything, strictness=strictness, kept=kept, idle=0)
    since = tuple(
        evidence.with_one(agreed=agreed) if confidence >= _level(calibrated, level) else evidence
        for level, evidence in enumerate(watched.since)
    )
    # Several levels are looked at, any of which may seem to hold by chance.
    holding = (level for level, seen in enumerate(since) if is_below(seen, risk, chance=CHANCE / LEVELS))
    if (loosest := next(holding, None)) is not None:
        return Watched(everything, float(loosest), unsent=watched.unsent)
    return replace(watched, all=everything, since=since)


def _level(calibrated: float, level: int) -> float:
    return 1.0 - (1.0 - calibrated) / 2.0**level
