"""The engine: a thread of its own that turns session requests into passes of the target.

Its heart is `Engine.step`: admit who came, schedule a pass, run it, confirm what it made. Other threads only put calls
into its queue; what sessions hear goes out through `Listeners`, most of it from the engine's thread.

Where another worker has the head, a pass ends in rows for that one, and the session sits out until what it confirms
comes back as a call: the pass goes on elsewhere. What is drafted meanwhile waits, as it does during a pass.

Images are encoded between passes, in slices, so that they hold up nobody's answer. Work that nobody waits for is given
up at the next look at it: within a layer of an image, and between blocks of layers in a pass.

What goes wrong with one session ends that one. What goes wrong with the engine ends all of them, and whoever comes
later is told so, until the worker is started again.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from cutline.cloud.engine.cost_model import PACING, Pacing
from cutline.cloud.engine.image_cache import ImageCache
from cutline.cloud.engine.image_features import ImageFeatures
from cutline.cloud.engine.listeners import Listeners
from cutline.cloud.engine.passes import Passes
from cutline.cloud.engine.scheduler import Scheduler
from cutline.cloud.engine.session_table import SessionTable
from cutline.cloud.engine.sessions.session import Event
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.engine.sessions.session_rows import SessionRows
from cutline.cloud.engine.verifier import Verifier
from cutline.cloud.model.model_runner import Target
from cutline.cloud.telemetry.observer import NOBODY, Observer
from cutline.cloud.telemetry.watchdog import EngineProgress
from cutline.core.request import Priority
from cutline.core.wire import Wire
from cutline.errors import CutlineError, WorkerBusy, WorkerFailed, WorkerUnavailable
from cutline.protos.messages import Confirmed, Draft, Finished

log = logging.getLogger(__name__)

STOP_SECONDS = 1.0  # for the step that is under way when the engine is to stop


class Engine:
    """Runs sessions on a target. `open`, `offer`, `relay` and `close` may be called from any thread."""

    def __init__(
        self,
        target: Target,
        stop_tokens: Sequence[int],
        *,
        image_cache: ImageCache | None = None,
        pacing: Pacing = PACING,
        clock: Callable[[], float] = time.monotonic,
        observer: Observer = NOBODY,
    ) -> None:
        """Images are kept on `image_cache`; without one they are not."""
        self.image_cache = image_cache or ImageCache(0)
        self.progress = EngineProgress()
        self._target = target
        self._pacing = pacing
        self._listeners = Listeners()
        self._images = ImageFeatures(target, self.image_cache, self._listeners, self.progress, pacing)
        self._table = SessionTable(target, self._images, self._listeners, observer, pacing=pacing, clock=clock)
        self._passes = Passes(target, stop_tokens, self._images, self._listeners, self.progress, observer)
        self._scheduler = Scheduler(
            self._table, self._images, self._passes, pacing, decodes=target.decodes, most_drafted=target.most_drafted
        )
        self._verifier = Verifier(self._table, self._images, observer, stop_tokens=stop_tokens, decodes=target.decodes)
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._patience: float | None = None  # seconds for which the next step may wait for a call
        self._on_broken: Callable[[], object] = lambda: None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def step(self) -> None:
        """Admit who came, schedule a pass, run it, and confirm what it made; then encode a slice of images.

        Raises what ends the engine.
        """
        self._admit()
        batch, began = self._scheduler.schedule(), time.monotonic()
        for outcome in self._passes.run(batch):
            self._verifier.confirm(outcome)
        encoded = self._encode(batch, time.monotonic() - began if batch else self._pacing.slice_seconds)
        self._patience = 0.0 if batch or encoded else self._scheduler.patience()

    @property
    def sessions(self) -> int:
        """How many sessions are open."""
        return len(self._table) if self._listeners.ended is None else 0

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
        return self._table.queue_seconds

    def busy(self, priority: Priority = Priority.NORMAL) -> WorkerBusy | None:
        """The refusal that a session would meet now, None where it may find room: `open` alone decides."""
        return self._table.busy(priority) if self._calls.empty() else None  # a call that waits may close a session

    def open(self, request: SessionRequest, drafts: Sequence[Draft], listener: Callable[[Event], None]) -> str:
        """Open a session and return its random name; `drafts` came for it already.

        `listener` hears Opened, then what is confirmed, then Finished or an error; it must neither block nor raise.
        """
        name = secrets.token_hex(8)
        self._listeners.add(name, listener)
        self._call(partial(self._table.admit, name, request, drafts, self._table.now()))
        return name

    def offer(self, name: str, draft: Draft, taken: Callable[[], object] = lambda: None) -> None:
        """Offer a draft to a session; of no effect if it has ended or the draft is late.

        `taken` is called once the draft waits no longer, unless the session ends before; it must neither block nor
        raise.
        """
        self._call(partial(self._table.offer, name, draft, taken))

    def relay(self, name: str, event: Confirmed | Finished | CutlineError) -> None:
        """What the next worker of the chain says of a session; of no effect if it has ended."""
        self._call(partial(self._verifier.relay, name, event))

    def close(self, name: str) -> None:
        """End a session, which hears no more, and free its slot; of no effect if it has ended."""
        self._listeners.drop(name)
        self._call(partial(self._table.close, name))

    def start(self, on_broken: Callable[[], object] = lambda: None) -> None:
        """Start the thread; `on_broken` is called if no session can be served any more."""
        self._on_broken = on_broken
        self._thread.start()

    def stop(self) -> bool:
        """End the thread at the next look at what it is at; sessions that are still open get WorkerUnavailable.

        False if its step takes longer than STOP_SECONDS: the thread is left behind, and goes with the process.
        """
        self._end(WorkerUnavailable("the worker was stopped; ask another one"))
        self._thread.join(STOP_SECONDS)
        return not self._thread.is_alive()

    def give_up(self, error: Exception) -> None:
        """End all sessions, and those that still come: nothing can be run any more, and nobody need wait for it."""
        if self._listeners.ended is None:
            log.critical("the engine broke; start the worker again", exc_info=error)
            self.abandon(WorkerFailed("the worker broke; its log says more"))

    def abandon(self, why: CutlineError) -> None:
        """End all sessions, and those that still come, with `why`: the thread may hang."""
        self._on_broken()
        self._end(why)

    def _run(self) -> None:
        try:
            while self._listeners.ended is None:
                self.step()
        except Exception as error:
            self.give_up(error)

    def _end(self, why: CutlineError) -> None:
        self._listeners.end(why)
        self._calls.put(lambda: None)  # it may wait for one

    def _call(self, call: Callable[[], None]) -> None:
        """Have the thread make `call`, between two passes."""
        if self._listeners.ended is None:
            self._calls.put(call)

    def _admit(self) -> None:
        """Make the calls that are there, or wait for one as long as there is patience."""
        # What comes meanwhile is for the next step: nobody's flood of drafts keeps the others from their pass.
        for _ in range(max(1, self._calls.qsize())):
            try:
                call = self._calls.get(timeout=self._patience)
            except queue.Empty:
                return
            call()

    def _encode(self, batch: Sequence[SessionRows], seconds: float) -> bool:
        """A slice of the next session's images, of so many `seconds` at most. False if there are none.

        It is shorter where somebody who goes first was in the `batch` before.
        """
        began, pacing = time.monotonic(), self._pacing
        if (session := self._images.next(self._table.now())) is None:
            return False
        if any(rows.session.request.priority.rank < session.request.priority.rank for rows in batch):
            seconds *= pacing.behind_share
        self._table.begin(session, began)
        with self._table.isolated(session):
            self._images.encode(
                session, until=began + min(max(pacing.least_slice_seconds, seconds), pacing.slice_seconds)
            )
        session.seconds += time.monotonic() - began
        return True
