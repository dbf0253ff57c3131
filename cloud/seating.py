"""A new session's slot, what it finds there, and who gives way to it."""

from __future__ import annotations

from collections.abc import Iterable

from cutline.cloud.commands import OpenSession
from cutline.cloud.session import DeepSession, Session
from cutline.cloud.slots import Content, Slots
from cutline.cloud.target import Target


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
