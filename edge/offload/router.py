"""The router: which backend goes on with a generation, one after another, until it is complete; then the drafter alone.

A session that breaks is replayed: the next one is opened with all tokens settled so far, and by the law the answer goes
on as it would have. That costs the opening anew, so a session that worked is worth another try of the same worker too.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from cutline.core.request import Mode
from cutline.edge.generation.conditions import group_of
from cutline.edge.generation.events import Corrected
from cutline.edge.generation.generation import Execution, Generation, Prepared
from cutline.edge.generation.repetition import Repetition
from cutline.edge.generation.result import Decision, Ending, Tail
from cutline.edge.offload.backends.backend import REFUSALS, NoRoom
from cutline.edge.offload.backends.backends import Backends
from cutline.edge.offload.backends.drafter_backend import DrafterBackend
from cutline.edge.offload.backends.own_questions import CannotDraft
from cutline.edge.offload.backends.worker_backend import WorkerBackend
from cutline.edge.offload.recovery import BACK_SECONDS
from cutline.edge.offload.route import Route
from cutline.errors import CutlineError, InputError, WorkerError, WorkerForgot, WorkerUnavailable
from cutline.models.law.sampling import agreeing
from cutline.protos.client import WorkerClient

if TYPE_CHECKING:  # an agent without one loads no HTTP client
    from cutline.edge.offload.backends.upstream_backend import UpstreamBackend

TRIES = 3  # of each worker, for one request
PATIENCE_SECONDS = 1.0  # that a request waits for workers to come back, where none has begun to answer it
RETRY_SECONDS = 0.25  # that an answer waits for a worker to be asked again, before the drafter goes on alone
STEP = 0.05  # seconds after which is looked again whether one may be asked
EARLY_SECONDS = 0.05  # before its time is up that an answer is ended as it is: later its worker would end it as failed
ALONE_TOKENS = 64  # that the drafter may say, late as it is, in place of workers that were waited for in vain
LOOK_SECONDS = 0.5  # at most, after the answer: the agent may go offline meanwhile


class Router:
    """Takes one `prepared` request through `backends`, as its `execution` says; what they append is the `generation`.

    In mode `auto` the drafter proposes a whole answer first, which stands if the gate keeps it.
    """

    def __init__(self, backends: Backends, prepared: Prepared, execution: Execution, generation: Generation) -> None:
        self._backends = backends
        self._workers = backends.contact.workers
        self._prepared = prepared
        self._request = prepared.request
        self._execution = execution
        self._generation = generation
        self._work = backends.models.work(prepared, execution)
        request = prepared.request
        self._open_ended = request.max_tokens is None
        # What keeps to a constraint may well repeat itself: a list of objects has the same keys again and again.
        free = self._open_ended and request.sampling.constraint is None
        self._drafter = DrafterBackend(
            self._work,
            until=generation.began + request.timeout if self._open_ended else math.inf,
            repetition=Repetition() if free else None,
        )
        gate = backends.said(group_of(prepared.request), Decision.NOT_ASKED)
        self._route = Route(generation.began, gate)
        self._tried = Counter[str]()
        self._failure: CutlineError | None = None  # why there is no answer yet
        self._lost_since: float | None = None  # when the first worker was lost, on the monotonic clock
        self._standing_by: str | None = None  # the worker to go on with

    async def run(self) -> Route:
        """Have the whole answer appended. Raises CutlineError."""
        async with self._work.until_ended():
            match self._execution.mode:
                case Mode.EDGE:
                    await self._route.follow(self._drafter, self._generation)
                    self._note_drafted()
                case Mode.AUTO:
                    if not await self._is_kept():
                        await self._pass_on()
                case _:
                    await self._pass_on()
        self._route.ended = self._route.ended or time.perf_counter()
        return self._route

    async def _is_kept(self) -> bool:
        """Whether the gate keeps what the drafter proposes. Raises BundleError."""
        name = group_of(self._request)
        self._backends.check_gate()
        group, kept = self._backends.gate.of(name), False
        if group is not None:  # of a closed one no answer can be kept, so none is waited for
            with suppress(CannotDraft):  # then there is nothing to keep
                await self._drafter.propose(self._generation)
            self._note_drafted()
            kept = group.keeps(self._drafter.drafted, self._generation.stop_tokens)
        if kept and self._backends.gate.pictures is not None:
            name = self._backends.gate.named(name, await self._drafter.pooled())
        sure = self._drafter.confidence
        if kept and group is not None and not self._backends.audits.keeps(name, group, sure):
            kept, self._route.unkept = False, self._backends.worded([one.token for one in self._drafter.drafted])
        if kept:
            self._drafter.keep(self._generation)
        self._route.gate = self._backends.said(name, Decision.KEPT if kept else Decision.PASSED)
        return kept

    def _note_drafted(self) -> None:
        self._generation.parts.lap("edge")
        self._generation.confidence = self._drafter.confidence

    async def _pass_on(self) -> None:
        """Have others answer as far as they will, and the drafter the rest, where it may. Raises CutlineError."""
        generation, upstream = self._generation, self._backends.upstream
        self._backends.check(self._request)
        if self._execution.bounded and self._execution.mode is Mode.AUTO:
            await self._go_on_alone()  # only a plan keeps to its bounds, and there was none
            return
        generation.cold |= self._execution.cut not in ("image", *self._backends.models.ready)
        await self._ask()
        if upstream is not None and self._failure is not None and generation.tokens and not self._workers.offline:
            await self._take_back()
            return
        if generation.complete:
            return
        # Alone, an agent whose every worker has another model would go on so for ever, and nobody would see it.
        if upstream is None and not generation.tokens and (mismatch := self._workers.mismatch) is not None:
            raise mismatch
        if isinstance(self._failure, NoRoom) and not generation.tokens:
            raise self._failure
        if not self._may_go_on_alone:
            raise self._why()
        await self._go_on_alone()

    async def _ask(self) -> None:
        """Have one backend after another go on with the answer, as far as they will. Raises InputError."""
        generation, route, end = self._generation, self._route, time.monotonic() + self._request.timeout
        while not generation.complete and (backend := await self._next(end)) is not None:
            generation.cold |= bool(route.sessions)
            try:
                async with self._until(end):
                    await route.follow(backend, generation)
            except (WorkerError, NoRoom) as error:
                self._failure = error
                self._lost_since = self._lost_since or time.monotonic()
                if isinstance(error, REFUSALS):
                    self._tried[backend.address] = TRIES
                # One that forgot what it had kept is not lost, but takes all of it anew; if that is true.
                if isinstance(error, WorkerForgot) and self._tried[backend.address] == 1:
                    self._standing_by = backend.address
                else:
                    route.lose(backend.address, error, len(generation.tokens))

    @asynccontextmanager
    async def _until(self, end: float) -> AsyncIterator[None]:
        """Where an answer without a number of tokens has begun by the `end` of its time, it ends there as it is."""

        if not self._open_ended:
            yield
            return
        loop, bound = asyncio.get_running_loop(), asyncio.timeout(None)

        def stop() -> None:
            if self._generation.tokens:
                bound.reschedule(loop.time())

        timer = loop.call_later(end - EARLY_SECONDS - time.monotonic(), stop)
        try:
            async with bound:
                yield
        except TimeoutError:
            if not bound.expired():
                raise
            self._generation.cut_short = Ending.DEADLINE
        finally:
            timer.cancel()

    async def _next(self, end: float) -> WorkerBackend | UpstreamBackend | None:
        """The backend to ask now, None where none is left: each worker several times, an upstream once."""
        if self._backends.upstream is None:
            client = await self._client(end)
            return None if client is None else self._worker(client, end)
        left = self._request.timeout - (time.perf_counter() - self._generation.began)
        backend = self._backends.upstream_backend(self._prepared, self._execution, seconds=left)
        if self._workers.offline or self._tried:
            return None
        self._tried[backend.address] += 1
        return backend

    def _worker(self, client: WorkerClient, end: float) -> WorkerBackend:
        """A worker to ask, while another stands by."""
        self._tried[client.address] += 1
        self._standing_by = self._workers.stand_by(but={client.address, *_spent(self._tried)})
        others = partial(self._may_ask_another, client.address)
        return self._worker_backend(client, end - time.monotonic(), others)

    def _worker_backend(
        self, client: WorkerClient, seconds: float, others: Callable[[], bool] = lambda: False
    ) -> WorkerBackend:
        return WorkerBackend(
            client=client,
            contact=self._backends.contact,
            prepared=self._prepared,
            execution=self._execution,
            work=self._work,
            exact=self._execution.is_exact(self._request, self._backends.models.target),
            drafts=self._execution.mode in (Mode.DRAFT, Mode.AUTO),
            seconds=seconds,
            others=others,
        )

    async def _client(self, end: float) -> WorkerClient | None:
        """The worker to ask now; waits for one where the drafter could not go on at once. None where none is left."""
        # An answer that was under way is worth a moment, one that was not begun is not.
        begun = self._route.begun
        while (now := time.monotonic()) < end:
            patient = not self._may_go_on_alone
            spent = _spent(self._tried)
            client = self._workers.choose(first=self._holder() or self._standing_by, but=spent)
            if client is not None:
                return client
            wait = self._workers.wait(but=spent)
            if not patient:
                end = min(end, now + (RETRY_SECONDS if begun else 0.0))
            elif not begun and self._workers.failed(but=spent):
                # Nobody waits for what is away: it is probed in the background, and whoever asks may come again.
                under_trial = wait == 0.0
                since = self._lost_since or (now if under_trial else now - PATIENCE_SECONDS)
                end = min(end, since + PATIENCE_SECONDS)
            if wait is None or now + (wait := max(wait, STEP)) >= end:
                return None
            await asyncio.sleep(wait)
            self._generation.parts.lap("link")
        return None

    def _holder(self) -> str | None:
        """The worker that keeps the most of the request's images."""
        cut, wire, uploads = self._execution.cut, self._execution.wire, self._backends.contact.uploads
        kept = {address: uploads.known(address, self._prepared, cut, wire) for address in self._workers.addresses}
        return max((one for one in kept if kept[one]), key=kept.__getitem__, default=None)

    def _may_ask_another(self, address: str) -> bool:
        """Whether a worker but the one at `address` could be asked now."""
        return self._workers.wait(but={address, *_spent(self._tried)}) == 0.0

    @property
    def _may_go_on_alone(self) -> bool:
        begun = self._request.mode in (Mode.DRAFT, Mode.AUTO) or bool(self._generation.tokens)
        return begun and not self._request.exact and self._backends.drafter is not None

    def _why(self) -> CutlineError:
        """Why there is no answer; where workers are away, with a time by which one that is back would be asked."""
        error = self._failure or self._nobody()
        if isinstance(error, WorkerUnavailable) and not self._workers.offline:
            error.retry_seconds = error.retry_seconds or BACK_SECONDS
        return error

    def _nobody(self) -> CutlineError:
        if self._workers.offline:
            mode = self._request.mode
            return WorkerUnavailable(f"this agent is offline; mode {mode} needs a worker, edge and auto do not")
        if not self._workers.addresses and self._workers.nobody is not None:
            return self._workers.nobody
        who = ", ".join(self._workers.addresses)
        return WorkerUnavailable(f"no worker of {who} took the question in time; they failed before, or have no room")

    async def _take_back(self) -> None:
        """Have the drafter's own answer in place of half of another model's. Raises WorkerError in mode cloud."""
        if self._request.mode is not Mode.AUTO:
            raise self._why()
        alone = self._leave_to_drafter(self._generation.anew(0))
        self._route.worker = None  # nothing of it is left
        await self._route.follow(self._drafter, alone)
        alone.finish()
        self._generation.tell(Corrected(0, tuple(alone.transcript.tokens)))
        self._generation.take(alone)
        self._end_alone()

    async def _go_on_alone(self) -> None:
        """Have the drafter finish the answer; then, as long as the request allows, a worker correct it."""
        await self._route.follow(self._drafter, self._leave_to_drafter(self._generation))
        self._generation.finish()
        self._end_alone()
        # What bounds a request, a plan alone keeps to, and there was none: its picture would go as it is.
        if self._request.correct_seconds > 0.0 and not self._execution.bounded:
            await self._correct()

    def _leave_to_drafter(self, generation: Generation) -> Generation:
        """The generation, which the drafter goes on with alone from here."""
        self._route.tell_lost(self._generation, None)
        self._route.alone_from, self._route.tail = len(generation.tokens), Tail.UNVERIFIED
        self._drafter.least = ALONE_TOKENS
        return generation

    def _end_alone(self) -> None:
        self._generation.parts.lap("alone")
        self._route.ended = time.perf_counter()

    async def _correct(self) -> None:
        """Have a worker verify what the drafter finished alone, if one can be found while the request allows it.

        It is not waited for where none can come: offline, or once each has failed too often at it.
        """
        assert self._route.alone_from is not None
        believed, check = tuple(self._generation.tokens), self._generation.anew(self._route.alone_from)
        end, tried = time.monotonic() + self._request.correct_seconds, Counter[str]()
        while (left := end - time.monotonic()) > 0.0 and not check.complete:
            spent = _spent(tried)
            client = self._workers.choose(first=self._holder(), but=spent)
            if client is None:
                if (wait := self._workers.wait(but=spent)) is None:
                    break
                await asyncio.sleep(min(left, max(wait, STEP), LOOK_SECONDS))
                continue
            self._work.believed = believed
            try:
                await self._route.follow(self._worker_backend(client, left), check)
            except InputError:  # nobody will take it
                break
            except WorkerUnavailable:  # what is waited for is that there is a link again, however often that is tried
                continue
            except CutlineError as error:
                tried[client.address] += TRIES if isinstance(error, REFUSALS) else 1
        if check.complete:
            check.finish()
            self._take(check)

    def _take(self, check: Generation) -> None:
        """Take the answer that a worker gave for the drafter's."""
        ours, theirs = self._generation.transcript.tokens, check.transcript.tokens
        alike = agreeing([(one.id, one.text) for one in ours], [(one.id, one.text) for one in theirs])
        self._route.tail = Tail.CONFIRMED if len(ours) == len(theirs) == alike else Tail.CORRECTED
        if self._route.tail is Tail.CORRECTED:
            self._generation.tell(Corrected(alike, tuple(theirs[alike:])))
        self._generation.take(check)


def _spent(tried: Counter[str]) -> list[str]:
    """The workers that were asked as often as any is."""
    return [address for address in tried if tried[address] >= TRIES]
