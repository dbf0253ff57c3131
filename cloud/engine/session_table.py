"""The sessions that are open, each in a slot of the target's: who gets one, who loses it, and how a session ends."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence

from cutline.cloud.engine.cost_model import Pacing, Turnover
from cutline.cloud.engine.image_features import ImageFeatures
from cutline.cloud.engine.kv_slots import Content, Slots
from cutline.cloud.engine.listeners import Listeners
from cutline.cloud.engine.passes import FATAL
from cutline.cloud.engine.sessions.deep_session import DeepSession
from cutline.cloud.engine.sessions.session import Event, Session
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.model.model_runner import Target
from cutline.cloud.telemetry.observer import Observer
from cutline.core.request import Priority
from cutline.errors import CutlineError, InputError, WorkerBusy, WorkerFailed, WorkerForgot, WorkerUnavailable
from cutline.protos.messages import Draft, Finished, Opened

log = logging.getLogger(__name__)


class SessionTable:
    """Sessions of `target`, whose events go to `listeners`. The engine's thread calls; any may ask what there is."""

    def __init__(
        self,
        target: Target,
        images: ImageFeatures,
        listeners: Listeners,
        observer: Observer,
        *,
        pacing: Pacing,
        clock: Callable[[], float],
    ) -> None:
        """`clock` gives seconds as time.monotonic does, with which requests say their deadlines."""
        self.now = clock
        self._target = target
        self._images = images
        self._listeners = listeners
        self._safe_seconds = pacing.safe_seconds
        self._observer = observer
        self._sessions: dict[str, Session] = {}
        self._slots = Slots(target.slots, target.kept)
        self._turnover = Turnover(target.slots)
        self.idle_since = math.inf  # on the monotonic clock, of the session that waits longest for a draft

    def __len__(self) -> int:
        """How many sessions are open."""
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        """Those that anybody listens to; sessions may end meanwhile."""
        return iter([one for one in self._sessions.values() if self._listeners.hears(one.name)])

    @property
    def free(self) -> int:
        """How many more there is room for."""
        return self._slots.free

    @property
    def queue_seconds(self) -> float:
        """How long sessions lately waited for their first pass."""
        return self._turnover.waited(self.now())

    def busy(self, priority: Priority) -> WorkerBusy | None:
        """The refusal that one more session would meet now, None where it may find room."""
        if self._slots.free or self.idle_since < self.now() - self._safe_seconds:
            return None
        if any(one.request.priority.rank > priority.rank for one in tuple(self._sessions.values())):
            return None
        return self._turnover.refusal()

    def admit(self, name: str, request: SessionRequest, drafts: Sequence[Draft], asked_at: float) -> None:
        """Begin a session, or refuse it. One that breaks as it begins ends alone, but for FATAL errors."""
        now = self.now()
        if not self._listeners.hears(name):
            return
        if request.deadline is not None and request.deadline <= now:
            self._listeners.emit(name, late())
            return
        try:
            if self._slots.free == 0:
                self._evict(request.priority, now)
            session = self._seated(name, request, drafts, asked_at)
        except FATAL:
            raise
        except Exception as error:
            self._listeners.emit(name, _failure(name, error))
            return
        if session is None:
            self._listeners.emit(name, self._turnover.refusal())
            return
        if session.cached:
            self._observer.reused(session.cached)
        session.confirmed_at = now
        self._sessions[name] = session
        self._images.add(session)
        # It may be in the next pass, which begins now, and is unless prompts take turns.
        waited = self.now() - asked_at
        kept = self._images.keeps(request, encoded=session.request.pictured)
        self.emit(session, Opened(name, queue_seconds=waited, kept=kept, reused=session.cached))

    def begin(self, session: Session, now: float) -> None:
        """Something of a session is run: if that is the first of it, its waiting is over."""
        if not session.begun:
            session.begun = True
            self._turnover.begun(now - session.asked_at, now)
            self._observer.waited(now - session.asked_at)

    def get(self, name: str) -> Session | None:
        """The session of this name, None if it has ended."""
        return self._sessions.get(name)

    def offer(self, name: str, draft: Draft, taken: Callable[[], object]) -> None:
        """Have a session take a draft, or keep it while another one is in flight; of no effect if it has ended."""
        if (session := self.get(name)) is not None:
            session.waiting.append((draft, taken))
            with self.isolated(session):
                session.take_waiting()

    def emit(self, session: Session, event: Event) -> None:
        """Have a session hear `event`. If that is its last one, it has left its slot before."""
        if isinstance(event, Finished | CutlineError):
            self.close(session.name)
        self._listeners.emit(session.name, event)

    @contextlib.contextmanager
    def isolated(self, session: Session) -> Iterator[None]:
        """What goes wrong within ends this session alone, but for FATAL errors.

        What the client asked for and cannot have, such as a constraint that became too complex, it hears as it is.
        """
        try:
            yield
        except FATAL:
            raise
        except Exception as error:
            self.close(session.name, broken=True)
            told = error if isinstance(error, InputError) else _failure(session.name, error)
            self._listeners.emit(session.name, told)

    def close(self, name: str, *, broken: bool = False) -> None:
        """A session is no more; of no effect if it has ended. From one that is `broken` nobody may go on."""
        if (session := self.get(name)) is None:
            return
        self._images.forget(session)
        now = self.now()
        self._slots.give(session.slot, () if broken else session.tokens[: session.cached])
        self._turnover.ended(now - session.asked_at, now)
        self._sessions.pop(name, None)  # last: who is counted no more, on other threads, has left the slot

    def _evict(self, priority: Priority, now: float) -> None:
        """Free a slot for a session of this `priority`, if one may be.

        That is of the session that has waited longest for a draft, if that is too long to be safe; else of the youngest
        of the lowest priority, if that is lower.
        """
        landed = [one for one in self._sessions.values() if one.in_flight is None]
        idle = [one for one in landed if one.rows_to_run(1.0) is None and one.confirmed_at <= now - self._safe_seconds]
        gone = min(idle, key=lambda one: one.confirmed_at, default=None)
        if gone is None:
            behind = [one for one in landed if one.request.priority.rank > priority.rank]
            gone = max(behind, key=lambda one: (one.request.priority.rank, one.asked_at), default=None)
        if gone is not None:
            self._observer.evicted()
            self.emit(gone, WorkerForgot("this worker needed the place; open the session anew"))

    def _seated(self, name: str, request: SessionRequest, drafts: Sequence[Draft], asked_at: float) -> Session | None:
        """A session in a slot of its own, with the rows that it goes on from; None where all are taken."""
        target = self._target
        come = Content.of(request) if target.chooses else None  # another worker needs all rows from this one
        place = self._slots.take(come, {one.slot: one.cached for one in self._sessions.values()})
        if place is None:
            return None
        try:
            known = request.pictured and all(picture.last < place.reused for picture in request.pictures)
            if known and request.pictures:
                request = request.unladen()  # its images lie within what is reused
            limit = min(request.prompt_length + request.max_tokens, target.context)
            kind = DeepSession if request.deep else Session
            session = kind(name, request, place.slot, limit, cached=place.reused, asked_at=asked_at)
            if place.reused:
                target.resume(place.slot, place.source, place.reused)
            for draft in drafts:
                session.offer(draft.position, draft.tokens, draft.rows)
        except Exception:
            self._slots.give(place.slot, ())
            raise
        return session


def late() -> WorkerUnavailable:
    """What a session hears that is out of time."""
    return WorkerUnavailable("did not finish in time; ask again, or give it longer")


def _failure(name: str, error: Exception) -> WorkerFailed:
    """What a session hears that broke; the log has the rest."""
    log.error("session %s broke", name, exc_info=error)
    failure = WorkerFailed("the worker failed on this session; its log says more")
    failure.__cause__ = error
    return failure
