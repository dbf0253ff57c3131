"""A worker as the agent of the next one, which has the layers after its own: sessions go on there.

The rows that come out of a pass go out as the boundary of the next worker's cut, and what that one confirms comes back
to the engine. An error further along ends a session here with the same kind of error; where its text would name an
address, it names none.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Self

from cutline.cloud.engine.sessions.session import Forward
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.serving.limits import SERVING_LIMITS, ServingLimits
from cutline.core.wire import Wire
from cutline.errors import (
    AccessDenied,
    CutlineError,
    InputError,
    ModelMismatch,
    VersionMismatch,
    WorkerBusy,
    WorkerFailed,
    WorkerUnavailable,
)
from cutline.models.bundle import Manifest
from cutline.protos.channel.connection import ChannelStub
from cutline.protos.channel.credentials import EARLY_KEY, NO_KEYS, TENANT_KEY, AgentKeys
from cutline.protos.client import WorkerClient, WorkerSession
from cutline.protos.messages import (
    SIDES,
    Boundary,
    Confirmed,
    Description,
    Draft,
    Finished,
    Open,
    Opened,
    boundary_chunks,
    draft_chunks,
)
from cutline.protos.request_ids import TRACE_KEY

log = logging.getLogger(__name__)

MOST_NAME = 256  # characters that say for whom a worker asks; it takes no more
SLOWEST_LINK = 100_000.0  # bytes a second between workers: what was sent may hold a heartbeat up for so long

Word = Confirmed | Finished | CutlineError

# What an agent is told of a worker that it never named; another error says what is wrong with the session itself.
_TOLD: dict[type[CutlineError], str] = {
    WorkerUnavailable: "a worker further along the chain does not answer; try again later",
    WorkerBusy: "a worker further along the chain has no room; try again later",
    WorkerFailed: "a worker further along the chain failed on this session; its log says more",
    AccessDenied: "a worker further along the chain does not take this one; its operator must mend that",
    VersionMismatch: "a worker further along the chain is of another version; its operator must upgrade it",
    ModelMismatch: "a worker further along the chain serves another model; connect to another chain",
}
GAP = "the layers of this chain's workers do not meet; its operator must start them with spans that do"


class Gap(InputError):
    """The next worker's layers do not go on where those here end: a fault of the chain's configuration."""


class NextWorker:
    """The worker at `address`, which goes on at the layer `cut` of the model in `manifest`, reached by `keys`."""

    def __init__(
        self,
        address: str,
        manifest: Manifest,
        *,
        cut: str,
        keys: AgentKeys = NO_KEYS,
        limits: ServingLimits = SERVING_LIMITS,
    ) -> None:
        self.limits = limits
        self.manifest = manifest
        self.cut = cut
        self.client = WorkerClient(address, keys)
        # Layers that end before the decoder have no part in a token: it goes on as it came.
        self.takes_tokens = cut in manifest.line.image_cuts

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def describe(self) -> Description:
        """What it serves. Raises WorkerUnavailable, or ModelMismatch or InputError if it cannot go on from here."""
        found = await self.client.describe()
        if (why := misfit(found, self.manifest, self.cut)) is not None:
            raise type(why)(f"the next worker, at {self.client.address}, {why}")
        return found

    async def check(self) -> None:
        """Raises what a session that goes on there would meet now, as far as can be known before it does."""
        line = self.client.line
        try:
            async with asyncio.timeout(2 * self.limits.silence_seconds):  # it may have to be connected to
                found = await self.describe()
        except TimeoutError:
            self.client.leave(line)
            raise WorkerUnavailable(_TOLD[WorkerUnavailable]) from None
        except Gap as error:  # no session here will ever go on: who asks may ask another chain
            raise WorkerUnavailable(GAP) from error
        except InputError as error:
            raise _own(error) from error
        except CutlineError as error:
            log.debug("the next worker takes no session: %s", error)
            raise anonymous(error) from error
        if found.draining:
            raise WorkerUnavailable(_TOLD[WorkerUnavailable])
        if found.blocked:
            raise WorkerUnavailable(found.blocked)


def misfit(found: Description, manifest: Manifest, cut: str) -> CutlineError | None:
    """Why the worker that describes itself as `found` cannot go on at the layer `cut`, if it cannot."""
    if found.model != manifest.identity:
        return ModelMismatch(
            f"serves {found.name} ({found.model[:12]}), not {manifest.name}; start it with this bundle"
        )
    try:
        start, end = manifest.line.place(found.start), manifest.line.place(found.end)
    except ValueError:
        return Gap("does not say which layers it has; start it from this version of Cutline")
    if not start <= manifest.line.place(cut) < end:
        return Gap(f"has the layers {found.start}:{found.end}, but those here end at {cut}")
    return None


class Onward:
    """One session's way on: a session on the next worker, which the first rows open. Use as an async context manager.

    It has its place there from the beginning, so that the worker counts it and does not end before it. `remaining` says
    how many seconds it may take; None is for ever. `tenant` is who asks, and `trace` the agent's trace context: both go
    on with the session.
    """

    def __init__(
        self,
        worker: NextWorker,
        *,
        wire: Wire,
        remaining: Callable[[], float | None],
        tenant: str = "",
        trace: str = "",
    ) -> None:
        # What agents of one tenant leave at the next worker no other's find, though this one asks for all of them.
        told = ((TENANT_KEY, onward_name(tenant)) if tenant else None, (TRACE_KEY, trace) if trace else None)
        self._metadata = ((EARLY_KEY, "1"), *(one for one in told if one is not None))
        self._worker = worker
        self._wire = wire
        self._remaining = remaining
        self._request: SessionRequest | None = None
        self._hears: Callable[[Word], object] | None = None
        self._unheard: list[Word] = []  # before anybody was there to hear it
        self._opened = False
        self._session: WorkerSession | None = None
        self._tasks: list[asyncio.Task[None]] = []  # of that session
        self._renewing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        ending = self._drop()  # before anything is waited for: this may be cancelled again
        if self._renewing is not None:
            self._renewing.cancel()
            ending.append(self._renewing)
        if ending:
            await asyncio.wait(ending)

    @property
    def begun(self) -> bool:
        """Whether it has its place there."""
        return self._session is not None

    def begin(self) -> None:
        """Take the place there. Raises WorkerError where none can be asked for."""
        self._take_place()
        self._renewing = asyncio.create_task(self._renew())

    def go(self, request: SessionRequest, heard: Callable[[Word], object]) -> None:
        """The session is `request`'s; `heard` gets what the next worker confirms, then how it ended."""
        self._request, self._hears = request, heard
        for word in self._unheard:
            heard(word)

    async def forward(self, piece: Forward) -> None:
        """Send what came out of a pass: the first opens the session, the others are drafts. Raises InputError."""
        assert self._session is not None
        if self._opened:
            for draft in draft_chunks(piece.position, piece.tokens, piece.rows, self._wire):
                await self._session.offer(draft)
            return
        self._opened = True
        if self._renewing is not None:
            self._renewing.cancel()
        upload: Iterable[Boundary] = boundary_chunks(piece.rows, self._wire, more=piece.sides is not None)
        if piece.sides is not None:
            upload = chain(upload, boundary_chunks(piece.sides, self._wire, tensor=SIDES))
        await self._session.open(self._opening(piece), upload)

    async def offer(self, draft: Draft) -> None:
        """Pass on a draft as it came, after the first rows: for layers that have no part in a token."""
        if self._opened and self._session is not None:
            await self._session.offer(draft)

    def _take_place(self) -> None:
        client = self._worker.client
        line = client.line
        try:
            session = self._session = client.place(timeout=self._remaining(), metadata=self._metadata)
        except InputError as error:
            raise _own(error) from None
        except CutlineError as error:
            raise anonymous(error) from None
        self._tasks = [asyncio.create_task(one) for one in (self._listen(session), self._watch(session, line))]

    def _drop(self) -> list[asyncio.Task[None]]:
        """Give the place up; what is returned is about to end."""
        ending, self._tasks = self._tasks, []
        for task in ending:
            task.cancel()
        if self._session is not None:
            self._session.cancel()
        return ending

    async def _renew(self) -> None:
        """A worker waits for no opening for ever: take the place anew as often as it would end, until there is one."""
        try:
            while True:
                await asyncio.sleep(self._worker.limits.place_seconds)
                self._drop()
                self._take_place()
        except CutlineError as error:
            self._say(error)

    def _say(self, word: Word) -> None:
        if self._hears is None:
            self._unheard.append(word)
        else:
            self._hears(word)

    def _opening(self, piece: Forward) -> Open:
        request = self._request
        assert request is not None
        return Open(
            model=self._worker.manifest.identity,
            tokens=request.tokens,
            prompt_length=request.prompt_length,
            max_tokens=request.max_tokens,
            cut=self._worker.cut,
            sampling=request.sampling,
            effort=request.effort,
            draft=request.draft if self._worker.takes_tokens else piece.tokens[len(request.tokens) :],
            grids=request.grids,
            times=request.times,
            likelihoods=request.likelihoods,
            alternatives=request.alternatives,
            request_id=request.request_id,
            priority=request.priority,
        )

    async def _listen(self, session: WorkerSession) -> None:
        vocabulary = self._worker.manifest.decoder.vocabulary
        try:
            async for event in session.events():
                if isinstance(event, Confirmed) and max(event.tokens, default=0) >= vocabulary:
                    raise WorkerFailed(f"the next worker confirmed a token outside the vocabulary of {vocabulary}")
                if not isinstance(event, Opened):
                    self._say(event)
        except CutlineError as error:
            log.info("the next worker ended a session: %s", error)
            self._say(anonymous(error))
        except Exception:
            log.exception("listening to the next worker failed")
            self._say(WorkerFailed(_TOLD[WorkerFailed]))

    async def _watch(self, session: WorkerSession, line: ChannelStub) -> None:
        """Notice that the next worker, or the link to it, has died without a word: have it answer heartbeats.

        Also while it says much: an answer shows how much of what was sent is there, which need not be waited for.
        """
        beaten, silence = time.monotonic(), self._worker.limits.silence_seconds
        while session.finished is None:
            await asyncio.sleep(silence / 4)
            heard, now = session.heard, time.monotonic()
            if now - (beaten if session.unproven else max(heard, beaten)) < silence / 2:
                continue
            beaten = now
            patience = silence / 2 + session.unproven / SLOWEST_LINK
            try:
                async with asyncio.timeout(patience):
                    await session.beat()
            except TimeoutError:
                held_up = time.monotonic() - beaten - patience  # this process, whatever the link did
                if session.heard == heard and held_up < silence / 4:
                    log.warning("nothing is heard of the next worker any more")
                    self._say(WorkerUnavailable(_TOLD[WorkerUnavailable]))
                    self._worker.client.leave(line)
                    return


def anonymous(error: CutlineError) -> CutlineError:
    """`error` for the agent, without an address."""
    told = _TOLD.get(type(error))
    if told is not None and isinstance(error, WorkerBusy):
        return WorkerBusy(told, retry_seconds=error.retry_seconds)
    return error if told is None else type(error)(told)


def onward_name(name: str) -> str:
    """What a worker calls by, at the next one, whoever has this `name` with it: that, or if it is too long, its hash.

    A hash is no tenant's own name: it is longer than those may be.
    """
    return name if len(name) <= MOST_NAME else f"sha256-{hashlib.sha256(name.encode()).hexdigest()}"


def _own(error: InputError) -> WorkerFailed:
    """For the agent, of a fault of this worker's: what was asked is in order, the chain or its keys are not."""
    log.error("no session can go on at the next worker: %s", error)
    return WorkerFailed(_TOLD[WorkerFailed])
