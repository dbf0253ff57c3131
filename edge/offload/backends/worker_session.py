"""A request before a worker: what crosses the cut goes up, drafts follow, and what comes back is settled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from cutline.core.request import DRAFT_CHUNK
from cutline.edge.generation.generation import Belief, Execution, Generation, Prepared, SentDraft
from cutline.edge.generation.result import DraftedBy
from cutline.edge.inference.target_prefix import Crossing
from cutline.edge.offload.backends.device_models import DeviceWork
from cutline.edge.offload.backends.proposals import better
from cutline.edge.offload.backends.upload_cache import Upload, Uploads
from cutline.edge.offload.heartbeat import FIRST_UPLINK, NOTICE, Heartbeat
from cutline.edge.offload.stall_detector import StallDetector
from cutline.errors import InputError, VersionMismatch, WorkerError
from cutline.models.bundle import Manifest
from cutline.models.law.sampling import agreeing
from cutline.protos.channel.credentials import TENANT_KEY
from cutline.protos.client import WorkerClient, WorkerSession
from cutline.protos.codec import lacking
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
)
from cutline.protos.request_ids import TRACE_KEY

MEASURABLE = 16 << 10  # bytes of an upload that say how fast the link is


@dataclass(slots=True, eq=False)
class Exchange:
    """One request before one worker of the model that is served, `manifest`, from the tokens settled so far on.

    What is sent is the image, or where the device's `work` has a crossing what crosses the cut; and drafts, if it has a
    drafting. `uploads` knows what the worker keeps. A worker of which nothing is heard for `notice` seconds is given
    up; its link is taken to carry `uplink` bytes a second; it understands `features`. One that says nothing of the
    answer is given up only where there are `others`, see `StallDetector`.
    """

    manifest: Manifest
    prepared: Prepared
    execution: Execution
    generation: Generation
    work: DeviceWork
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

    async def run(
        self, client: WorkerClient, model: str, draft: tuple[int, ...], by: DraftedBy, *, seconds: float
    ) -> None:
        """Open a session for `model` with a first `draft`, and settle what is confirmed until the answer is complete.

        Raises InputError, WorkerError: VersionMismatch before anything goes up, and others when that took so many
        `seconds`.
        """
        generation, family = self.generation, self.manifest.family
        self.belief = Belief((*generation.tokens, *draft), len(generation.tokens) + len(draft))
        generation.rounds += 1
        generation.drafted += len(draft)
        if draft:
            generation.drafts.append(SentDraft(len(generation.tokens), self.belief.tokens, by))
        pack = self.uploads.pack, client.address, self.prepared, self.execution, self.work.crossing, family
        self.upload = await self.work.run(*pack)
        generation.parts.lap("edge")
        generation.sent, generation.opened, generation.reused_images = [], None, 0
        connected = client.connected
        request = self.prepared.request
        told = (TENANT_KEY, request.tenant), (TRACE_KEY, request.trace)
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
            generation.parts.waited(self._told(session), rest="link")

    async def _converse(self, session: WorkerSession, draft: tuple[int, ...]) -> None:
        began = time.perf_counter()
        async with session:
            self.generation.sent.append((began, session.given))
            await _first_of(self._settle(session), self._send(session, draft))

    def _told(self, session: WorkerSession) -> dict[str, float]:
        """Seconds of the session by what the worker said it did with them."""
        parts = dict[str, float]()
        if self.generation.opened is not None:
            opened = self.generation.opened[1]
            parts = {"upload": opened.upload_seconds, "queue": opened.queue_seconds, "cloud": opened.prepare_seconds}
        if session.finished is not None:
            parts["cloud"] = parts.get("cloud", 0.0) + session.finished.cloud_seconds
        return parts

    def _opening(self, model: str, draft: tuple[int, ...]) -> Open:
        prepared, request = self.prepared, self.prepared.request
        return Open(
            model=model,
            tokens=(*prepared.asked, *self.generation.tokens),
            prompt_length=len(prepared.asked),
            max_tokens=self.generation.limit,
            cut=self.execution.cut,
            images=len(self.upload.files),
            grids=tuple(one.grid for one in prepared.pixels),
            digests=self.upload.digests,
            known=self.upload.known,
            pieces=prepared.pieces if self.execution.cut == "image" else (),
            times=prepared.times,
            sampling=request.sampling,
            # Without drafts to verify, a worker that may not decode alone would do nothing.
            effort=1.0 if self.work.drafting is None else request.effort,
            draft=draft,
            likelihoods=self.generation.alternatives is not None,
            alternatives=self.generation.alternatives or 0,
            request_id=request.request_id,
            store=request.store,
            priority=request.priority,
        )

    async def _settle(self, session: WorkerSession) -> None:
        """Settle what the worker confirms, until the answer is complete."""
        events = session.events()
        while not self.generation.over:
            try:
                event = await anext(events, None)
            except WorkerError:
                if self.generation.complete:
                    return  # it was lost after its last token
                raise
            match event:
                case Opened():
                    self._open(session, event)
                    self._take_turns()
                case Confirmed():
                    start, vocabulary = len(self.prepared.asked), self.manifest.decoder.vocabulary
                    self.generation.confirm(event, start=start, vocabulary=vocabulary)
                    self._take_turns()
                    self.news.set()
                case None:
                    return

    def _open(self, session: WorkerSession, opened: Opened) -> None:
        now = time.perf_counter()
        self.generation.opened = now, opened
        self.generation.reused_images = self.upload.known
        if self.heartbeat is not None and self.heartbeat.connected:
            theirs = opened.upload_seconds + opened.prepare_seconds + opened.queue_seconds
            self.trip = max(0.0, now - self.generation.sent[0][0] - theirs)
        self.queue = opened.queue_seconds
        if opened.kept:
            self.uploads.keep(self.upload)
        session.prove(self.uploaded)
        size = sum(size for _, size in self.generation.sent[1:])
        if size >= MEASURABLE and opened.upload_seconds > 0.0:
            self.measured = size / opened.upload_seconds

    def _take_turns(self) -> None:
        """After a word of the worker: whether it can go on, or waits for what this agent sends next."""
        assert self.turn is not None
        crossing, settled = self.work.crossing, len(self.generation.tokens)
        verifies = self.work.drafting is not None and self.prepared.request.effort < 1.0
        waits = settled > 0 and (verifies or (crossing is not None and crossing.deep))
        sent = self.belief.sent if self.belief.after(self.generation.tokens) is self.belief else 0
        if waits and sent <= settled:
            self.turn.ours()
        else:
            self.turn.theirs()

    async def _send(self, session: WorkerSession, draft: tuple[int, ...]) -> None:
        """Send what crosses the cut; then, where more than that is to be sent, keep ahead of the worker for ever."""
        crossing = self.work.crossing
        if crossing is None:
            await self._send_image(session)
        else:
            await self._send_boundary(session, crossing, draft)
        self.uploaded = session.given
        if self.turn is not None:
            self.turn.theirs()
        if self.work.proposes or (crossing is not None and crossing.deep):
            await self._keep_ahead(session)

    async def _send_image(self, session: WorkerSession) -> None:
        for file in self.upload.files:
            for chunk in image_chunks(file):
                await self._upload(session, chunk)

    async def _send_boundary(self, session: WorkerSession, crossing: Crossing, draft: tuple[int, ...]) -> None:
        """Send the opening boundary: inside the decoder each part of it as soon as it is computed."""
        tokens = (*self.generation.tokens, *draft)
        left = len(self.prepared.asked) + len(tokens) if crossing.deep else sum(map(len, self.upload.rows))
        parts = crossing.opening(tokens) if crossing.deep else iter(self.upload.rows)
        while (rows := await self.work.run(next, parts, None)) is not None:
            left -= len(rows)
            for chunk in boundary_chunks(rows, self.execution.wire, more=left > 0):
                await self._upload(session, chunk)

    async def _upload(self, session: WorkerSession, piece: ImageChunk | Boundary) -> None:
        at, before = time.perf_counter(), session.given
        if self.heartbeat is not None:
            await self.heartbeat.before(len(piece.data) if isinstance(piece, ImageChunk) else piece.rows.nbytes)
        await session.upload(piece)
        self.generation.sent.append((at, session.given - before))

    async def _keep_ahead(self, session: WorkerSession) -> None:
        """Send what the worker goes on from: drafts past what is sent, and anew from where one proved wrong.

        At a cut inside the decoder that begins with the row of the token that the worker chose last, and without a
        drafting it is that row alone.
        """
        start, wire, crossing = len(self.prepared.asked), self.execution.wire, self.work.crossing
        while True:
            if (belief := self.belief.after(self.generation.tokens)) is not self.belief:
                self.belief = belief
                self._guess(belief.tokens)
            ends = self.generation.completed_by(belief.tokens)  # if the belief is right
            draft, by = ((), None) if ends else await self.work.run(self._draft, belief.tokens)
            grown = belief.grown(draft)
            if grown.after(self.generation.tokens) is not grown:
                continue
            if ends or grown.sent == belief.sent:  # nothing to send before something is settled
                self.news.clear()
                await self.news.wait()
                continue
            pieces: Sequence[Draft]
            if crossing is not None and crossing.deep:
                tokens = grown.tokens[belief.sent :]
                rows = await self.work.run(crossing.again, belief.sent, tokens)
                if grown.after(self.generation.tokens) is not grown:
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
            if by is not None:
                self.generation.drafts.append(SentDraft(len(belief.tokens), grown.tokens, by))
            self.generation.rounds += int(belief.replying)
            self.generation.drafted += len(draft)
            self.belief = grown

    def _draft(self, answer: tuple[int, ...]) -> tuple[tuple[int, ...], DraftedBy | None]:
        """Tokens that may follow `answer`, and who says so; fewer when something else is settled meanwhile."""
        tokens, room = list(answer), min(DRAFT_CHUNK, self.generation.limit - len(answer))
        found = None if self.work.recent is None else self.work.recent.following(answer)
        by = better(self.generation, found, drafting=self.work.drafting is not None)
        if by is DraftedBy.RECENT and found is not None:
            return found.tokens[:room], by
        # A constraint may become too complex for what was drafted, and not for what will be confirmed.
        with suppress(InputError):
            for token in self.work.draft(answer, room):
                tokens.append(token)
                if self.over or agreeing(tokens, self.generation.tokens) < len(self.generation.tokens):
                    break
                self._guess(tokens)
        return tuple(tokens[len(answer) :]), by if len(tokens) > len(answer) else None

    def _guess(self, tokens: Sequence[int]) -> None:
        if self.work.drafting is not None:
            self.generation.guess(tokens)


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
