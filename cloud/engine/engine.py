"""The engine: a thread of its own that turns session requests into passes of the target.

Its loop is three verbs: schedule (which rows of which sessions), run (one pass), deliver (what it confirmed).
Other threads only put commands into its queue; events go out through each session's `deliver`, called here.

Where another worker has the head, a pass ends in rows for that one, and the session sits out until what it confirms
comes back as a command: the pass goes on elsewhere. What is drafted meanwhile waits, as it does during a pass.

Images are encoded between passes, in slices, so that they hold up nobody's answer. Work that nobody waits for is given
up at the next look at it: within a layer of an image, and between blocks of layers in a pass.

What goes wrong with one session ends that one. What goes wrong with the engine ends all of them, and whoever comes
later is told so, until the worker is started again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from cutline.cloud.engine.cancellation import Interest
from cutline.cloud.engine.commands import CloseSession, Command, GiveUp, OfferDraft, OpenSession, Settle, Stop
from cutline.cloud.engine.cost_model import LEAST_SLICE_SECONDS, SLICE_SECONDS, Turnover
from cutline.cloud.engine.image_cache import ImageCache
from cutline.cloud.engine.image_features import Pictures
from cutline.cloud.engine.kv_slots import Slots
from cutline.cloud.engine.passes import FATAL, Broken, Passed, Passes
from cutline.cloud.engine.sampler import likelihoods
from cutline.cloud.engine.scheduler import longest_idle, patience_of, rows_by_session, schedule, seated
from cutline.cloud.engine.sequence import Event, Session, SessionRequest, SessionRows
from cutline.cloud.engine.watchdog import EngineProgress
from cutline.cloud.model.model_runner import Target
from cutline.cloud.telemetry.observer import NOBODY, Observer
from cutline.core.wire import Wire
from cutline.errors import (
    CutlineError,
    InputError,
    WorkerBusy,
    WorkerFailed,
    WorkerForgot,
    WorkerUnavailable,
)
from cutline.models.sampling import agreeing
from cutline.protos.messages import Confirmed, Draft, Finished, Likelihood, Opened

log = logging.getLogger(__name__)

IDLE_SECONDS = 60.0  # a session that only verifies may wait this long for a draft
STOP_SECONDS = 1.0  # for the step that is under way when the engine is to stop
SAFE_SECONDS = 1.0  # for which one that waits keeps its slot, even if another session wants one


class Engine:
    """Runs sessions on a target. `open`, `offer`, `settle` and `close` may be called from any thread."""

    def __init__(
        self,
        target: Target,
        stop_tokens: Sequence[int],
        *,
        image_cache: ImageCache | None = None,
        observer: Observer = NOBODY,
    ) -> None:
        """Images are kept on `image_cache`; without one they are not."""
        self.image_cache = image_cache or ImageCache(0)
        self._target = target
        self._stop_tokens = frozenset(stop_tokens)
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._sessions: dict[str, Session] = {}
        self._waiting: dict[str, list[OfferDraft]] = {}  # drafts of sessions that are flying
        self._slots = Slots(target.slots)
        self._pictures = Pictures(target, self.image_cache)
        self.progress = EngineProgress()
        self._passes = Passes(target, self._stop_tokens, self.progress, observer)
        self._turnover = Turnover(target.slots)
        self._idle_since = math.inf  # on the monotonic clock, of the session that waits longest for a draft
        self._observer = observer
        self._interest = Interest()
        self._given_up: CutlineError | None = None  # why, where another thread found that this one hangs
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    @property
    def sessions(self) -> int:
        """How many sessions are open."""
        return len(self._sessions)

    @property
    def max_sessions(self) -> int:
        """How many there is room for."""
        return self._target.slots

    @property
    def wire(self) -> Wire:
        """The format in which the rows of a pass go on."""
        return self._target.wire

    @property
    def queue_seconds(self) -> float:
        """How long sessions lately waited for their first pass."""
        return self._turnover.waited(time.monotonic())

    def busy(self) -> WorkerBusy | None:
        """The refusal that a session would meet now, None where it may find room: `open` alone decides."""
        # A command that waits may be a close.
        if self._slots.free or not self._commands.empty() or self._idle_since < time.monotonic() - SAFE_SECONDS:
            return None
        return self._turnover.refusal()

    def start(self, on_broken: Callable[[], object] = lambda: None) -> None:
        """Start the thread, which calls `on_broken` if it can serve no session any more."""
        self._on_broken = on_broken
        self._thread.start()

    def stop(self) -> bool:
        """End the thread at the next look at what it is at; sessions that are still open get WorkerUnavailable.

        False if its step takes longer than STOP_SECONDS: the thread is left behind, and goes with the process.
        """
        self._interest.end()
        self._commands.put(Stop())
        self._thread.join(STOP_SECONDS)
        return not self._thread.is_alive()

    def open(self, request: SessionRequest, drafts: Sequence[Draft], deliver: Callable[[Event], None]) -> str:
        """Open a session and return its random name; `drafts` came for it already.

        `deliver` gets Opened or an error, then what is confirmed; it must neither block nor raise.
        """
        name = secrets.token_hex(8)
        self._commands.put(OpenSession(name, request, tuple(drafts), deliver, time.monotonic()))
        if self._given_up is not None:
            deliver(self._given_up)
        return name

    def offer(self, name: str, draft: Draft, taken: Callable[[], object] = lambda: None) -> None:
        """Offer a draft to a session; of no effect if it has ended or the draft is late.

        `taken` is called once the draft waits no longer, unless the session ends before; it must neither block nor
        raise.
        """
        self._commands.put(OfferDraft(name, draft, taken))

    def settle(self, name: str, event: Confirmed | Finished | CutlineError) -> None:
        """What the next worker of the chain says of a session; of no effect if it has ended."""
        self._commands.put(Settle(name, event))

    def close(self, name: str) -> None:
        """End a session and free its slot; of no effect if it has ended."""
        self._interest.close(name)
        self._commands.put(CloseSession(name))

    def give_up(self, why: Exception) -> None:
        """End all sessions, and those that still come: the target cannot run any more, and nobody need wait for it."""
        self._commands.put(GiveUp(why))

    def abandon(self, why: CutlineError) -> None:
        """The thread hangs: end all sessions, and those that still come, without it."""
        self._given_up = why
        self._interest.end()
        self._on_broken()
        self._end_all(why)
        with contextlib.suppress(queue.Empty):
            while True:
                if isinstance(command := self._commands.get_nowait(), OpenSession):
                    command.deliver(why)

    def _loop(self) -> None:
        try:
            self._serve()
        except Exception:
            log.critical("the engine broke; start the worker again", exc_info=True)
            self._on_broken()
            self._refuse(WorkerFailed("the worker broke; its log says more"))
        else:
            self._end_all(WorkerUnavailable("the worker was stopped; ask another one"))

    def _serve(self) -> None:
        patience = None
        while self._take_commands(patience):
            if self._given_up is not None:  # it did not hang for ever
                raise self._given_up
            batch, began = self._schedule(), time.monotonic()
            if batch:
                self._run(batch)
            encodes = self._encode(time.monotonic() - began if batch else SLICE_SECONDS)
            patience = 0.0 if batch or encodes else patience_of(self._sessions.values(), IDLE_SECONDS)

    def _refuse(self, why: CutlineError) -> None:
        """End all sessions, and those that still come, until told to stop."""
        self._end_all(why)
        while not isinstance(command := self._commands.get(), Stop):
            if isinstance(command, OpenSession):
                command.deliver(why)

    def _take_commands(self, patience: float | None) -> bool:
        """Carry out the commands that are there, or wait `patience` seconds for one. False once told to stop."""
        # What comes meanwhile is for the next round: nobody's flood of drafts keeps the others from their pass.
        for _ in range(max(1, self._commands.qsize())):
            try:
                command = self._commands.get(timeout=patience)
            except queue.Empty:
                return True
            match command:
                case OpenSession():
                    self._admit(command)
                case OfferDraft(name) if name in self._sessions:
                    self._waiting.setdefault(name, []).append(command)
                    self._take_drafts(self._sessions[name])
                case Settle(name, event) if name in self._sessions:
                    self._take_word(self._sessions[name], event)
                case CloseSession(name):
                    self._release(name)
                case GiveUp(why):
                    raise why
                case Stop():
                    return False
        return True

    def _admit(self, command: OpenSession) -> None:
        """Begin a session, or refuse it. One that breaks as it begins ends alone."""
        request, now = command.request, time.monotonic()
        if request.deadline is not None and request.deadline <= now:
            command.deliver(_late())
            return
        try:
            if self._slots.free == 0:
                self._evict(now)
            session = seated(command, self._target, self._slots, self._sessions.values())
        except Exception as error:
            log.error("a session broke as it began", exc_info=error)
            command.deliver(WorkerFailed("the worker failed on this session; its log says more"))
            if isinstance(error, FATAL):
                raise
            return
        if session is None:
            command.deliver(self._turnover.refusal())
            return
        if session.cached:
            self._observer.reused(session.cached)
        session.confirmed_at = now
        self._sessions[command.name] = session
        self._pictures.begin(session, lambda: self._interest.none_in([session]))
        # It may be in the next pass, which begins now, and is unless prompts take turns.
        waited = time.monotonic() - command.asked_at
        kept = self._pictures.keeps(command.request, encoded=session.request.pictured)
        command.deliver(Opened(command.name, queue_seconds=waited, kept=kept, reused=session.cached))

    def _evict(self, now: float) -> None:
        """Free the slot of the session that has waited longest for a draft, if that is too long to be safe."""
        if (session := longest_idle(self._sessions.values(), now - SAFE_SECONDS)) is not None:
            self._observer.evicted()
            self._end(session, WorkerForgot("this worker needed the place; open the session anew"))

    def _take_drafts(self, session: Session) -> None:
        """Offer the drafts that wait for a session, unless it is flying."""
        if session.flying is None:
            for offer in self._waiting.pop(session.name, ()):
                try:
                    session.offer(offer.draft.position, offer.draft.tokens, offer.draft.rows)
                except Exception as error:
                    self._fail(session, error)
                    return
                offer.taken()

    def _take_word(self, session: Session, event: Confirmed | Finished | CutlineError) -> None:
        """Take what the next worker says."""
        match event:
            case Confirmed() if self._target.decodes:
                try:
                    session.settle(event, self._stop_tokens)
                except CutlineError as error:
                    self._end(session, error)
                except Exception as error:
                    self._fail(session, error)
                else:
                    session.confirmed_at = time.monotonic()
                    self._take_drafts(session)
            case Confirmed():
                session.deliver(event)
            case Finished():
                self._end(session, replace(event, cloud_seconds=event.cloud_seconds + session.seconds))
            case CutlineError():
                self._end(session, event)

    def _release(self, name: str, *, broken: bool = False) -> None:
        session = self._sessions.get(name)
        self._waiting.pop(name, None)
        self._pictures.forget(name)
        self._interest.forget(name)
        if session is not None:
            now = time.monotonic()
            self._slots.give(session.slot, () if broken else session.tokens[: session.cached])
            self._turnover.ended(now - session.asked_at, now)
            self._sessions.pop(name, None)  # last: who is counted no more, on other threads, has left the slot

    def _end(self, session: Session, last: Event) -> None:
        self._release(session.name)
        session.deliver(last)

    def _end_all(self, why: CutlineError) -> None:
        sessions = tuple(self._sessions.values())
        # Nothing that may have broken is touched before all have heard it.
        self._sessions, self._slots = {}, Slots(self._target.slots)
        for session in sessions:
            session.deliver(why)

    def _fail(self, session: Session, error: Exception) -> None:
        log.error("session %s broke", session.name, exc_info=error)
        failure = WorkerFailed("the worker failed on this session; its log says more")
        failure.__cause__ = error
        self._release(session.name, broken=True)
        session.deliver(failure)

    def _schedule(self) -> list[SessionRows]:
        """The rows of the next pass. Who is out of time, or waits too long for a draft, is ended."""
        now = time.monotonic()
        for session in tuple(self._sessions.values()):
            if session.request.deadline is not None and session.request.deadline <= now:
                self._end(session, _late())
        seen = [session for session in self._sessions.values() if not self._pictures.awaits(session)]
        wanted = rows_by_session(seen, self._passes.cost, now - SAFE_SECONDS)
        idle = [session for session, rows in wanted.items() if rows is None]
        for session in idle:
            if session.confirmed_at <= now - IDLE_SECONDS:
                self._end(session, InputError(f"nothing was drafted for {IDLE_SECONDS:.0f} seconds"))
        self._idle_since = min((session.confirmed_at for session in idle), default=math.inf)
        running = [rows for rows in wanted.values() if rows is not None]
        batch = schedule(running, self._passes.cost, decodes=self._target.decodes)
        for rows in batch:
            self._begin(rows.session, now)
        return batch

    def _begin(self, session: Session, now: float) -> None:
        """Something of a session is run: if that is the first of it, its waiting is over."""
        if not session.begun:
            session.begun = True
            self._turnover.begun(now - session.asked_at, now)
            self._observer.waited(now - session.asked_at)

    def _encode(self, seconds: float) -> bool:
        """A slice of the next session's images, of so many `seconds` at most. False if there are none."""
        if (name := self._pictures.next) is None:
            return False
        session, began = self._sessions[name], time.monotonic()
        self._begin(session, began)
        end = began + min(max(LEAST_SLICE_SECONDS, seconds), SLICE_SECONDS)
        try:
            self._pictures.encode(self.progress, lambda: time.monotonic() > end or self._interest.none_in([session]))
        except FATAL:
            raise
        except Exception as error:
            self._fail(session, error)
        session.seconds += time.monotonic() - began
        return True

    def _run(self, batch: list[SessionRows]) -> None:
        """One pass of `batch`, and what it confirmed. A session that breaks it ends alone."""
        images, sessions = [self._pictures.of(rows.session) for rows in batch], [rows.session for rows in batch]
        for passed in self._passes.run(batch, images, lambda: self._interest.none_in(sessions)):
            match passed:
                case Passed(rows):
                    try:
                        self._after(passed)
                    except Exception as error:
                        self._fail(rows.session, error)
                case Broken(rows, error):
                    self._fail(rows.session, error)

    def _after(self, passed: Passed) -> None:
        """Go on by what a pass made of a session's rows."""
        rows, session = passed.rows, passed.rows.session
        session.ran(rows, passed.seconds, time.monotonic())
        if rows.partial:
            session.keep(rows, passed.made.numpy() if passed.chosen is None else None)
            return
        self._pictures.forget(session.name)
        if passed.chosen is None:
            session.fly(rows, passed.made.numpy())
        else:
            self._deliver(rows, passed.chosen, passed.made)

    def _deliver(self, rows: SessionRows, chosen: list[int], logits: Tensor) -> None:
        session, drafted = rows.session, rows.drafted
        right = agreeing(rows.tokens[-drafted:], chosen) if drafted else 0
        if drafted:
            self._observer.verified(drafted, right)
        told: list[Likelihood] = []
        if session.request.likelihoods:
            told = likelihoods(logits[: right + 1], chosen[: right + 1], session.request.alternatives)
        reason = session.confirm(chosen, drafted, self._stop_tokens, told)
        if reason is not None:
            self._end(session, session.finished(reason))


def _late() -> WorkerUnavailable:
    return WorkerUnavailable("did not finish in time; ask again, or give it longer")
