"""A question before a worker: what crosses the cut goes up, drafts follow, and what comes back is settled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from cutline.edge.drafter import Drafting
from cutline.edge.progress import Belief, Prepared, Progress
from cutline.edge.spans import Crossing
from cutline.models.bundle import Manifest
from cutline.protos.client import WorkerClient, WorkerSession
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

CHUNK = 16  # drafted tokens a message: the worker verifies the first while the next are drafted


@dataclass(slots=True, eq=False)
class Exchange:
    """One question before the worker of a target whose drafter is `manifest`'s.

    What is sent is the image, or where there is a `crossing` what crosses the cut; and drafts, if there is `drafting`.
    """

    manifest: Manifest
    prepared: Prepared
    progress: Progress
    crossing: Crossing | None
    drafting: Drafting | None
    news: asyncio.Event = field(default_factory=asyncio.Event)  # something was settled

    async def run(self, client: WorkerClient, model: str, draft: tuple[int, ...]) -> WorkerSession:
        """Open a session for `model` with a first `draft`, and settle what is confirmed until the answer is complete.

        Raises InputError, WorkerError.
        """
        self.progress.rounds, self.progress.drafted = 1, len(draft)
        if draft:
            self.progress.drafts.append((0, draft))
        question, began = self.prepared.question, time.perf_counter()
        async with client.session(self._opening(model, draft), (), timeout=question.timeout) as session:
            self.progress.sent.append((began, session.bytes_up))
            settling = asyncio.create_task(self._settle(session))
            sending = asyncio.create_task(self._send(session, draft))
            try:
                done, _ = await asyncio.wait([settling, sending], return_when=asyncio.FIRST_COMPLETED)
                if settling not in done:
                    sending.result()  # there is no more to send, or it failed
                await settling
            finally:
                settling.cancel()
                sending.cancel()
                await asyncio.gather(settling, sending, return_exceptions=True)
            return session

    def _opening(self, model: str, draft: tuple[int, ...]) -> Open:
        prepared, question = self.prepared, self.prepared.question
        return Open(
            model=model,
            tokens=prepared.asked,
            prompt_length=len(prepared.asked),
            max_tokens=prepared.limit,
            cut=question.cut,
            images=int(self.crossing is None),
            grids=(prepared.pixels.grid,),
            temperature=question.sampling.temperature,
            top_k=question.sampling.top_k,
            top_p=question.sampling.top_p,
            seed=question.sampling.seed,
            # Without drafts to verify, a worker that may not decode alone would do nothing.
            effort=1.0 if self.drafting is None else question.effort,
            draft=draft,
        )

    async def _settle(self, session: WorkerSession) -> None:
        """Settle what the worker confirms, until the answer is complete."""
        async for event in session.events():
            match event:
                case Opened():
                    self.progress.opened = time.perf_counter(), event
                case Confirmed():
                    self.progress.confirm(event, self.prepared, self.manifest.decoder.vocabulary)
                    self.news.set()
                    if self.progress.over:
                        return

    async def _send(self, session: WorkerSession, draft: tuple[int, ...]) -> None:
        """Send what crosses the cut; then, where more than that is to be sent, keep ahead of the worker for ever."""
        if self.crossing is None:
            await self._send_image(session)
        else:
            await self._send_boundary(session, self.crossing, draft)
        if self.drafting is not None or (self.crossing is not None and self.crossing.deep):
            await self._keep_ahead(session, Belief(draft, len(draft)))

    async def _send_image(self, session: WorkerSession) -> None:
        prepared = self.prepared
        data = await asyncio.to_thread(self.manifest.family.shrink, prepared.question.images[0], prepared.image)
        for chunk in image_chunks(data):
            await self._upload(session, chunk)

    async def _send_boundary(self, session: WorkerSession, crossing: Crossing, draft: tuple[int, ...]) -> None:
        """Send the opening boundary, each part of it as soon as it is computed."""
        left = crossing.length + (len(draft) if crossing.deep else 0)
        parts = crossing.opening(draft)
        while (rows := await asyncio.to_thread(next, parts, None)) is not None:
            left -= len(rows)
            for chunk in boundary_chunks(rows, self.prepared.question.wire, more=left > 0):
                await self._upload(session, chunk)

    async def _upload(self, session: WorkerSession, piece: ImageChunk | Boundary) -> None:
        at, before = time.perf_counter(), session.bytes_up
        await session.upload(piece)
        self.progress.sent.append((at, session.bytes_up - before))

    async def _keep_ahead(self, session: WorkerSession, belief: Belief) -> None:
        """Send what the worker goes on from: drafts past what is sent, and anew from where one proved wrong.

        At a cut inside the decoder that begins with the row of the token that the worker chose last, and without
        `drafting` it is that row alone.
        """
        start, wire = len(self.prepared.asked), self.prepared.question.wire
        while True:
            belief = belief.after(self.progress.tokens)
            draft = () if self._is_over(belief) else await asyncio.to_thread(self._draft, belief.tokens)
            grown = belief.grown(draft)
            if grown.after(self.progress.tokens) is not grown:
                continue
            if self._is_over(belief) or grown.sent == belief.sent:  # nothing to send before something is settled
                self.news.clear()
                await self.news.wait()
                continue
            pieces: Sequence[Draft]
            if self.crossing is not None and self.crossing.deep:
                tokens = grown.tokens[belief.sent :]
                rows = await asyncio.to_thread(self.crossing.again, belief.sent, tokens)
                if grown.after(self.progress.tokens) is not grown:
                    continue
                pieces = list(draft_chunks(start + belief.sent, tokens, rows, wire))
            else:
                # The token before says what the draft builds on: if that was rejected meanwhile, so is the draft.
                base = max(0, len(belief.tokens) - 1)
                pieces = [Draft(start + base, grown.tokens[base:])]
            for piece in pieces:
                await session.offer(piece)
            if draft:
                self.progress.drafts.append((len(belief.tokens), grown.tokens))
            self.progress.rounds += int(belief.replying)
            self.progress.drafted += len(draft)
            belief = grown

    def _is_over(self, belief: Belief) -> bool:
        """Whether the answer would be complete if the belief is right."""
        tokens = belief.tokens
        return len(tokens) >= self.prepared.limit or (bool(tokens) and tokens[-1] in self.manifest.stop_tokens)

    def _draft(self, answer: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens that may follow `answer`, none without a drafter."""
        if self.drafting is None:
            return ()
        room = min(CHUNK, self.prepared.limit - len(answer))
        return tuple(one.token for one in islice(self.drafting.draft(answer, room), room))
