"""Which session has a slot, and which rows the next pass has: decided from the sessions as they stand."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

from cutline.cloud.engine.commands import OpenSession
from cutline.cloud.engine.cost_model import PassCost, drafted_rows, prompt_rows, turn
from cutline.cloud.engine.kv_slots import Content, Slots
from cutline.cloud.engine.sequence import DeepSession, Session, SessionRows
from cutline.cloud.model.model_runner import Target


def rows_by_session(sessions: Iterable[Session], cost: PassCost, recent: float) -> dict[Session, SessionRows | None]:
    """What each session that is not flying wants to run, None if it waits for a draft.

    Those that were confirmed something after `recent` share a pass's fixed cost, so each verifies fewer drafts.
    """
    landed = [session for session in sessions if session.flying is None]
    most = drafted_rows(len(landed), cost)
    share = min(1.0, cost.row_share * max(1, sum(session.confirmed_at >= recent for session in landed)))
    return {session: session.rows_to_run(share, most) for session in landed}


def schedule(wanted: Iterable[SessionRows], cost: PassCost, *, decodes: bool) -> list[SessionRows]:
    """The next pass, of what is `wanted`: all of whoever is answered, and of prompts as much as there is room for.

    Prompts are run in pieces, so that nobody's answer waits long for another's prompt; `turn` says whose comes first.
    A span that does not decode has no answers: it takes all.
    """
    batch: list[SessionRows] = []
    prompts: list[SessionRows] = []
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


def seated(command: OpenSession, target: Target, slots: Slots, others: Iterable[Session]) -> Session | None:
    """The session in a slot of its own, with the rows that it goes on from; None where all are taken."""
    request = command.request
    come = Content.of(request) if target.chooses else None  # another worker needs all rows from this one
    place = slots.take(come, {one.slot: one.cached for one in others})
    if place is None:
        return None
    try:
        known = request.pictured and all(picture.last < place.reused for picture in request.pictures)
        if known and request.pictures:
            request = request.unladen()  # its images lie within what is reused
        limit = min(request.prompt_length + request.max_tokens, target.context)
        kind = DeepSession if request.deep else Session
        session = kind(
            command.name,
            request,
            place.slot,
            command.deliver,
            limit,
            cached=place.reused,
            asked_at=command.asked_at,
        )
        if place.reused:
            target.resume(place.slot, place.source, place.reused)
        for draft in command.drafts:
            session.offer(draft.position, draft.tokens, draft.rows)
    except Exception:
        slots.give(place.slot, ())
        raise
    return session


def longest_idle(sessions: Iterable[Session], before: float) -> Session | None:
    """Which of `sessions` has waited longest for a draft, since `before` at the least; None if none has."""
    waiting = (one for one in sessions if one.confirmed_at <= before and one.flying is None)
    return min((one for one in waiting if one.rows_to_run(1.0) is None), key=lambda one: one.confirmed_at, default=None)
