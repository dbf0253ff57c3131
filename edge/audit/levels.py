"""How strictly a group of requests is kept, and how what is seen of it changes that: pure functions over frozen data.

A group is kept from its calibrated confidence on (level 0), from a stricter one, or is shut. When the answers at its
level break the promise, it goes to the loosest stricter level of which the answers seen so far do not speak against it,
and where there is none it is shut. It goes back to a looser one once answers from that one's confidence on show that
the promise holds there: those that are kept as they are audited, others as the target answered them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cutline.edge.audit.evidence import CHANCE, Evidence, is_above, is_below, weight_above

LEVELS = 5  # thresholds, each with half the doubt of the one before
SHUT = LEVELS
NOTHING = Evidence()
FEWEST = 10  # answers of a stricter level that must have been seen before a group goes to it


@dataclass(frozen=True, slots=True)
class Watched:
    """A group: all that was audited of it, its level, and what was seen at each level since that last changed."""

    all: Evidence = NOTHING
    level: int = 0
    since: tuple[Evidence, ...] = (NOTHING,) * LEVELS

    @property
    def current(self) -> Evidence:
        """What was seen of answers that are kept now, or of all where none are."""
        return self.since[0 if self.level == SHUT else self.level]


def threshold_at(calibrated: float, level: int) -> float | None:
    """The confidence from which on answers are kept at a level; None where none are."""
    return None if level == SHUT else 1.0 - (1.0 - calibrated) / 2**level


def noted(watched: Watched, *, confidence: float, calibrated: float, risk: float, agreed: bool) -> Watched:
    """A group after another answer of this confidence, kept or not, was compared with the target's."""
    since = tuple(
        evidence.with_one(agreed=agreed) if confidence >= 1.0 - (1.0 - calibrated) / 2**level else evidence
        for level, evidence in enumerate(watched.since)
    )
    grown = replace(watched, all=watched.all.with_one(agreed=agreed), since=since)
    level = _next(grown, risk)
    return grown if level == watched.level else Watched(all=grown.all, level=level)


def _next(watched: Watched, risk: float) -> int:
    level, since = watched.level, watched.since
    if level < SHUT and is_above(since[level], risk):
        stricter = (place for place in range(level + 1, LEVELS) if _may_hold(since[place], risk))
        return next(stricter, SHUT)
    # Several levels are looked at, any of which may seem to hold by chance.
    looser = (place for place in range(level) if is_below(since[place], risk, chance=CHANCE / LEVELS))
    return next(looser, level)


def _may_hold(evidence: Evidence, risk: float) -> bool:
    return evidence.audited >= FEWEST and weight_above(evidence, risk) < 1.0
