"""What other threads ask of the engine: each waits in its queue until the pass that is running has ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cutline.cloud.engine.sequence import Event, SessionRequest
from cutline.errors import CutlineError
from cutline.protos.messages import Confirmed, Draft, Finished


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Give a session a slot."""

    name: str
    request: SessionRequest
    drafts: tuple[Draft, ...]
    deliver: Callable[[Event], None]
    asked_at: float  # on the monotonic clock


@dataclass(frozen=True, slots=True)
class OfferDraft:
    """Take a draft, and say when it waits no longer."""

    name: str
    draft: Draft
    taken: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Settle:
    """Take what the next worker of the chain says."""

    name: str
    event: Confirmed | Finished | CutlineError


@dataclass(frozen=True, slots=True)
class CloseSession:
    """End a session: nobody listens any more."""

    name: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End all sessions: the target cannot run any more."""

    why: Exception


class Stop:
    """End the engine."""


Command = OpenSession | OfferDraft | Settle | CloseSession | GiveUp | Stop
