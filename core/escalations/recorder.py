"""Keeps escalations in a journal beside the answers: nobody waits for its disk, and no answer fails with it."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec

from cutline.core.escalations.escalation import Escalation
from cutline.core.escalations.folder import EscalationJournal

log = logging.getLogger(__name__)

WAITING_BYTES = 64 << 20  # of entries that wait for the disk; more are lost


class JournalCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What became of entries since the start: `kept` ones, older ones `evicted` for them, and `lost` ones.

    They have `size` bytes now.
    """

    kept: int = 0
    evicted: int = 0
    lost: int = 0
    size: int = 0


class EscalationRecorder:
    """Writes to `journal` in a thread of its own, one entry after another; for any threads."""

    def __init__(self, journal: EscalationJournal) -> None:
        self._journal = journal
        self._thread = ThreadPoolExecutor(1, "journal")
        self._lock = threading.Lock()
        self._waiting = 0
        self._failing = False
        self._counts = JournalCounts(size=journal.size)

    @property
    def counts(self) -> JournalCounts:
        """What became of entries so far."""
        with self._lock:
            return self._counts

    def keep(self, entry: Escalation) -> None:
        """Have an entry stored; never waits and never fails."""
        with self._lock:
            if self._waiting + entry.size > WAITING_BYTES:
                self._count(lost=1)
                return
            self._waiting += entry.size
        self._thread.submit(self._put, entry)

    def close(self) -> None:
        """Store what waits, and let go of the journal."""
        self._thread.shutdown()
        self._journal.close()

    def _put(self, entry: Escalation) -> None:
        try:
            evicted = self._journal.put(entry)
        except OSError as error:
            if not self._failing:  # a full disk stays so for a while
                log.error("the journal keeps nothing until that is mended: %s", error.strerror or error)
            self._failing = True
            with self._lock:
                self._count(lost=1)
        else:
            if self._failing:
                log.warning("the journal keeps answers again")
            self._failing = False
            with self._lock:
                self._count(lost=1) if evicted is None else self._count(kept=1, evicted=evicted)
        finally:
            with self._lock:
                self._waiting -= entry.size

    def _count(self, *, kept: int = 0, evicted: int = 0, lost: int = 0) -> None:
        before = self._counts
        self._counts = JournalCounts(
            kept=before.kept + kept,
            evicted=before.evicted + evicted,
            lost=before.lost + lost,
            size=self._journal.size,
        )
