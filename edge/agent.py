"""The agent: answers questions on the device, in the cloud, or with both at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cutline.edge.answer import Answer, Mode, Question, Source, Token
from cutline.edge.drafter import Drafted, Drafter, Drafting
from cutline.edge.gate import Gate, confidence_of, open_gate
from cutline.edge.vision import VisionSpan
from cutline.errors import BundleError, InputError, ModelMismatch, WorkerFailed
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image, preprocess, shrink
from cutline.models.prompt import PromptBuilder
from cutline.models.prompt import question as ask_about
from cutline.models.vocabulary import StreamDecoder
from cutline.models.wire import Wire
from cutline.protos.client import WorkerClient, WorkerSession
from cutline.protos.messages import Boundary, Confirmed, Draft, ImageChunk, Open, boundary_chunks, image_chunks

CHUNK = 16  # drafted tokens a message: the worker verifies the first while the next are drafted


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A question as the models take it."""

    question: Question
    image: Image.Image
    tiles: NDArray[np.float32]
    prompt: tuple[int, ...]
    limit: int  # answer tokens at most


@dataclass(slots=True)
class _Progress:
    """An answer in the making. `tokens` are settled: the target's own, or in mode `edge` the drafter's."""

    began: float
    tokens: list[int] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    first: float | None = None  # when the first token was settled
    drafted: int = 0
    rounds: int = 0
    confidence: float | None = None

    def settle(self, tokens: Sequence[int], sources: Sequence[Source]) -> None:
        """Take tokens that follow those settled before."""
        if tokens and self.first is None:
            self.first = time.perf_counter()
        self.tokens += tokens
        self.sources += sources

    def confirm(self, confirmed: Confirmed, prepared: _Prepared, vocabulary: int) -> None:
        """Take what the worker confirmed; what is settled already is passed over. Raises WorkerFailed."""
        known = len(self.tokens) - (confirmed.position - len(prepared.prompt))
        if known < 0:
            raise WorkerFailed(f"the worker skipped {-known} tokens")
        if len(self.tokens) - known + len(confirmed.tokens) > prepared.limit:
            raise WorkerFailed(f"the worker confirmed more than the {prepared.limit} tokens it was asked for")
        if max(confirmed.tokens, default=0) >= vocabulary:
            raise WorkerFailed(f"the worker confirmed a token outside the vocabulary of {vocabulary}")
        sources = [Source.DRAFT if i < confirmed.accepted else Source.CLOUD for i in range(len(confirmed.tokens))]
        self.settle(confirmed.tokens[known:], sources[known:])


class Agent:
    """Answers with a drafter's bundle and, unless there is none, the worker at the address `worker`.

    With the `target`'s bundle, its first layers can run here: a question says up to which cut. Use as an async context
    manager. Questions may be asked concurrently. Raises ModelMismatch if the drafter was made for another target.
    """

    def __init__(self, bundle: Bundle, *, worker: str | None, threads: int, target: Bundle | None = None) -> None:
        self.manifest = bundle.manifest
        if target is not None and target.manifest.identity != self.manifest.target:
            raise ModelMismatch(f"{bundle.path} drafts for another target than {target.path}; export it for this one")
        self._bundle = bundle
        self._target_bundle = target
        self._spans: dict[str, VisionSpan] = {}
        self._threads = threads
        self._prompts = PromptBuilder.open(bundle)
        self._drafter = Drafter.open(bundle, threads=threads)
        self._client = None if worker is None else WorkerClient(worker)
        self._gate: Gate | None = None

    async def __aenter__(self) -> Agent:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.close()

    async def answer(self, question: Question) -> Answer:
        """Answer a question. Raises InputError, BundleError, WorkerError."""
        progress = _Progress(time.perf_counter())
        prepared = await asyncio.to_thread(self._prepare, question)
        session: WorkerSession | None = None
        match question.mode:
            case Mode.EDGE:
                await self._draft_all(prepared, progress, keep=True)
            case Mode.CLOUD:
                session = await self._ask_worker(prepared, progress, drafting=None, draft=())
            case Mode.DRAFT:
                drafting = self._converse(prepared)
                session = await self._ask_worker(prepared, progress, drafting=drafting, draft=())
            case Mode.AUTO:
                drafting, drafted = await self._draft_all(prepared, progress, keep=False)
                if self._open_gate().keeps(drafted, question.sampling):
                    tokens = [one.token for one in drafted]
                    progress.settle(tokens, [Source.EDGE] * len(tokens))
                else:
                    session = await self._ask_worker(
                        prepared, progress, drafting=drafting, draft=tuple(one.token for one in drafted)
                    )
        return self._answer(question, progress, session)

    def _prepare(self, asked: Question) -> _Prepared:
        image = decode_image(asked.image)
        pixels = preprocess(image, self.manifest.image)
        prompt = self._prompts.build([ask_about(asked.text)], [pixels.grid])
        limit = min(asked.max_tokens, self.manifest.decoder.context - len(prompt.ids))
        return _Prepared(asked, image, pixels.tiles, prompt.ids, limit)

    def _upload(self, prepared: _Prepared) -> list[ImageChunk] | list[Boundary]:
        """What crosses the cut that was asked for: the image, or the boundary after the layers run here."""
        question = prepared.question
        if question.cut == "image":
            return list(image_chunks(shrink(question.image, prepared.image, self.manifest.image)))
        if self._target_bundle is None:
            raise InputError(f"cut {question.cut} runs the target's first layers here; give its bundle with --target")
        span = self._spans.get(question.cut)
        if span is None:
            span = VisionSpan.open(self._target_bundle, question.cut, threads=self._threads)
            self._spans[question.cut] = span
        return list(boundary_chunks(span(prepared.tiles), question.wire))

    def _converse(self, prepared: _Prepared) -> Drafting:
        return self._drafter.converse(prepared.prompt, prepared.tiles, prepared.question.sampling)

    async def _draft_all(
        self, prepared: _Prepared, progress: _Progress, *, keep: bool
    ) -> tuple[Drafting, list[Drafted]]:
        """Draft a whole answer; `keep` settles its tokens one by one, as they are drafted."""

        def draft() -> tuple[Drafting, list[Drafted]]:
            drafting, drafted = self._converse(prepared), []
            for one in drafting.draft((), prepared.limit):
                drafted.append(one)
                if keep:
                    progress.settle([one.token], [Source.EDGE])
            return drafting, drafted

        drafting, drafted = await asyncio.to_thread(draft)
        progress.confidence = confidence_of(drafted)
        return drafting, drafted

    async def _ask_worker(
        self, prepared: _Prepared, progress: _Progress, *, drafting: Drafting | None, draft: tuple[int, ...]
    ) -> WorkerSession:
        """Open a session with `draft`, draft on along it if there is `drafting`, and settle what is confirmed."""
        client, question = self._client, prepared.question
        if client is None:
            raise InputError(f"mode {question.mode} needs a worker; give --worker HOST:PORT, or use --mode edge")
        sampling = question.sampling
        upload = await asyncio.to_thread(self._upload, prepared)
        opening = Open(
            model=self._target(),
            tokens=prepared.prompt,
            prompt_length=len(prepared.prompt),
            max_tokens=prepared.limit,
            cut=question.cut,
            images=int(question.cut == "image"),
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=sampling.seed,
            # Without drafts to verify, a worker that may not decode alone would do nothing.
            effort=1.0 if drafting is None else question.effort,
            draft=draft,
        )
        progress.rounds, progress.drafted = 1, len(draft)
        async with client.session(opening, upload, timeout=question.timeout) as session:
            news = asyncio.Event()
            tasks = [asyncio.create_task(self._settle(prepared, progress, session, news))]
            if drafting is not None:
                tasks.append(asyncio.create_task(self._draft_along(prepared, progress, session, drafting, draft, news)))
            try:
                # Drafting never ends by itself: the answer is complete, or one of the two has failed.
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                next(task for task in tasks if task in done).result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            return session

    async def _settle(
        self, prepared: _Prepared, progress: _Progress, session: WorkerSession, news: asyncio.Event
    ) -> None:
        """Settle what the worker confirms, until the answer is complete."""
        async for event in session.events():
            if isinstance(event, Confirmed):
                progress.confirm(event, prepared, self.manifest.decoder.vocabulary)
                news.set()

    async def _draft_along(
        self,
        prepared: _Prepared,
        progress: _Progress,
        session: WorkerSession,
        drafting: Drafting,
        draft: tuple[int, ...],
        news: asyncio.Event,
    ) -> None:
        """Keep ahead of the worker: draft on past what is sent, and anew from where a draft proved wrong."""
        ahead, replying = list(draft), False  # the answer as we believe it, all of it sent
        stop_tokens = self.manifest.stop_tokens
        while True:
            settled = progress.tokens
            if ahead[: len(settled)] != settled:
                ahead, replying = list(settled), True
            if len(ahead) >= prepared.limit or (ahead and ahead[-1] in stop_tokens):
                news.clear()
                await news.wait()
                continue
            room = min(CHUNK, prepared.limit - len(ahead))
            more = await asyncio.to_thread(_tokens, drafting, tuple(ahead), room)
            believed = [*ahead, *more]
            if progress.tokens[: len(believed)] != believed[: len(progress.tokens)]:
                continue
            # The token before says what the draft builds on: if that was rejected meanwhile, so is the draft.
            base = ahead[-1:]
            await session.offer(Draft(len(prepared.prompt) + len(ahead) - len(base), (*base, *more)))
            progress.rounds += int(replying)
            progress.drafted += len(more)
            ahead, replying = believed, False

    def _target(self) -> str:
        if self.manifest.target is None:
            raise BundleError(f"{self.manifest.name} was exported without a target, so no worker can verify it")
        return self.manifest.target

    def _open_gate(self) -> Gate:
        if self._gate is None:
            self._gate = open_gate(self._bundle)
        return self._gate

    def _answer(self, question: Question, progress: _Progress, session: WorkerSession | None) -> Answer:
        now = time.perf_counter()
        ids, stop_tokens = progress.tokens, self.manifest.stop_tokens
        text = StreamDecoder(self._prompts.vocabulary)
        texts = [text.push(token) for token in ids]
        if texts:
            texts[-1] += text.finish()
        tokens = [Token(*one) for one in zip(ids, texts, progress.sources, strict=True)]
        return Answer(
            text="".join(texts).strip(),
            tokens=tokens,
            mode=question.mode,
            latency_ms=(now - progress.began) * 1e3,
            ttft_ms=((progress.first or now) - progress.began) * 1e3,
            bytes_up=session.bytes_up if session else 0,
            bytes_down=session.bytes_down if session else 0,
            rounds=progress.rounds,
            drafted=progress.drafted,
            accepted=progress.sources.count(Source.DRAFT),
            exact=session is not None and (question.cut == "image" or question.wire is Wire.FLOAT32),
            cut=question.cut if session else None,
            worker=self._client.address if session and self._client else None,
            confidence=progress.confidence,
            complete=bool(ids) and ids[-1] in stop_tokens,
        )


def _tokens(drafting: Drafting, answer: Sequence[int], limit: int) -> tuple[int, ...]:
    return tuple(one.token for one in islice(drafting.draft(answer, limit), limit))
