"""Which rows of which sessions the next pass has: decided from the sessions as they stand."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

from cutline.cloud.pace import PassCost, drafted_rows, prompt_rows, turn
from cutline.cloud.session import Rows, Session


def rows_by_session(sessions: Iterable[Session], cost: PassCost, recent: float) -> dict[Session, Rows | None]:
    """What each session that is not flying wants to run, None if it waits for a draft.

    Those that were confirmed something after `recent` share a pass's fixed cost, so each verifies fewer drafts.
    """
    landed = [session for session in sessions if session.flying is None]
    most = drafted_rows(len(landed), cost)
    share = min(1.0, cost.row_share * max(1, sum(session.confirmed_at >= recent for session in landed)))
    return {session: session.rows_to_run(share, most) for session in landed}


def schedule(wanted: Iterable[Rows], cost: PassCost, *, decodes: bool) -> list[Rows]:
    """The next pass, of what is `wanted`: all of whoever is answered, and of prompts as much as there is room for.

    Prompts are run in pieces, so that nobody's answer waits long for another's prompt; `turn` says whose comes first.
    A span that does not decode has no answers: it takes all.
    """
    batch: list[Rows] = []
    prompts: list[Rows] = []
    for rows in wanted:
        (prompts if rows.session.opening and decodes else batch).append(rows)
    room = prompt_rows(sum(len(rows.tokens) for rows in batch), cost)
    for rows in sorted(prompts, key=lambda rows: turn(rows.session.confirmed_at, rows.session.request.deadline)):
        if room > 0:
            batch.append(rows.first(room))
            room -= len(batch[-1].tokens)
    return batch


def patience_of(sessions: Collection[Session], idle: float) -> float | None:
    """Seconds until one of `sessions`, which all wait, has waited too long; None if there are none.

    That is its deadline, or so many seconds `idle` where it waits for a draft.
    """
    ends = [one.confirmed_at + idle for one in sessions if one.flying is None]
    ends += [one.request.deadline for one in sessions if one.request.deadline is not None]
    return max(0.0, min(ends) - time.monotonic()) if ends else None
