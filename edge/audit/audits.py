"""What audits have shown of each group of requests, and which answers the gate may keep of it."""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cutline.edge.audit.evidence import at_most, is_above
from cutline.edge.audit.levels import SHUT, Watched, noted, passed_on, threshold_at
from cutline.edge.audit.record import AuditRecord, read_record, write_record
from cutline.edge.generation.gate import UNFAMILIAR, Gate, Group
from cutline.edge.generation.result import Audited
from cutline.errors import InputError

log = logging.getLogger(__name__)

EARLY_SHARE = 0.25  # of kept answers that is audited where little is known of a group yet ...
EARLY_AUDITS = 100  # ... falling to the share that is set, over so many audits
DOUBTFUL = 1.0  # the strictness from which on so many are audited again
_COIN = 8  # bytes


def check_share(share: float) -> None:
    """Check a share of kept answers that is to be audited. Raises InputError."""
    if not 0.0 <= share <= 1.0:
        raise InputError(f"audit is {share:g}; give the share of kept answers that is audited, 0 to 1")


@dataclass(slots=True)
class Audits:
    """Which kept answers are audited, a `share` of them, and what came of that; for any threads.

    A group is kept more strictly after each answer that differs, or shut (`levels.py`). Of one that is shut, what would
    be kept is compared with the target's answer, which is there anyway. Whose answers are audited is settled by the
    `seed`, and by nothing that an answer says. Of a drafter that is `unproven` every group is shut, until answers
    show that it holds; so are unfamiliar pictures of any drafter.
    """

    share: float = 0.0
    seed: int = field(default_factory=lambda: secrets.randbits(63))
    unproven: bool = False
    _groups: dict[str, Watched] = field(default_factory=dict)
    _written: tuple[Path, AuditRecord] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def due(self, group: str, request_id: str) -> bool:
        """Whether the answer to a request of a group is to be audited, if it is kept.

        The first ones are more often, and those of a group that is kept more strictly than it was calibrated.
        """
        if self.share == 0.0:
            return False
        with self._lock:
            found = self._watched(group)
        early = 1.0 if found.strictness >= DOUBTFUL else 1.0 - found.kept.audited / EARLY_AUDITS
        drawn = hashlib.sha256(f"{self.seed} {request_id}".encode()).digest()[:_COIN]
        share = max(self.share, EARLY_SHARE * early)
        return int.from_bytes(drawn) < share * (1 << 8 * _COIN)

    def keeps(self, group: str, promised: Group, confidence: float) -> bool:
        """Whether what a group's gate would keep is kept, for what audits have shown."""
        with self._lock:
            least = threshold_at(promised.threshold, self._watched(group).strictness)
        return least is not None and confidence >= least

    def shut(self, group: str) -> bool:
        """Whether nothing of a group is kept, for what audits have shown."""
        with self._lock:
            return self._watched(group).shut

    def note(self, group: str, gate: Gate, *, confidence: float, agreed: bool) -> None:
        """Take note of an answer that was kept, or would be if its group were not shut, and was compared."""
        if (promised := gate.of(group)) is None:
            return
        with self._lock:
            before = self._watched(group)
            found = self._groups[group] = noted(
                before, confidence=confidence, calibrated=promised.threshold, risk=promised.risk, agreed=agreed
            )
        _tell(group, promised, before, found)

    def note_unkept(self, group: str, gate: Gate, *, confidence: float, agreed: bool) -> None:
        """The same of one that was not kept for what audits have shown: of a group that is shut these alone tell."""
        if self.share == 0.0 and not self.unproven:  # what is opened is to be watched
            return
        if self.shut(group):
            self.note(group, gate, confidence=confidence, agreed=agreed)
        elif (promised := gate.of(group)) is not None:
            with self._lock:
                before = self._watched(group)
                found = self._groups[group] = passed_on(before)
            _tell(group, promised, before, found)

    def note_unsent(self, group: str) -> None:
        """Take note of a kept answer that was to be audited, and whose bounds let nobody be asked."""
        with self._lock:
            before = self._watched(group)
            self._groups[group] = replace(before, unsent=before.unsent + 1)

    def said(self, group: str, gate: Gate) -> Audited | None:
        """What audits have shown of a group, None where nothing is audited."""
        if self.share == 0.0 and not self.unproven:
            return None
        with self._lock:
            return _audited(self._watched(group), gate.of(group))

    def every(self, gate: Gate) -> Mapping[str, Audited]:
        """The same of every group that was audited."""
        with self._lock:
            return {name: _audited(found, gate.of(name)) for name, found in sorted(self._groups.items())}

    def load(self, file: Path, *, of: str) -> None:
        """Go on from the record in a file, if that is `of` the same calibration."""
        if (found := read_record(file, of=of)) is not None:
            with self._lock:
                self.seed, self._groups = found.seed, dict(found.groups)

    def save(self, file: Path, *, of: str) -> None:
        """Write the record, unless it is as it was written last. Raises StorageError, InputError."""
        with self._lock:
            record = AuditRecord(of=of, seed=self.seed, groups=dict(self._groups))
        if (file, record) != self._written:
            write_record(file, record)
            self._written = file, record

    def _watched(self, group: str) -> Watched:
        shut = self.unproven or group.endswith(UNFAMILIAR)
        return self._groups.get(group, Watched(strictness=SHUT if shut else 0.0))


def _audited(found: Watched, promised: Group | None) -> Audited:
    return Audited(
        audited=found.all.audited,
        disagreed=found.all.disagreed,
        unsent=found.unsent,
        at_most=at_most(found.current),
        shut=found.shut,
        threshold=None if promised is None else threshold_at(promised.threshold, found.strictness),
    )


def _tell(group: str, promised: Group, before: Watched, found: Watched) -> None:
    least, risk = threshold_at(promised.threshold, found.strictness), promised.risk
    said = f"{found.all.disagreed} of {found.all.audited} audited answers differ, promised is {risk:.1%}"
    if found.shut and not before.shut:
        log.warning("the gate keeps nothing more of %s: %s; calibrate again", group, said)
    elif before.shut and not found.shut:
        log.warning("the gate keeps answers of %s again, from a confidence of %.4f on", group, least)
    elif not found.shut and is_above(found.kept, risk) and not is_above(before.kept, risk):
        log.warning("the gate's promise for %s is broken, %s; it keeps from %.4f on now", group, said, least)
