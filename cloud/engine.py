"""The engine: a thread of its own that turns session requests into passes of the target.

Its loop is three verbs: schedule (which rows of which sessions), run (one pass), deliver (what it confirmed).
Other threads only put commands into its queue; events go out through each session's `deliver`, called here.

Where another worker has the head, a pass ends in rows for that one, and the session sits out until what it confirms
comes back as a command: the pass goes on elsewhere. What is drafted meanwhile waits, as it does during a pass.

What goes wrong with one session ends that one. What goes wrong with the engine ends all of them, and whoever comes
later is told so, until the worker is started again.
"""

from __future__ import annotations

import heapq
import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from cutline.cloud.observer import NOBODY, Observer
from cutline.cloud.pace import PassCost, prompt_rows
from cutline.cloud.session import DeepSession, Event, Request, Rows, Session
from cutline.cloud.target import Target
from cutline.errors import CutlineError, InputError, WorkerBusy, WorkerFailed, WorkerUnavailable
from cutline.models.sampling import agreeing, choose
from cutline.models.wire import Wire
from cutline.protos.messages import Confirmed, Draft, Finished, Opened

log = logging.getLogger(__name__)

IDLE_SECONDS = 60.0  # a session that only verifies may wait this long for a draft


@dataclass(frozen=True, slots=True)
class _OpenSession:
    name: str
    request: Request
    drafts: tuple[Draft, ...]
    deliver: Callable[[Event], None]
    asked_at: float  # on the monotonic clock


@dataclass(frozen=True, slots=True)
class _OfferDraft:
    name: str
    draft: Draft
    taken: Callable[[], object]


@dataclass(frozen=True, slots=True)
class _Settle:
    name: str
    event: Confirmed | Finished | CutlineError


@dataclass(frozen=True, slots=True)
class _CloseSession:
    name: str


class _Stop:
    pass


_Command = _OpenSession | _OfferDraft | _Settle | _CloseSession | _Stop


class Engine:
    """Runs sessions on a target. `open`, `offer`, `settle` and `close` may be called from any thread."""

    def __init__(self, target: Target, stop_tokens: Sequence[int], *, observer: Observer = NOBODY) -> None:
        self._target = target
        self._stop_tokens = frozenset(stop_tokens)
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._sessions: dict[str, Session] = {}
        self._waiting: dict[str, list[_OfferDraft]] = {}  # drafts of sessions that are flying
        self._free = list(range(target.slots))  # a heap: sessions in slots near each other share calls
        self._images: dict[str, torch.Tensor] = {}  # of sessions whose prompts are not run to their end
        self._cost = PassCost()
        self._observer = observer
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

    def busy(self) -> WorkerBusy | None:
        """The refusal that a session would meet now, None where it may find room: `open` alone decides."""
        # A command that waits may be a close.
        return None if self._free or not self._commands.empty() else self._no_room()

    def start(self, on_broken: Callable[[], object] = lambda: None) -> None:
        """Start the thread, which calls `on_broken` if it can serve no session any more."""
        self._on_broken = on_broken
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the pass it is in; sessions that are still open get WorkerUnavailable."""
        self._commands.put(_Stop())
        self._thread.join()

    def open(self, request: Request, drafts: Sequence[Draft], deliver: Callable[[Event], None]) -> str:
        """Open a session and return its random name; `drafts` came for it already.

        `deliver` gets Opened or an error, then what is confirmed; it must neither block nor raise.
        """
        name = secrets.token_hex(8)
        self._commands.put(_OpenSession(name, request, tuple(drafts), deliver, time.monotonic()))
        return name

    def offer(self, name: str, draft: Draft, taken: Callable[[], object] = lambda: None) -> None:
        """Offer a draft to a session; of no effect if it has ended or the draft is late.

        `taken` is called once the draft waits no longer, unless the session ends before; it must neither block nor
        raise.
        """
        self._commands.put(_OfferDraft(name, draft, taken))

    def settle(self, name: str, event: Confirmed | Finished | CutlineError) -> None:
        """What the next worker of the chain says of a session; of no effect if it has ended."""
        self._commands.put(_Settle(name, event))

    def close(self, name: str) -> None:
        """End a session and free its slot; of no effect if it has ended."""
        self._commands.put(_CloseSession(name))

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
            batch = self._schedule()
            if batch:
                self._run(batch)
            patience = 0.0 if batch else self._patience()

    def _refuse(self, why: CutlineError) -> None:
        """End all sessions, and those that still come, until told to stop."""
        self._end_all(why)
        while not isinstance(command := self._commands.get(), _Stop):
            if isinstance(command, _OpenSession):
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
                case _OpenSession():
                    self._admit(command)
                case _OfferDraft(name) if name in self._sessions:
                    self._waiting.setdefault(name, []).append(command)
                    self._take_drafts(self._sessions[name])
                case _Settle(name, event) if name in self._sessions:
                    self._take_word(self._sessions[name], event)
                case _CloseSession(name):
                    self._release(name)
                case _Stop():
                    return False
        return True

    def _patience(self) -> float | None:
        """Seconds until a session has waited too long for a draft, when all wait; None if there are none."""
        first = min((one.confirmed_at for one in self._sessions.values() if one.flying is None), default=None)
        return None if first is None else max(0.0, first + IDLE_SECONDS - time.monotonic())

    def _admit(self, command: _OpenSession) -> None:
        if not self._free:
            command.deliver(self._no_room())
            return
        request = command.request
        limit = min(request.prompt_length + request.max_tokens, self._target.context)
        kind = DeepSession if request.deep else Session
        session = kind(command.name, request, heapq.heappop(self._free), command.deliver, limit)
        session.confirmed_at = time.monotonic()
        for draft in command.drafts:
            session.offer(draft.position, draft.tokens, draft.rows)
        self._sessions[command.name] = session
        # The next pass takes it, and begins now.
        command.deliver(Opened(command.name, queue_seconds=time.monotonic() - command.asked_at))

    def _take_drafts(self, session: Session) -> None:
        """Offer the drafts that wait for a session, unless it is flying."""
        if session.flying is None:
            for offer in self._waiting.pop(session.name, ()):
                session.offer(offer.draft.position, offer.draft.tokens, offer.draft.rows)
                offer.taken()

    def _take_word(self, session: Session, event: Confirmed | Finished | CutlineError) -> None:
        """Take what the next worker says."""
        match event:
            case Confirmed() if self._target.decodes:
                try:
                    session.settle(event, self._stop_tokens)
                except CutlineError as error:
                    self._end(session, error)
                else:
                    session.confirmed_at = time.monotonic()
                    self._take_drafts(session)
            case Confirmed():
                session.deliver(event)
            case Finished():
                self._end(session, replace(event, cloud_seconds=event.cloud_seconds + session.seconds))
            case CutlineError():
                self._end(session, event)

    def _no_room(self) -> WorkerBusy:
        return WorkerBusy(f"all {self._target.slots} sessions of this worker are taken; try again later")

    def _release(self, name: str) -> None:
        session = self._sessions.pop(name, None)
        self._waiting.pop(name, None)
        self._images.pop(name, None)
        if session is not None:
            heapq.heappush(self._free, session.slot)

    def _end(self, session: Session, last: Event) -> None:
        self._release(session.name)
        session.deliver(last)

    def _end_all(self, why: CutlineError) -> None:
        for session in tuple(self._sessions.values()):
            self._end(session, why)

    def _fail(self, session: Session, error: Exception) -> None:
        log.error("session %s broke a pass", session.name, exc_info=error)
        failure = WorkerFailed("the worker failed on this session; its log says more")
        failure.__cause__ = error
        self._end(session, failure)

    def _schedule(self) -> list[Rows]:
        """The rows of the next pass: of every session that neither flies nor waits for a draft.

        Prompts are run in pieces, in turn, so that nobody's answer waits long for another's prompt. Who waits too long
        for a draft is ended.
        """
        share, latest = self._cost.row_share, time.monotonic() - IDLE_SECONDS
        batch: list[Rows] = []
        prompts: list[Rows] = []
        sessions = [session for session in self._sessions.values() if session.flying is None]
        for session in sessions:
            rows = session.rows_to_run(min(1.0, share * len(sessions)))  # whose drafts share a pass's fixed cost
            if rows is not None:
                (prompts if session.opening and self._target.decodes else batch).append(rows)
            elif session.confirmed_at <= latest:
                self._end(session, InputError(f"nothing was drafted for {IDLE_SECONDS:.0f} seconds"))
        room, pictured = prompt_rows(sum(len(rows.tokens) for rows in batch), self._cost), False
        for rows in sorted(prompts, key=lambda rows: rows.session.confirmed_at):
            new_images = rows.session.request.boundary is not None
            if room > 0 and not (pictured and new_images):  # the images of one session a pass: they take their time
                batch.append(rows.first(room))
                room -= len(batch[-1].tokens)
                pictured = pictured or new_images
        return batch

    def _run(self, batch: list[Rows]) -> None:
        """One pass of `batch`. A session that breaks it is found by running each alone, and ends alone."""
        began = time.perf_counter()
        try:
            made = self._target.run(batch, [self._image_rows(rows) for rows in batch])
            chosen = [_choose(rows, of) for rows, of in zip(batch, made, strict=True)] if self._target.chooses else None
        except torch.AcceleratorError:
            raise  # no kernel runs on the device after this, for any session
        except Exception as error:
            if len(batch) > 1:
                for rows in batch:
                    self._run([rows])
            else:
                self._fail(batch[0].session, error)
            return
        seconds, count = time.perf_counter() - began, sum(len(rows.tokens) for rows in batch)
        if all(rows.session.request.boundary is None for rows in batch):  # no image was encoded
            self._cost = self._cost.after(count, seconds)
        self._observer.passed(count, seconds)
        for index, rows in enumerate(batch):
            try:
                rows.session.ran(rows, seconds * len(rows.tokens) / count, time.monotonic())
                if rows.partial:
                    rows.session.keep(rows, made[index].numpy() if chosen is None else None)
                    continue
                self._images.pop(rows.session.name, None)
                if chosen is None:
                    rows.session.fly(rows, made[index].numpy())
                else:
                    self._deliver(rows, chosen[index])
            except Exception as error:
                self._fail(rows.session, error)

    def _image_rows(self, rows: Rows) -> torch.Tensor | None:
        """The rows of all the session's images, while its prompt is run."""
        name, request = rows.session.name, rows.session.request
        if name not in self._images and request.boundary is not None:
            self._images[name] = self._target.encode(request.boundary, request.cut, request.grids)
        return self._images.get(name)

    def _deliver(self, rows: Rows, chosen: list[int]) -> None:
        if rows.drafted:
            self._observer.verified(rows.drafted, agreeing(rows.tokens[-rows.drafted :], chosen))
        reason = rows.session.confirm(chosen, rows.drafted, self._stop_tokens)
        if reason is not None:
            self._end(rows.session, rows.session.finished(reason))


def _choose(rows: Rows, logits: torch.Tensor) -> list[int]:
    """The tokens that `logits` (wanted, vocabulary) give. A GPU has run the pass when they are here, not before."""
    sampling = rows.session.request.sampling
    if sampling.temperature == 0.0:
        greedy: list[int] = logits.argmax(-1).tolist()  # one copy from the device instead of one a row
        return greedy
    after = rows.start + len(rows.tokens) - rows.drafted
    return [choose(row, sampling, after + index, xp=torch) for index, row in enumerate(logits)]
