"""The auditor: asks the target about kept answers, one after another, while nobody waits for anything else."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from cutline.core.agreement.measures import Wording
from cutline.core.request import Mode, Priority, Request
from cutline.core.wire import Wire
from cutline.edge.audit.audits import Audits
from cutline.edge.generation.gate import Gate
from cutline.edge.generation.result import Answer, Decision, Ending
from cutline.errors import CutlineError, WorkerError, WorkerUnavailable

log = logging.getLogger(__name__)

WAITING_BYTES = 64 << 20  # of pictures and texts that wait for an audit; of more, the oldest are not audited
REQUEST_BYTES = 4 << 10  # that a request takes besides, about
IDLE_SECONDS = 0.2  # after which is looked again whether nobody else is answered
TRIES = 5  # of an audit that a worker fails at
AWAY_SECONDS = 5.0  # after which a worker that was away is asked again


@dataclass(slots=True, eq=False)
class _Due:
    """An answer that is to be audited."""

    request: Request
    group: str
    wording: Wording
    confidence: float
    tries: int = 0

    @property
    def size(self) -> int:
        texts = sum(len(message.text) for message in self.request.messages)
        return sum(map(len, self.request.images)) + texts + REQUEST_BYTES


class Auditor:
    """Audits answers that the `gate` kept, into `audits`: each is asked for anew, of the target alone.

    `ask` answers a request, `idle` says whether nobody else waits for an answer, `save` keeps what was shown. What was
    kept without a link is audited once that is back. Use as an async context manager.
    """

    def __init__(
        self,
        audits: Audits,
        gate: Callable[[], Gate],
        *,
        ask: Callable[[Request], Awaitable[Answer]],
        idle: Callable[[], bool],
        save: Callable[[], None] = lambda: None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.audits = audits
        self._gate = gate
        self._ask = ask
        self._idle = idle
        self._keep = save
        self._sleep = sleep
        self._due: deque[_Due] = deque()
        self._told = False
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Auditor:
        if self.audits.share > 0.0:
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(_tell_ended)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            await self.save()

    @property
    def waiting(self) -> int:
        """Answers that are still to be audited."""
        return len(self._due)

    def take(self, request: Request, answer: Answer) -> None:
        """Take note of an answer: a kept one may be audited, unless what may go to a worker says nothing exact."""
        gate = answer.gate
        if (
            gate is None
            or gate.decision is not Decision.KEPT
            or not _auditable(request)
            or not self.audits.due(gate.group, answer.request_id)
        ):
            return
        self._due.append(_Due(request, gate.group, answer.wording, answer.confidence or 0.0))
        while sum(one.size for one in self._due) > WAITING_BYTES:
            self._lose(self._due.popleft(), "too many wait")
        self._news.set()

    def begin_anew(self, audits: Audits) -> None:
        """There is another drafter, of which `audits` is to know: what waits says nothing of it."""
        self.audits = audits
        self._due.clear()

    async def _run(self) -> None:
        while True:
            while not self._due:
                self._news.clear()
                await self._news.wait()
            while not self._idle():
                await self._sleep(IDLE_SECONDS)
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
        audits, gate = self.audits, self._gate()
        mode = Mode.CLOUD if one.request.cut == "image" else Mode.SPLIT  # no more goes up than was said may
        request = msgspec.structs.replace(one.request, mode=mode, priority=Priority.BACKGROUND, request_id="", trace="")
        try:
            answer = await self._ask(request)
        except WorkerError as error:
            log.debug("an audit waits: %s", error)
            one.tries += not isinstance(error, WorkerUnavailable)  # a link may be away for long
            await self._sleep(AWAY_SECONDS)
            if one.tries < TRIES or audits is not self.audits:
                self._due.rotate(-1)  # it may fail for this one alone
                return
            self._lose(one, str(error))
        except CutlineError as error:  # what the target does not take cannot be audited
            if audits is self.audits:
                self._lose(one, str(error))
        else:
            if answer.exact and answer.ending is not Ending.DEADLINE:
                agreed = gate.agrees(one.group, one.wording, answer.wording)
                audits.note(one.group, gate, confidence=one.confidence, agreed=agreed)
        if self._due and self._due[0] is one:
            self._due.popleft()

    def _lose(self, one: _Due, why: str) -> None:
        """An audit that is lost speaks against the promise, for it may be that what is wrong is lost more often."""
        log.warning("an audit is lost, and counts as an answer that differs: %s", why)
        self.audits.note(one.group, self._gate(), confidence=one.confidence, agreed=False)


def _auditable(request: Request) -> bool:
    """Whether the target would give its own answer to a request, from what of it may leave the device."""
    lossy = request.noise > 0.0 or request.keep_image_tokens < 1.0 or request.wire is not Wire.FLOAT32
    return request.store and not request.bounded and not (lossy and request.cut != "image")


def _tell_ended(task: asyncio.Task[None]) -> None:
    """Say so where auditing ended by itself, which is a fault of this program: nothing is audited from then on."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("nothing is audited any more: %s", error, exc_info=error)
