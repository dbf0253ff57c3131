"""Which rows the next pass has: decided from the sessions as they stand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from cutline.cloud.engine.cost_model import Pacing, PassCost, drafted_rows, prompt_rows, rows_behind, turn
from cutline.cloud.engine.image_features import ImageFeatures
from cutline.cloud.engine.passes import Passes
from cutline.cloud.engine.session_table import SessionTable, late
from cutline.cloud.engine.sessions.session import Session
from cutline.cloud.engine.sessions.session_rows import SessionRows
from cutline.errors import InputError

RECENT_SECONDS = 1.0  # within which a session that was confirmed something will be again


class Scheduler:
    """Decides by what `passes` cost; sessions whose images are still encoded have no rows yet."""

    def __init__(
        self,
        table: SessionTable,
        images: ImageFeatures,
        passes: Passes,
        pacing: Pacing,
        *,
        decodes: bool,
        most_drafted: int | None = None,
    ) -> None:
        """A pass has `most_drafted` rows of a session's draft, if there is a limit."""
        self._table = table
        self._images = images
        self._passes = passes
        self._pacing = pacing
        self._decodes = decodes
        self._most = most_drafted

    def schedule(self) -> list[SessionRows]:
        """The rows of the next pass, none if all wait. Who is out of time, or waits too long for a draft, is ended."""
        now, cost = self._table.now(), self._passes.cost
        for session in self._table:
            if session.late(now):
                self._table.emit(session, late())
        wanted = rows_by_session(
            [session for session in self._table if not self._images.awaits(session)],
            cost,
            self._pacing,
            now - RECENT_SECONDS,
            self._most,
        )
        patience = self._pacing.idle_seconds
        idle = [session for session, rows in wanted.items() if rows is None]
        for session in idle:
            if session.confirmed_at <= now - patience:
                self._table.emit(session, InputError(f"nothing was drafted for {patience:.0f} seconds"))
        self._table.idle_since = min((session.confirmed_at for session in idle), default=math.inf)
        ready = [rows for rows in wanted.values() if rows is not None]
        # What enters before the decoder goes on in one piece: whose images are encoded first is decided there.
        first, behind = by_priority(ready, now - self._pacing.aged_seconds) if self._decodes else (ready, [])
        batch = batched(first, cost, self._pacing, decodes=self._decodes)
        batch += beside(behind, rows_behind(cost, self._pacing))
        for rows in batch:
            self._table.begin(rows.session, now)
        return batch

    def patience(self) -> float | None:
        """Seconds until a session has waited too long, now that all wait; None if there are none.

        That is its deadline, or its `idle_seconds` where it waits for a draft.
        """
        sessions = list(self._table)
        ends = [one.confirmed_at + self._pacing.idle_seconds for one in sessions if one.in_flight is None]
        ends += [one.request.deadline for one in sessions if one.request.deadline is not None]
        return max(0.0, min(ends) - self._table.now()) if ends else None


def rows_by_session(
    sessions: Iterable[Session], cost: PassCost, pacing: Pacing, recent: float, most: int | None = None
) -> dict[Session, SessionRows | None]:
    """What each session that has nothing in flight wants to run, None if it waits for a draft; of that `most` rows.

    Those that were confirmed something after `recent` share a pass's fixed cost, so each verifies fewer drafts.
    """
    landed = [session for session in sessions if session.in_flight is None]
    room = drafted_rows(len(landed), cost, pacing)
    most = room if most is None else min(room, most)
    share = min(1.0, cost.row_share * max(1, sum(session.confirmed_at >= recent for session in landed)))
    return {session: session.rows_to_run(share, most) for session in landed}


def by_priority(wanted: Sequence[SessionRows], aged: float) -> tuple[list[SessionRows], list[SessionRows]]:
    """Those of what is `wanted` that go first, and those behind them that waited since `aged`, the longest first."""
    first = min((_rank(rows) for rows in wanted), default=0)
    behind = [rows for rows in wanted if _rank(rows) > first and rows.session.confirmed_at <= aged]
    return [rows for rows in wanted if _rank(rows) == first], sorted(behind, key=lambda one: one.session.confirmed_at)


def beside(behind: Iterable[SessionRows], room: int) -> list[SessionRows]:
    """What of these goes into a pass with so much `room` for them: those who waited longest, and little of each."""
    batch = []
    for rows in behind:
        if room <= 0:
            break
        batch.append(rows.at_most(room))
        room -= len(batch[-1].tokens)
    return batch


def _rank(rows: SessionRows) -> int:
    return rows.session.request.priority.rank


def batched(wanted: Iterable[SessionRows], cost: PassCost, pacing: Pacing, *, decodes: bool) -> list[SessionRows]:
    """The next pass, of what is `wanted`: all of whoever is answered, and of prompts as much as there is room for.

    Prompts are run in pieces, so that nobody's answer waits long for another's prompt; `turn` says whose comes first. A
    piece is longer than there is room for where rows of a block see each other.
    A span that does not decode has no answers: it takes all.
    """
    batch: list[SessionRows] = []
    prompts: list[SessionRows] = []
    for rows in wanted:
        (prompts if rows.session.opening and decodes else batch).append(rows)
    room = prompt_rows(sum(len(rows.tokens) for rows in batch), cost, pacing)
    for rows in sorted(
        prompts, key=lambda rows: turn(rows.session.confirmed_at, rows.session.request.deadline, pacing)
    ):
        if room > 0:
            batch.append(rows.first(room))
            room -= len(batch[-1].tokens)
    return batch
