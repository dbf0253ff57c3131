"""A question before a worker: what crosses the cut goes up, drafts follow, and what comes back is settled."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from cutline.core.request import DRAFT_CHUNK
from cutline.edge.generation.generation import Belief, Generation, Prepared
from cutline.edge.inference.drafter import Drafted, DrafterConversation
from cutline.edge.inference.target_prefix import Crossing
from cutline.edge.offload.heartbeat import FIRST_UPLINK, NOTICE, Heartbeat
from cutline.edge.offload.stall_detector import StallDetector
from cutline.edge.offload.upload_cache import Upload, Uploads
from cutline.errors import VersionMismatch, WorkerError
from cutline.models.bundle import Manifest
from cutline.models.sampling import agreeing
from cutline.protos.channel.credentials import TENANT_KEY
from cutline.protos.client import WorkerClient, WorkerSession
from cutline.protos.features import understood
from cutline.protos.messages import (
    Boundary,
    Confirmed,
    Draft,
    ImageChunk,
    Open,
    Opened,
    boundary_chunks,
    draft_chunks,
    image_chunks,
    lacking,
)
from cutline.protos.request_ids import TRACE_KEY

MEASURABLE = 16 << 10  # bytes of an upload that say how fast the link is

Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class DeviceModels:
    """What models of this device may do for one question, one thread at a time, whatever became of who wanted it.

    `crossing` computes what crosses the cut, where something other than the image does; `drafting` drafts, and the
    token that it drafted last for each place of the answer is in `drafted`.
    """

    crossing: Crossing | None = None
    drafting: DrafterConversation | None = None
    drafted: dict[int, Drafted] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)  # nobody waits for it any more
    _turn: threading.Lock = field(default_factory=threading.Lock)

    async def run(self, work: Callable[..., Result], *given: object) -> Result:
        """Have `work` done in a thread, when all that was begun before has ended."""
        return await asyncio.to_thread(self._in_turn, work, *given)

    @contextlib.asynccontextmanager
    async def until_ended(self) -> AsyncIterator[None]:
        """Where this is cancelled, drafting stops at the next token, and has stopped when this is left."""
        try:
            yield
        except asyncio.CancelledError:
            self.over.set()
            await self.run(_nothing)
            raise

    def _in_turn(self, work: Callable[..., Result], *given: object) -> Result:
        with self._turn:
            return work(*given)

    def draft(self, answer: Sequence[int], limit: int) -> Iterator[int]:
        """Tokens that may follow `answer`, as `DrafterConversation.draft` gives them; none without a drafter."""
        if self.drafting is not None and not self.over.is_set():
            for place, one in enumerate(islice(self.drafting.draft(answer, limit), limit), start=len(answer)):
                self.drafted[place] = one
                yield one.token
                if self.over.is_set():
                    return


def _nothing() -> None:
    """What is done when its turn has come."""


@dataclass(slots=True, eq=False)
class Exchange:
    """One question before one worker of a target whose drafter is `manifest`'s, from the tokens settled so far on.

    What is sent is the image, or where `models` have a crossing what crosses the cut; and drafts, if they have a
    drafting. `uploads` knows what the worker keeps. A worker of which nothing is heard for `notice` seconds is given
    up; its link is taken to carry `uplink` bytes a second; it understands `features`. One that says nothing of the
    answer is given up only where there are `others`, see `StallDetector`.
    """

    manifest: Manifest
    prepared: Prepared
    progress: Generation
    models: DeviceModels
    uploads: Uploads = field(default_factory=Uploads)
    notice: float = NOTICE
    uplink: float = FIRST_UPLINK
    others: Callable[[], bool] = lambda: False
    features: Collection[str] = field(default_factory=understood)
    belief: Belief = field(default_factory=Belief)
    session: WorkerSession | None = None
    over: bool = False  # nobody waits for it any more
    measured: float | None = None  # what the link carried, in bytes a second
    trip: float | None = None  # seconds of a round trip, where there was a connection
    queue: float | None = None  # seconds for which the session waited there
    upload: Upload = field(default_factory=Upload)  # to the worker that is asked
    uploaded: int = 0  # bytes of the session with the last of it
    news: asyncio.Event = field(default_factory=asyncio.Event)  # something was settled
    heartbeat: Heartbeat | None = None
    turn: StallDetector | None = None

    async def run(self, client: WorkerClient, model: str, draft: tuple[int, ...], *, seconds: float) -> None:
        """Open a session for `model` with a first `draft`, and settle what is confirmed until the answer is complete.

        Raises InputError, WorkerError: VersionMismatch before anything goes up, and others when that took so many
        `seconds`.
        """
        progress, family = self.progress, self.manifest.family
        self.belief = Belief((*progress.tokens, *draft), len(progress.tokens) + len(draft))
        progress.rounds += 1
        progress.drafted += len(draft)
        if draft:
            progress.drafts.append((len(progress.tokens), self.belief.tokens))
        pack = self.uploads.pack, client.address, self.prepared, self.models.crossing, family
        self.upload = await self.models.run(*pack)
        progress.parts.lap("edge")
        progress.sent, progress.opened, progress.reused_images = [], None, 0
        connected = client.connected
        question = self.prepared.question
        told = (TENANT_KEY, question.tenant), (TRACE_KEY, question.trace)
        metadata = tuple((key, value) for key, value in told if value)
        opening = self._opening(model, draft)
        if lacks := lacking(opening, self.features):
            raise VersionMismatch(
                f"the worker at {client.address} does not understand {', '.join(lacks)}, which this question takes; "
                "upgrade it, or name another"
            )
        session = self.session = client.session(opening, (), timeout=seconds, metadata=metadata)
        self.heartbeat = Heartbeat(session, self.notice, self.uplink, connected)
        self.turn = StallDetector(client.address, self.notice, time.monotonic() + seconds, self.others)
        try:
            await _first_of(self._converse(session, draft), self.heartbeat.run(), self.turn.watch())
        finally:
            self.over = True
            progress.parts.waited(self._told(session), rest="link")

    async def _converse(self, session: WorkerSession, draft: tuple[int, ...]) -> None:
        began = time.perf_counter()
        async with session:
            self.progress.sent.append((began, session.given))
            await _first_of(self._settle(session), self._send(session, draft))

    def _told(self, session: WorkerSession) -> dict[str, float]:
        """Seconds of the session by what the worker said it did with them."""
        parts = dict[str, float]()
        if self.progress.opened is not None:
            opened = self.progress.opened[1]
            parts = {"upload": opened.upload_seconds, "queue": opened.queue_seconds, "cloud": opened.prepare_seconds}
        if session.finished is not None:
            parts["cloud"] = parts.get("cloud", 0.0) + session.finished.cloud_seconds
        return parts

    def _opening(self, model: str, draft: tuple[int, ...]) -> Open:
        prepared, question = self.prepared, self.prepared.question
        return Open(
            model=model,
            tokens=(*prepared.asked, *self.progress.tokens),
            prompt_length=len(prepared.asked),
            max_tokens=prepared.limit,
            cut=question.cut,
            images=len(self.upload.files),
            grids=tuple(one.grid for one in prepared.pixels),
            digests=self.upload.digests,
            known=self.upload.known,
            sampling=question.sampling,
            # Without drafts to verify, a worker that may not decode alone would do nothing.
            effort=1.0 if self.models.drafting is None else question.effort,
            draft=draft,
            likelihoods=question.logprobs is not None,
            alternatives=question.logprobs or 0,
            request_id=question.request_id,
        )

    async def _settle(self, session: WorkerSession) -> None:
        """Settle what the worker confirms, until the answer is complete."""
        events = session.events()
        while not self.progress.over:
            try:
                event = await anext(events, None)
            except WorkerError:
                if self.prepared.is_complete(self.progress.tokens, self.manifest.stop_tokens):
                    return  # it was lost after its last token
                raise
            match event:
                case Opened():
                    self._open(session, event)
                    self._take_turns()
                case Confirmed():
                    self.progress.confirm(event, self.prepared, self.manifest.decoder.vocabulary)
                    self._take_turns()
                    self.news.set()
                case None:
                    return

    def _open(self, session: WorkerSession, opened: Opened) -> None:
        now = time.perf_counter()
        self.progress.opened = now, opened
        self.progress.reused_images = self.upload.known
        if self.heartbeat is not None and self.heartbeat.connected:
            theirs = opened.upload_seconds + opened.prepare_seconds + opened.queue_seconds
            self.trip = max(0.0, now - self.progress.sent[0][0] - theirs)
        self.queue = opened.queue_seconds
        if opened.kept:
            self.uploads.keep(self.upload)
        session.prove(self.uploaded)
        size = sum(size for _, size in self.progress.sent[1:])
        if size >= MEASURABLE and opened.upload_seconds > 0.0:
            self.measured = size / opened.upload_seconds

    def _take_turns(self) -> None:
        """After a word of the worker: whether it can go on, or waits for what this agent sends next."""
        assert self.turn is not None
        crossing, settled = self.models.crossing, len(self.progress.tokens)
        verifies = self.models.drafting is not None and self.prepared.question.effort < 1.0
        waits = settled > 0 and (verifies or (crossing is not None and crossing.deep))
        sent = self.belief.sent if self.belief.after(self.progress.tokens) is self.belief else 0
        if waits and sent <= settled:
            self.turn.ours()
        else:
            self.turn.theirs()

    async def _send(self, session: WorkerSession, draft: tuple[int, ...]) -> None:
        """Send what crosses the cut; then, where more than that is to be sent, keep ahead of the worker for ever."""
        crossing = self.models.crossing
        if crossing is None:
            await self._send_image(session)
        else:
            await self._send_boundary(session, crossing, draft)
        self.uploaded = session.given
        if self.turn is not None:
            self.turn.theirs()
        if self.models.drafting is not None or (crossing is not None and crossing.deep):
            await self._keep_ahead(session)

    async def _send_image(self, session: WorkerSession) -> None:
        for file in self.upload.files:
            for chunk in image_chunks(file):
                await self._upload(session, chunk)

    async def _send_boundary(self, session: WorkerSession, crossing: Crossing, draft: tuple[int, ...]) -> None:
        """Send the opening boundary: inside the decoder each part of it as soon as it is computed."""
        tokens = (*self.progress.tokens, *draft)
        left = len(self.prepared.asked) + len(tokens) if crossing.deep else sum(map(len, self.upload.rows))
        parts = crossing.opening(tokens) if crossing.deep else iter(self.upload.rows)
        while (rows := await self.models.run(next, parts, None)) is not None:
            left -= len(rows)
            for chunk in boundary_chunks(rows, self.prepared.question.wire, more=left > 0):
                await self._upload(session, chunk)

    async def _upload(self, session: WorkerSession, piece: ImageChunk | Boundary) -> None:
        at, before = time.perf_counter(), session.given
        if self.heartbeat is not None:
            await self.heartbeat.before(len(piece.data) if isinstance(piece, ImageChunk) else piece.rows.nbytes)
        await session.upload(piece)
        self.progress.sent.append((at, session.given - before))

    async def _keep_ahead(self, session: WorkerSession) -> None:
        """Send what the worker goes on from: drafts past what is sent, and anew from where one proved wrong.

        At a cut inside the decoder that begins with the row of the token that the worker chose last, and without a
        drafting it is that row alone.
        """
        start, wire, crossing = len(self.prepared.asked), self.prepared.question.wire, self.models.crossing
        while True:
            if (belief := self.belief.after(self.progress.tokens)) is not self.belief:
                self.belief = belief
                self._guess(belief.tokens)
            draft = () if self._is_over(belief) else await self.models.run(self._draft, belief.tokens)
            grown = belief.grown(draft)
            if grown.after(self.progress.tokens) is not grown:
                continue
            if self._is_over(belief) or grown.sent == belief.sent:  # nothing to send before something is settled
                self.news.clear()
                await self.news.wait()
                continue
            pieces: Sequence[Draft]
            if crossing is not None and crossing.deep:
                tokens = grown.tokens[belief.sent :]
                rows = await self.models.run(crossing.again, belief.sent, tokens)
                if grown.after(self.progress.tokens) is not grown:
                    continue
                pieces = list(draft_chunks(start + belief.sent, tokens, rows, wire))
            else:
                # The token before says what the draft builds on: if that was rejected meanwhile, so is the draft.
                base = max(0, len(belief.tokens) - 1)
                pieces = [Draft(start + base, grown.tokens[base:])]
            for piece in pieces:
                await session.offer(piece)
            if self.turn is not None and self.turn.since is None:
                self.turn.theirs()
            if draft:
                self.progress.drafts.append((len(belief.tokens), grown.tokens))
            self.progress.rounds += int(belief.replying)
            self.progress.drafted += len(draft)
            self.belief = grown

    def _is_over(self, belief: Belief) -> bool:
        """Whether the answer would be complete if the belief is right."""
        return self.prepared.is_complete(belief.tokens, self.manifest.stop_tokens)

    def _draft(self, answer: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens that may follow `answer`, none without a drafter; fewer when something else is settled meanwhile."""
        tokens = list(answer)
        for token in self.models.draft(answer, min(DRAFT_CHUNK, self.prepared.limit - len(answer))):
            tokens.append(token)
            if self.over or agreeing(tokens, self.progress.tokens) < len(self.progress.tokens):
                break
            self._guess(tokens)
        return tuple(tokens[len(answer) :])

    def _guess(self, tokens: Sequence[int]) -> None:
        if self.models.drafting is not None:
            self.progress.guess(tokens)


async def _first_of(*coroutines: Coroutine[object, object, None]) -> None:
    """Run them until the first has ended; the others are cancelled.

    The first of them matters most: where another has ended in order it is waited for.
    """
    tasks = [asyncio.create_task(one) for one in coroutines]
    try:
        while not tasks[0].done():
            done, _ = await asyncio.wait([one for one in tasks if not one.done()], return_when=asyncio.FIRST_COMPLETED)
            for one in done - {tasks[0]}:
                one.result()  # there is no more to do, or it failed
        tasks[0].result()
    finally:
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
