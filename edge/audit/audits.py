"""What audits have shown of each group of requests, and whether the gate may keep answers of it."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cutline.edge.audit.evidence import Evidence, at_most, is_above, is_below
from cutline.edge.generation.gate import Gate
from cutline.edge.generation.result import Audited
from cutline.errors import InputError

log = logging.getLogger(__name__)

EARLY_SHARE = 0.25  # of kept answers that is audited where little is known of a group yet ...
EARLY_AUDITS = 100  # ... falling to the share that is set, over so many audits


def check_share(share: float) -> None:
    """Check a share of kept answers that is to be audited. Raises InputError."""
    if not 0.0 <= share <= 1.0:
        raise InputError(f"audit is {share:g}; give the share of kept answers that is audited, 0 to 1")


@dataclass(slots=True)
class _Watched:
    """A group: all that was audited of it, what was seen since it was last opened or shut, and whether it is shut."""

    all: Evidence = field(default_factory=Evidence)
    since: Evidence = field(default_factory=Evidence)
    shut: bool = False


@dataclass(slots=True)
class Audits:
    """Which kept answers are audited, a `share` of them, and what came of that; for any threads.

    A group whose answers differ more often than promised is shut: nothing of it is kept. What would have been kept is
    compared with the target's answer then, which costs nothing, until that shows that the promise holds again. Of a
    drafter that is `unproven` every group is shut, until that shows it.
    """

    share: float = 0.0
    chance: Callable[[], float] = random.random
    unproven: bool = False
    _groups: dict[str, _Watched] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def due(self, group: str) -> bool:
        """Whether an answer of a group that was kept is to be audited: the first ones of it more often."""
        if self.share == 0.0:
            return False
        with self._lock:
            known = self._groups[group].since.audited if group in self._groups else 0
        return self.chance() < max(self.share, EARLY_SHARE * (1.0 - known / EARLY_AUDITS))

    def shut(self, group: str) -> bool:
        """Whether nothing of a group is kept, for what audits have shown."""
        with self._lock:
            return self._groups[group].shut if group in self._groups else self.unproven

    def note(self, group: str, gate: Gate, *, agreed: bool) -> None:
        """Take note of an answer that was kept and audited, or of one that would have been kept in a shut group."""
        if (promised := gate.of(group)) is None:
            return
        risk = promised.risk
        with self._lock:
            found = self._groups.setdefault(group, _Watched(shut=self.unproven))
            found.all, found.since = (one.with_one(agreed=agreed) for one in (found.all, found.since))
            changes = is_below if found.shut else is_above
            if not changes(found.since, risk):
                return
            since, found.since, found.shut = found.since, Evidence(), not found.shut
        said = f"{since.disagreed} of {since.audited} audited answers differ from the target's, promised is {risk:.1%}"
        if found.shut:
            log.warning("the gate keeps nothing more of %s: %s; calibrate again", group, said)
        else:
            log.warning("the gate keeps answers of %s again: %s", group, said)

    def said(self, group: str) -> Audited | None:
        """What audits have shown of a group, None where nothing is audited."""
        if self.share == 0.0 and not self.unproven:
            return None
        with self._lock:
            found = self._groups.get(group, _Watched(shut=self.unproven))
            return _audited(found)

    def every(self) -> Mapping[str, Audited]:
        """The same of every group that was audited."""
        with self._lock:
            return {name: _audited(found) for name, found in sorted(self._groups.items())}


def _audited(found: _Watched) -> Audited:
    return Audited(
        audited=found.all.audited,
        disagreed=found.all.disagreed,
        at_most=at_most(found.since if found.since.audited else found.all),
        shut=found.shut,
    )
