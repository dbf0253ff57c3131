"""A question before the workers, one after another, until one has answered it or none is left; then the drafter alone.

A session that breaks is replayed: the next one is opened with all tokens settled so far, and by the law the answer goes
on as it would have. That costs the opening anew, so a session that worked is worth another try of the same worker too.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from cutline.core.request import Mode
from cutline.core.sampling import GREEDY
from cutline.edge.generation.events import Corrected
from cutline.edge.generation.generation import Generation, Prepared
from cutline.edge.generation.result import Lost, Provenance, Tail
from cutline.edge.inference.drafter import DrafterConversation
from cutline.edge.inference.target_prefix import Crossing
from cutline.edge.offload.heartbeat import FIRST_UPLINK, NOTICE, WorkerSilent, patience
from cutline.edge.offload.recovery import BACK_SECONDS
from cutline.edge.offload.upload_cache import Uploads
from cutline.edge.offload.worker_pool import Workers
from cutline.edge.offload.worker_session import DeviceModels, Exchange
from cutline.errors import (
    AccessDenied,
    CutlineError,
    InputError,
    ModelMismatch,
    PromptError,
    VersionMismatch,
    WorkerError,
    WorkerForgot,
    WorkerUnavailable,
)
from cutline.models.bundle import Manifest
from cutline.models.sampling import agreeing
from cutline.models.vocabulary import Vocabulary
from cutline.protos.client import WorkerClient, WorkerSession
from cutline.protos.messages import Description

if TYPE_CHECKING:  # an agent without one loads no HTTP client
    from cutline.edge.offload.openai_upstream import Upstream, UpstreamSession

TRIES = 3  # of each worker, for one question
PATIENCE_SECONDS = 1.0  # that a question waits for workers to come back, where none has begun to answer it
RETRY_SECONDS = 0.25  # that an answer waits for a worker to be asked again, before the drafter goes on alone
UNFIT = ModelMismatch | AccessDenied | VersionMismatch  # asking such a worker again changes nothing
STEP = 0.05  # seconds after which is looked again whether one may be asked
UNSENT = ("min_p", "repetition_penalty", "logit_bias")  # an upstream has no words for the first two, and other tokens
LOOK_SECONDS = 0.5  # at most, after the answer: the agent may go offline meanwhile


class NoRoom(PromptError):
    """A worker's context has no room for a question and what is answered so far; another's may have."""


@dataclass(slots=True, eq=False, kw_only=True)
class Failover:
    """One question, `prepared`, before `workers` of the target `model`, whose answer makes `progress`.

    `cross` gives what crosses the cut, `converse` a drafting; `drafts` says that the drafter drafts for the workers.
    `mode` is the one asked for, and an `exact` answer is never finished alone. An `upstream` is asked in place of
    workers, and what it says is written with the drafter's `vocabulary`. What came of it: the `worker` that had
    the last word, all `sessions`, those that were `lost`, and if the drafter went on `alone_from` a token, when it
    `ended` (by `time.perf_counter`) and what became of its `tail`.
    """

    manifest: Manifest
    prepared: Prepared
    progress: Generation
    workers: Workers
    uploads: Uploads
    model: str
    mode: Mode
    exact: bool
    drafts: bool
    cross: Callable[[], Crossing | None]
    converse: Callable[[], DrafterConversation]
    vocabulary: Vocabulary
    upstream: Upstream | None = None
    notice: float = NOTICE
    models: DeviceModels = field(default_factory=DeviceModels)
    believed: tuple[int, ...] = ()  # the answer as the drafter has it, as far as it got
    worker: str | None = None
    sessions: list[WorkerSession | UpstreamSession] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    alone_from: int | None = None
    tail: Tail | None = None
    ended: float | None = None
    _failure: CutlineError | None = None  # why there is no answer yet
    _lost_since: float | None = None  # when the first worker was lost, on the monotonic clock
    _loss: Lost | None = None  # of which is not told yet who goes on
    _standing_by: str | None = None  # the worker to go on with
    _crossed: bool = False

    @property
    def bytes_up(self) -> int:
        """Bytes that went to workers."""
        return sum(session.bytes_up for session in self.sessions)

    @property
    def bytes_down(self) -> int:
        """Bytes that came from workers."""
        return sum(session.bytes_down for session in self.sessions)

    async def run(self) -> None:
        """Settle the whole answer. Raises CutlineError."""
        if self.upstream is not None:
            if await self._ask_upstream(self.upstream):
                return
            if self.progress.tokens and not self.workers.offline:
                await self._take_back()
                return
        else:
            await self._ask_workers()
        if self._is_complete(self.progress):
            return
        # Alone, an agent whose every worker has another model would go on so for ever, and nobody would see it.
        if self.upstream is None and not self.progress.tokens and (mismatch := self.workers.mismatch) is not None:
            raise mismatch
        if isinstance(self._failure, NoRoom) and not self.progress.tokens:
            raise self._failure
        if not self._may_go_on_alone:
            raise self._why()
        await self.go_on_alone()

    async def _ask_upstream(self, upstream: Upstream) -> bool:
        """Have another server answer; false where it was lost. Raises InputError for what only a worker can do."""
        cut = self.prepared.question.cut
        if self.exact or cut != "image" or self.mode in (Mode.DRAFT, Mode.SPLIT):
            what = "an exact answer" if self.exact else f"the cut {cut}" if cut != "image" else f"mode {self.mode}"
            raise InputError(f"{what} needs a worker of the target; an upstream answers in modes cloud and auto")
        sampling = self.prepared.question.sampling
        if unsent := [name for name in UNSENT if getattr(sampling, name) != getattr(GREEDY, name)]:
            names = ", ".join(name.replace("_", "-") for name in unsent)
            raise InputError(f"{names} needs a worker of the target; an upstream is asked for nothing of the kind")
        if self.workers.offline:
            return False
        session = upstream.session()
        self.sessions.append(session)
        try:
            await session.answer(self.prepared, self.progress, self.vocabulary, self.manifest.stop_tokens[0])
        except WorkerError as error:
            self._failure = error
            self._lose(upstream.url, error)
            return False
        self.worker = upstream.url
        return True

    async def _ask_workers(self) -> None:
        """Have workers settle the answer, as far as they will."""
        tried = Counter[str]()
        end = time.monotonic() + self.prepared.question.timeout
        while not self._is_complete(self.progress):
            client = await self._next(tried, end)
            if client is None:
                break
            self._tell_lost(client.address)
            tried[client.address] += 1
            self._standing_by = self.workers.stand_by(but={client.address, *self._spent(tried)})
            try:
                others = partial(self._may_ask_another, client.address, tried)
                await self._ask(client, self.progress, end - time.monotonic(), others)
            except (WorkerError, NoRoom) as error:
                self._failure = error
                self._lost_since = self._lost_since or time.monotonic()
                if isinstance(error, UNFIT | NoRoom):
                    tried[client.address] = TRIES
                # One that forgot what it had kept is not lost, but takes all of it anew; if that is true.
                if isinstance(error, WorkerForgot) and tried[client.address] == 1:
                    self._standing_by = client.address
                else:
                    self._lose(client.address, error)

    async def _take_back(self) -> None:
        """Have the drafter's own answer in place of half of another model's. Raises WorkerError in mode cloud."""
        if self.mode is not Mode.AUTO:
            raise self._why()
        self._tell_lost(None)
        self.alone_from, self.tail = 0, Tail.UNVERIFIED
        alone = self.progress.anew(0)
        await self.models.run(self._finish, alone)
        alone.finish()
        self.progress.tell(Corrected(0, tuple(alone.transcript.tokens)))
        self.progress.take(alone)
        self.progress.parts.lap("alone")
        self.ended = time.perf_counter()

    async def go_on_alone(self) -> None:
        """Have the drafter finish the answer; then, as long as the question allows, a worker correct it."""
        self._tell_lost(None)
        self.alone_from, self.tail = len(self.progress.tokens), Tail.UNVERIFIED
        await self.models.run(self._finish, self.progress)
        self.progress.finish()
        self.progress.parts.lap("alone")
        self.ended = time.perf_counter()
        question = self.prepared.question
        # What bounds a question, a plan alone keeps to, and there was none: its picture would go as it is.
        if question.correct_seconds > 0.0 and not question.bounded:
            await self._correct(self.alone_from, question.correct_seconds)

    @property
    def _may_go_on_alone(self) -> bool:
        return not self.exact and (self.mode in (Mode.DRAFT, Mode.AUTO) or bool(self.progress.tokens))

    def _is_complete(self, progress: Generation) -> bool:
        return progress.over or self.prepared.is_complete(progress.tokens, self.manifest.stop_tokens)

    def _why(self) -> CutlineError:
        """Why there is no answer; where workers are away, with a time by which one that is back would be asked."""
        error = self._failure or self._nobody()
        if isinstance(error, WorkerUnavailable) and not self.workers.offline:
            error.retry_seconds = error.retry_seconds or BACK_SECONDS
        return error

    def _nobody(self) -> CutlineError:
        if self.workers.offline:
            return WorkerUnavailable(f"this agent is offline; mode {self.mode} needs a worker, edge and auto do not")
        if not self.workers.addresses and self.workers.nobody is not None:
            return self.workers.nobody
        who = ", ".join(self.workers.addresses)
        return WorkerUnavailable(f"no worker of {who} took the question in time; they failed before, or have no room")

    async def _next(self, tried: Counter[str], end: float) -> WorkerClient | None:
        """The worker to ask now; waits for one where the drafter could not go on at once. None where none is left."""
        # An answer that was under way is worth a moment, one that was not begun is not.
        begun = bool(self.sessions) and self.sessions[-1].answered
        while (now := time.monotonic()) < end:
            patient = not self._may_go_on_alone
            spent = self._spent(tried)
            client = self.workers.choose(first=self._holder() or self._standing_by, but=spent)
            if client is not None:
                return client
            wait = self.workers.wait(but=spent)
            if not patient:
                end = min(end, now + (RETRY_SECONDS if begun else 0.0))
            elif not begun and self.workers.failed(but=spent):
                # Nobody waits for what is away: it is probed in the background, and whoever asks may come again.
                under_trial = wait == 0.0
                since = self._lost_since or (now if under_trial else now - PATIENCE_SECONDS)
                end = min(end, since + PATIENCE_SECONDS)
            if wait is None or now + (wait := max(wait, STEP)) >= end:
                return None
            await asyncio.sleep(wait)
            self.progress.parts.lap("link")
        return None

    def _holder(self) -> str | None:
        """The worker that keeps the most of the question's images."""
        question = self.prepared.question
        kept = {
            address: self.uploads.known(address, self.prepared, question.cut, question.wire)
            for address in self.workers.addresses
        }
        return max((one for one in kept if kept[one]), key=kept.__getitem__, default=None)

    def _may_ask_another(self, address: str, tried: Counter[str]) -> bool:
        """Whether a worker but the one at `address` could be asked now."""
        return self.workers.wait(but={address, *self._spent(tried)}) == 0.0

    @staticmethod
    def _spent(tried: Counter[str]) -> list[str]:
        """The workers that were asked as often as any is."""
        return [address for address in tried if tried[address] >= TRIES]

    async def _ask(
        self, client: WorkerClient, progress: Generation, seconds: float, others: Callable[[], bool] = lambda: False
    ) -> None:
        """Have one worker settle the rest of `progress`; `others` are those of `Turn`. Raises CutlineError."""
        exchange, settled, end = None, len(progress.tokens), time.monotonic() + seconds
        try:
            progress.cold |= not client.connected or bool(self.sessions)
            described = await self._describe(client, seconds)
            prepared = self._fitted(described, progress, client.address)
            if not self._crossed:
                self.models.crossing, self._crossed = await self.models.run(self.cross), True
            if self.drafts and self.models.drafting is None:
                self.models.drafting = self.converse()
            exchange = Exchange(
                self.manifest,
                prepared,
                progress,
                self.models,
                self.uploads,
                notice=self.notice,
                uplink=self.workers.uplink(client.address),
                others=others,
                features=described.features,
            )
            await exchange.run(client, self.model, self._left(progress), seconds=max(end - time.monotonic(), STEP))
        except BaseException as error:
            if (exchange is None or exchange.session is None) and not isinstance(error, WorkerError):
                self.workers.drop(client.address)  # the fault is here
            else:
                self.workers.report(client.address, error)
            if isinstance(error, WorkerForgot):
                self.uploads.forget(client.address)
            raise
        else:
            self.workers.report(client.address, None)
            self.prepared = prepared  # where the worker's context has ended, so has the answer
        finally:
            if exchange is not None:
                self._note(client.address, exchange)
            if len(progress.tokens) > settled:
                self.worker = client.address

    async def _describe(self, client: WorkerClient, seconds: float) -> Description:
        """What a worker serves, before anything goes up. Raises WorkerError, also where it does not say so in time."""
        wait = patience(self.notice, ahead=0, uplink=FIRST_UPLINK, connected=client.connected)
        wait = min(wait, max(seconds, STEP))
        try:
            async with asyncio.timeout(wait):
                return await self.workers.describe(client, model=self.model)
        except TimeoutError:
            raise WorkerSilent(
                f"nothing was heard of the worker at {client.address} for {wait:.1f} seconds; is it running, and the "
                "link up?",
                notice=self.notice,
                answered=False,
            ) from None

    def _fitted(self, described: Description, progress: Generation, address: str) -> Prepared:
        """The question as a worker can take it: its context may hold less of an answer. Raises NoRoom."""
        prepared = self.prepared
        if (room := described.context - len(prepared.asked)) <= len(progress.tokens):
            raise NoRoom(
                f"{len(prepared.asked) + len(progress.tokens)} tokens leave no room in the context of "
                f"{described.context} that the worker at {address} has; ask something shorter, or start it with a "
                "larger --context"
            )
        return replace(prepared, limit=min(prepared.limit, room))

    def _note(self, address: str, exchange: Exchange) -> None:
        """Take note of what an exchange with the worker at `address` left."""
        self.believed = exchange.belief.tokens
        self.workers.measured(address, uplink=exchange.measured, rtt=exchange.trip, queue=exchange.queue)
        if exchange.session is not None:
            self.sessions.append(exchange.session)
            self.workers.carried(address, exchange.session.carried)

    def _left(self, progress: Generation) -> tuple[int, ...]:
        """What is believed to follow the tokens that are settled."""
        settled = len(progress.tokens)
        return self.believed[settled:] if agreeing(self.believed, progress.tokens) == settled else ()

    def _lose(self, worker: str, error: CutlineError) -> None:
        """Note that a worker was lost; who goes on is not known yet."""
        session = next((one for one in reversed(self.sessions) if one.address == worker), None)
        silent = 0.0 if session is None else time.monotonic() - session.heard
        self._loss = Lost(
            worker=worker, why=str(error), position=len(self.progress.tokens), silent_ms=silent * 1e3, next=None
        )

    def _tell_lost(self, successor: str | None) -> None:
        if self._loss is not None:
            lost, self._loss = msgspec.structs.replace(self._loss, next=successor), None
            self.lost.append(lost)
            self.progress.tell(lost)

    def _finish(self, progress: Generation) -> None:
        """In a thread: settle the rest of `progress` with the drafter's tokens, beginning with those there are."""
        models = self.models
        if models.drafting is None:
            models.drafting = self.converse()
        for token in self._left(progress):
            if self._is_complete(progress):
                return
            self._settle_alone(progress, token)
        if not self._is_complete(progress):
            for token in models.draft(tuple(progress.tokens), self.prepared.limit - len(progress.tokens)):
                self._settle_alone(progress, token)
                if progress.over:
                    return

    def _settle_alone(self, progress: Generation, token: int) -> None:
        drafted = self.models.drafted.get(len(progress.tokens))
        same = drafted is not None and drafted.token == token
        progress.settle([token], [Provenance.EDGE], [drafted.likelihood if drafted and same else None])

    async def _correct(self, alone_from: int, seconds: float) -> None:
        """Have a worker verify what the drafter finished alone, if one can be found within so many seconds.

        It is not waited for where none can come: offline, or once each has failed too often at it.
        """
        believed = tuple(self.progress.tokens)
        check, end, tried = self.progress.anew(alone_from), time.monotonic() + seconds, Counter[str]()
        while (left := end - time.monotonic()) > 0.0 and not self._is_complete(check):
            spent = self._spent(tried)
            client = self.workers.choose(first=self._holder(), but=spent)
            if client is None:
                if (wait := self.workers.wait(but=spent)) is None:
                    break
                await asyncio.sleep(min(left, max(wait, STEP), LOOK_SECONDS))
                continue
            self.believed = believed
            try:
                await self._ask(client, check, left)
            except InputError:  # nobody will take it
                break
            except WorkerUnavailable:  # what is waited for is that there is a link again, however often that is tried
                continue
            except CutlineError as error:
                tried[client.address] += TRIES if isinstance(error, UNFIT) else 1
        if self._is_complete(check):
            check.finish()
            self._take(check)

    def _take(self, check: Generation) -> None:
        """Take the answer that a worker gave for the drafter's."""
        ours, theirs = self.progress.transcript.tokens, check.transcript.tokens
        alike = agreeing([(one.id, one.text) for one in ours], [(one.id, one.text) for one in theirs])
        self.tail = Tail.CONFIRMED if len(ours) == len(theirs) == alike else Tail.CORRECTED
        if self.tail is Tail.CORRECTED:
            self.progress.tell(Corrected(alike, tuple(theirs[alike:])))
        self.progress.take(check)
