"""The Worker service: turns streams into sessions of the engine, and its events into messages."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any

from cutline.cloud.access.auth import CALLER
from cutline.cloud.access.quota import UNLIMITED, Shares
from cutline.cloud.access.traffic import TrafficMeter
from cutline.cloud.engine.engine import Engine
from cutline.cloud.engine.sessions.session import Event, Forward
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.serving.admission import ReceivedUpload, Reception, ServedSpan
from cutline.cloud.serving.drafts import Drafts
from cutline.cloud.serving.inbox import Inbox
from cutline.cloud.serving.limits import SERVING_LIMITS, ServingLimits
from cutline.cloud.serving.pipeline import NextWorker, Onward
from cutline.cloud.telemetry.answered_session import AnsweredSession
from cutline.cloud.telemetry.observer import NOBODY, Observer
from cutline.cloud.telemetry.session_stats import Account, trace_of
from cutline.errors import CutlineError, InputError, WorkerBusy, WorkerFailed, WorkerUnavailable
from cutline.models.bundle import Manifest
from cutline.models.law.grammars import Grammars
from cutline.protos.channel.credentials import EARLY_KEY
from cutline.protos.codec import description_to_wire, worker_to_wire
from cutline.protos.features import understood
from cutline.protos.messages import Cancel, Confirmed, Description, Draft, Finished, Open, Opened
from cutline.protos.status import status_of
from cutline.protos.tensors import CHUNK
from cutline.protos.v1 import worker_pb2 as pb
from cutline.protos.v1 import worker_pb2_grpc
from cutline.protos.version import package_version

log = logging.getLogger(__name__)

DRAFTS_WAITING = 8  # of a session, for the engine; with more its agent is not read on, and gRPC stops it

Remaining = Callable[[], float | None]  # seconds until a call's deadline


class WorkerServicer(worker_pb2_grpc.WorkerServicer):
    """Serves a `span` of one bundle's target through `engine`; `onward` has the layers after it.

    `shares` says what each tenant may have; without it that is everything. `grammars` compile
    constraints on a worker that has the head.
    """

    def __init__(
        self,
        engine: Engine,
        manifest: Manifest,
        span: ServedSpan,
        *,
        onward: NextWorker | None = None,
        observer: Observer = NOBODY,
        shares: Shares | None = None,
        grammars: Grammars | None = None,
        limits: ServingLimits = SERVING_LIMITS,
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._manifest = manifest
        self._span = span
        self._reception = Reception(manifest, span, image_cache=engine.image_cache, grammars=grammars)
        self._onward = onward
        self._observer = observer
        self._version = package_version()
        self._shares = shares or Shares(lambda _: UNLIMITED, places=engine.max_sessions)
        self._meter = TrafficMeter(self._shares, observer)
        self._open = 0  # streams of sessions
        self._quiet = asyncio.Event()  # while there are none
        self._quiet.set()
        self._draining = False
        self.blocked = ""  # why no new session can be served for now
        self._parting: Counter[str] = Counter()  # streams of each tenant that there was no place for, and that end
        self._probes = 0
        self._noise = os.urandom(CHUNK)  # which nothing on the way can compress

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.Description:
        """What this worker serves."""
        manifest, (start, end) = self._manifest, self._span.layers
        description = Description(
            model=manifest.identity,
            name=manifest.name,
            version=self._version,
            vision_layers=manifest.line.vision,
            decoder_layers=manifest.line.decoder,
            context=self._span.context,
            sessions=self._engine.sessions,
            max_sessions=self._engine.max_sessions,
            start=start,
            end=end,
            queue_seconds=self._engine.queue_seconds,
            draining=self._draining,
            blocked=self.blocked,
            wires=tuple(self._span.wires),
            features=understood(),
        )
        return description_to_wire(description)

    async def Probe(self, request: pb.ProbeRequest, context: Any) -> pb.ProbeAnswer:
        """As many bytes as are asked for, in answer to any."""
        if not request.data and not request.answer:  # a heartbeat: it costs nothing, and none may go unanswered
            return pb.ProbeAnswer()
        if max(len(request.data), request.answer) > CHUNK:
            error = InputError(f"a probe takes {CHUNK} bytes each way at most")
            await context.abort(status_of(error), str(error))
        if self._probes >= self._limits.probes:
            busy = WorkerBusy(f"this worker answers {self._limits.probes} probes already; try again later")
            await context.abort(status_of(busy), str(busy))
        tenant = CALLER.get().tenant
        self._shares.charge(tenant, len(request.data))
        if wait := self._shares.over(tenant):
            over = WorkerBusy(f"too many bytes came; try again in {wait:.1f} seconds")
            await context.abort(status_of(over), str(over))
        self._probes += 1
        context.add_done_callback(self._probed)  # once the answer is on its way, or nobody waits for it
        return pb.ProbeAnswer(data=self._noise[: request.answer])

    def _probed(self, context: Any) -> None:
        del context
        self._probes -= 1

    async def Session(
        self, request_iterator: AsyncIterator[pb.AgentMessage], context: Any
    ) -> AsyncIterator[pb.WorkerMessage]:
        """One conversation, until the answer is complete, the agent cancels, or something is wrong."""
        failure: CutlineError | None = None
        placed = False
        account = Account(CALLER.get().name, trace=trace_of(context.invocation_metadata()))
        async with (
            self._watched(account),
            Inbox(self._meter.up(request_iterator, account), linger=self._limits.linger_seconds) as inbox,
        ):
            try:
                with self._place():
                    placed = True
                    early = any(key == EARLY_KEY for key, _ in context.invocation_metadata() or ())
                    talk = self._converse(inbox, account, context.time_remaining, early=early)
                    async with contextlib.aclosing(talk) as events:
                        async for event in events:
                            self._observer.told(event)
                            account.told(event)
                            yield self._meter.down(worker_to_wire(event), account)
            except CutlineError as error:
                log.debug("a session was refused or failed: %s", error)
                failure = error
            except Exception:
                log.exception("a session failed")
                failure = WorkerFailed("the worker failed on this session; its log says more")
            if failure is not None:
                account.failed(failure)
                yield self._meter.down(worker_to_wire(failure), account)
            # Of those that there is no place for only so many may end slowly.
            tenant = CALLER.get().tenant
            if placed or self._parting[tenant] < self._engine.max_sessions:
                parting = Counter([] if placed else [tenant])
                self._parting += parting
                try:
                    await inbox.drain()
                finally:
                    self._parting -= parting  # and keeps none that is 0
        if failure is not None:
            await context.abort(status_of(failure), str(failure))

    async def drain(self, seconds: float) -> None:
        """Take no new sessions, and return when the open ones have ended, or after so many `seconds`."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), seconds)

    @contextlib.asynccontextmanager
    async def _watched(self, account: Account) -> AsyncIterator[None]:
        self._observer.talking(1)
        self._open += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._observer.talking(-1)
            self._open -= 1
            if not self._open:
                self._quiet.set()
            account.close()
            self._observer.ended(account)

    async def _converse(
        self, inbox: Inbox, account: Account, remaining: Remaining, *, early: bool
    ) -> AsyncGenerator[Opened | Confirmed | Finished]:
        """The events of one session, which the worker before announced `early` or not. Raises CutlineError."""
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        drafts = Drafts(self._span.context)
        async with contextlib.AsyncExitStack() as stack:
            onward: Onward | None = None
            if self._onward is not None:
                caller, wire = CALLER.get().name, self._engine.wire
                onward = Onward(self._onward, wire=wire, remaining=remaining, tenant=caller, trace=account.trace)
                await stack.enter_async_context(onward)
                if early:  # an agent's is opened first: who only connects takes no places further along
                    onward.begin()
            arrival = stack.enter_context(contextlib.ExitStack())
            try:
                async with asyncio.timeout(self._limits.opening_seconds):
                    opening, came_at, upload = await self._read_opening(inbox, account, onward, arrival)
                    uploaded_at = inbox.came_at
            except TimeoutError:
                if account.slowed:
                    raise self._shares.too_much(CALLER.get().tenant) from None
                most = self._limits.opening_seconds
                raise InputError(f"the session's opening took over {most:.0f} seconds to arrive") from None
            answered = self._gathered(opening, upload)
            reader = asyncio.create_task(self._read_drafts(opening, inbox, drafts, events))
            stack.callback(reader.cancel)
            # Drafts that come while the images are prepared join the session's first pass.
            request = await self._prepare(opening, upload, remaining)
            del upload  # it may be large, and the engine is done with it before the session is
            tell = functools.partial(_from_engine, asyncio.get_running_loop())
            passing = self._onward is not None and self._onward.takes_tokens
            ready_at = time.monotonic()
            name = self._engine.open(
                request, () if passing else drafts.held(), functools.partial(tell, events.put_nowait)
            )
            stack.callback(self._engine.close, name)
            request = request.unladen()  # likewise
            if not passing:
                drafts.take = functools.partial(self._offer, name, asyncio.Semaphore(DRAFTS_WAITING), tell)
            forwards: asyncio.Queue[Forward] = asyncio.Queue()
            if onward is not None:
                onward.go(request, functools.partial(self._engine.relay, name))
                passed_on = drafts if passing else None
                forwarder = asyncio.create_task(self._forward(onward, forwards, passed_on, events))
                stack.callback(forwarder.cancel)
            while (event := await events.get()) is not None:
                arrival.close()  # the engine has taken the session, or not
                match event:
                    case CutlineError():
                        if isinstance(event, WorkerBusy):
                            self._shares.found_room(CALLER.get().tenant, found=False)
                        raise event
                    case Forward():
                        forwards.put_nowait(event)
                    case Opened():
                        yield dataclasses.replace(
                            event, upload_seconds=uploaded_at - came_at, prepare_seconds=ready_at - uploaded_at
                        )
                    case _:
                        if answered is not None:
                            answered.told(event)
                        yield event
                        if isinstance(event, Finished):
                            if answered is not None:
                                self._observer.answered(answered)
                            return

    def _gathered(self, opening: Open, upload: ReceivedUpload) -> AnsweredSession | None:
        """What gathers the session's content, if that may be kept: by who asks, and by the tenant's key."""
        tenant = CALLER.get().tenant
        if not (opening.store and self._shares.keeps(tenant)):
            return None
        return AnsweredSession.begun(tenant, opening, upload.files)

    async def _prepare(self, opening: Open, upload: ReceivedUpload, remaining: Remaining) -> SessionRequest:
        """The request, from a thread. Who leaves meanwhile keeps the place until it ends, at the next image."""
        left = remaining()
        if left is not None and left <= 0:
            raise WorkerUnavailable("the opening took all the time that the session had; give it longer")
        deadline = None if left is None else time.monotonic() + left
        gone = threading.Event()
        request = functools.partial(self._reception.request, opening, upload, wanted=lambda: not gone.is_set())
        preparing = asyncio.create_task(asyncio.to_thread(request))
        try:
            return dataclasses.replace(await asyncio.shield(preparing), deadline=deadline)
        finally:
            gone.set()
            await asyncio.wait([preparing])

    async def _forward(
        self,
        there: Onward,
        forwards: asyncio.Queue[Forward],
        early: Drafts | None,
        events: asyncio.Queue[Event | None],
    ) -> None:
        """Send on what comes out of passes, and after the first the `early` drafts: no slow link holds up a cancel."""
        try:
            while True:
                await there.forward(await forwards.get())
                if early is not None:
                    await early.go_to(there.offer)
        except CutlineError as error:
            events.put_nowait(error)
        except Exception:
            log.exception("sending to the next worker failed")
            events.put_nowait(WorkerFailed("the worker failed on this session; its log says more"))

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """A place among the caller's sessions. Raises WorkerBusy, and WorkerUnavailable on a worker that drains."""
        if self._draining:
            raise WorkerUnavailable("this worker is draining; ask another one")
        tenant = CALLER.get().tenant
        with self._shares.session(tenant):
            yield

    async def _read_opening(
        self, inbox: Inbox, account: Account, onward: Onward | None, arrival: contextlib.ExitStack
    ) -> tuple[Open, float, ReceivedUpload]:
        """The opening, when it arrived, and the images or the boundary that follow it; its place goes to `arrival`.

        Raises InputError, ModelMismatch, and WorkerError: but for an upload that had to give way, before there is one.
        """
        opening = await inbox.next()
        if not isinstance(opening, Open):
            raise InputError("the first message of a session must open it")
        came_at = inbox.came_at
        self._reception.check(opening)
        account.asked(opening)  # what is written of it is bounded by now
        caller = CALLER.get()
        opening = dataclasses.replace(opening, priority=opening.priority.at_most(self._shares.highest(caller.tenant)))
        if (busy := self._engine.busy(opening.priority)) is not None:
            self._shares.found_room(caller.tenant, found=False)
            raise busy
        if self._onward is not None and onward is not None and not onward.begun:  # who has a place there may use it
            await self._onward.check()
            onward.begin()
        place = arrival.enter_context(self._shares.arrival(caller.tenant))
        async with place.uploading():
            upload = await self._reception.upload(opening, inbox, caller.name)
        return opening, came_at, upload

    async def _read_drafts(
        self, opening: Open, inbox: Inbox, drafts: Drafts, events: asyncio.Queue[Event | None]
    ) -> None:
        """Take drafts until the agent cancels, ends its side, or sends what does not belong."""
        try:
            while (message := await inbox.next()) is not None:
                match message:
                    case Draft():
                        draft = self._reception.draft(opening, message)
                        if draft.tokens:
                            await drafts.put(draft)
                    case Cancel():
                        events.put_nowait(None)
                        return
                    case _:
                        raise InputError(f"a session that is open takes drafts, not {type(message).__name__}")
        except CutlineError as error:
            events.put_nowait(error)
        except Exception:
            log.exception("reading a session's drafts failed")
            events.put_nowait(WorkerFailed("the worker failed on this session; its log says more"))

    async def _offer(self, name: str, room: asyncio.Semaphore, tell: Callable[..., None], draft: Draft) -> None:
        """Offer a draft to the engine, once it does not have too many of this session."""
        await room.acquire()
        self._engine.offer(name, draft, functools.partial(tell, room.release))


def _from_engine(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *given: object) -> None:
    """Have `callback` called on the event loop: the engine's thread calls this."""
    with contextlib.suppress(RuntimeError):  # the loop has closed: the server stopped first, and nobody listens
        loop.call_soon_threadsafe(callback, *given)
