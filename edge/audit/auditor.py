"""The auditor: asks the target about kept answers, one after another, while nobody waits for anything else."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from cutline.core.request import Mode, Priority, Request
from cutline.core.wire import Wire
from cutline.edge.audit.audits import Audits
from cutline.edge.audit.spool import AuditSpool, DueAudit, DueHead, new_name
from cutline.edge.generation.gate import Gate
from cutline.edge.generation.result import Answer, Decision, Ending
from cutline.errors import CutlineError, InputError, ModelMismatch, WorkerError, WorkerUnavailable

log = logging.getLogger(__name__)

WAITING_BYTES = 64 << 20  # of pictures and texts that wait for an audit; of more, the oldest are lost
WAITING = 1000  # answers, of more likewise
WAITING_SECONDS = 7 * 24 * 3600.0  # after which one is lost: the world has moved on
REQUEST_BYTES = 4 << 10  # that a request takes besides, about
IDLE_SECONDS = 0.2  # after which is looked again whether nobody else is answered
TRIES = 5  # of an audit that a worker fails at
AWAY_SECONDS = 5.0  # after which a worker that was away is asked again


@dataclass(slots=True, eq=False)
class _Due:
    """An answer that is to be audited, and the name of its file."""

    audit: DueAudit
    name: str
    tries: int = 0

    @property
    def size(self) -> int:
        request = self.audit.request
        texts = sum(len(message.text) for message in request.messages)
        return sum(map(len, request.images)) + texts + REQUEST_BYTES


class Auditor:
    """Audits answers that the `gate` kept, into `audits`: each is asked for anew, of the target alone.

    `gate` gives the gate and its name, `ask` answers a request, `idle` says whether nobody else waits for an answer,
    `save` keeps what was shown. What was kept without a link is audited once that is back; it waits in the `spool`, if
    there is one, over a restart. Where answers are `planned`, one with bounds is audited within them. Use as an async
    context manager.
    """

    def __init__(
        self,
        audits: Audits,
        gate: Callable[[], tuple[Gate, str]],
        *,
        ask: Callable[[Request], Awaitable[Answer]],
        idle: Callable[[], bool],
        save: Callable[[], None] = lambda: None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        spool: AuditSpool | None = None,
        planned: bool = False,
    ) -> None:
        self.audits = audits
        self._gate = gate
        self._ask = ask
        self._idle = idle
        self._keep = save
        self._sleep = sleep
        self._spool = spool
        self._planned = planned
        self._due: deque[_Due] = deque()
        self._bytes = 0  # of all that is due
        self._told = False
        self._mismatch = ""
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Auditor:
        if self.audits.share > 0.0:
            await self._load()
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(_tell_ended)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            await self.save()
        if self._spool is not None:
            await asyncio.to_thread(self._spool.close)

    @property
    def waiting(self) -> int:
        """Answers that are still to be audited."""
        return len(self._due)

    def take(self, request: Request, answer: Answer) -> None:
        """Take note of an answer: a kept one may be audited, unless nobody may be asked, or says nothing exact."""
        gate = answer.gate
        if (
            gate is None
            or gate.decision is not Decision.KEPT
            or not request.store
            or not self.audits.due(gate.group, answer.request_id)
        ):
            return
        if not _may_be_asked(request, planned=self._planned):
            self.audits.note_unsent(gate.group)
            return
        now, (_, of) = time.time(), self._gate()
        head = DueHead(time=now, of=of, group=gate.group, confidence=answer.confidence or 0.0)
        one = _Due(DueAudit(head=head, request=request, wording=answer.wording), new_name(now))
        self._append(one)
        if self._spool is not None:
            self._spool.put(one.name, one.audit)
        self._make_room()
        self._news.set()

    def begin_anew(self, audits: Audits) -> None:
        """There is another drafter, of which `audits` is to know: what waits says nothing of it."""
        self.audits = audits
        while self._due:
            self._drop(self._due[0])

    async def _load(self) -> None:
        """Go on with what waits in the spool."""
        if self._spool is None:
            return
        spool, (_, of), since = self._spool, self._gate(), time.time() - WAITING_SECONDS
        for name, head, audit in await asyncio.to_thread(lambda: list(spool.load(of, since=since))):
            if audit is None:
                self._note_lost(head, "it is torn, or older than a week")
                spool.remove(name)
            else:
                self._append(_Due(audit, name))
        self._make_room()

    def _append(self, one: _Due) -> None:
        self._due.append(one)
        self._bytes += one.size

    def _make_room(self) -> None:
        while len(self._due) > WAITING or self._bytes > WAITING_BYTES:
            self._lose(self._due[0], "too many wait")

    async def _run(self) -> None:
        while True:
            while not self._due:
                self._news.clear()
                await self._news.wait()
            while not self._idle():
                await self._sleep(IDLE_SECONDS)
            if self._due:
                await self._audit(self._due[0])
            await self.save()

    async def save(self) -> None:
        """Have the record written; a disk that is full or fails is told of, and audits go on."""
        try:
            await asyncio.to_thread(self._keep)
        except CutlineError as error:
            if not self._told:  # once, and not after every audit
                log.warning("what audits have shown is not kept for a next start: %s", error)
            self._told = True

    async def _audit(self, one: _Due) -> None:
        audits, (gate, _), head = self.audits, self._gate(), one.audit.head
        if time.time() - head.time > WAITING_SECONDS:
            self._lose(one, "it is older than a week")
            return
        try:
            answer = await self._ask(_anew(one.audit.request))
        except WorkerError as error:
            await self._put_off(one, error)
            return
        except CutlineError as error:
            if one not in self._due:  # it is lost, or there is another drafter
                return
            if one.audit.request.bounded and isinstance(error, InputError):  # no plan keeps to its bounds
                audits.note_unsent(head.group)
                self._drop(one)
            else:  # what the target does not take cannot be audited
                self._lose(one, str(error))
            return
        if one not in self._due:
            return
        if answer.ending is Ending.DEADLINE:
            self._lose(one, "it took too long")
            return
        if answer.exact:
            agreed = gate.agrees(head.group, one.audit.wording, answer.wording)
            audits.note(head.group, gate, confidence=head.confidence, agreed=agreed)
        else:
            audits.note_unsent(head.group)
        self._drop(one)

    async def _put_off(self, one: _Due, error: WorkerError) -> None:
        """Have an audit wait that nobody took, or lose it if that is not for want of a link or of the right model."""
        log.debug("an audit waits: %s", error)
        if isinstance(error, ModelMismatch) and str(error) != self._mismatch:
            self._mismatch = str(error)
            log.warning("audits wait, as another model says nothing of this gate: %s", error)
        one.tries += not isinstance(error, WorkerUnavailable | ModelMismatch)
        await self._sleep(AWAY_SECONDS)
        if one not in self._due:
            return
        if one.tries >= TRIES:
            self._lose(one, str(error))
        elif self._due[0] is one:
            self._due.rotate(-1)  # it may fail for this one alone

    def _lose(self, one: _Due, why: str) -> None:
        self._note_lost(one.audit.head, why)
        self._drop(one)

    def _note_lost(self, head: DueHead, why: str) -> None:
        """An audit that is lost speaks against the promise, for it may be that what is wrong is lost more often."""
        log.warning("an audit is lost, and counts as an answer that differs: %s", why)
        gate, _ = self._gate()
        self.audits.note(head.group, gate, confidence=head.confidence, agreed=False)

    def _drop(self, one: _Due) -> None:
        """It waits no more."""
        self._due.remove(one)
        self._bytes -= one.size
        if self._spool is not None:
            self._spool.remove(one.name)


def _anew(request: Request) -> Request:
    """The request as the target is asked it: no more of it goes up than was said may."""
    mode = Mode.AUTO if request.bounded else Mode.CLOUD if request.cut == "image" else Mode.SPLIT
    return msgspec.structs.replace(
        request,
        mode=mode,
        exact=request.bounded,  # then a plan keeps to the bounds, and asks the target
        max_latency_ms=None,  # nobody waits
        priority=Priority.BACKGROUND,
        request_id="",
        trace="",
    )


def _may_be_asked(request: Request, *, planned: bool) -> bool:
    """Whether the target would give its own answer to a request, from what of it may leave the device."""
    lossy = request.noise > 0.0 or request.keep_image_tokens < 1.0 or request.wire is not Wire.FLOAT32
    return (planned or not request.bounded) and not (lossy and request.cut != "image")


def _tell_ended(task: asyncio.Task[None]) -> None:
    """Say so where auditing ended by itself, which is a fault of this program: nothing is audited from then on."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("nothing is audited any more: %s", error, exc_info=error)
