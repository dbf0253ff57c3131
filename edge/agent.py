"""The agent: answers questions on the device, in the cloud, or with both at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from cutline.edge.answer import Answer, Forecast, Source
from cutline.edge.drafter import Drafted, Drafter, Drafting
from cutline.edge.events import Event, Planned, Settled
from cutline.edge.exchange import Exchange
from cutline.edge.gate import Gate, confidence_of, open_gate
from cutline.edge.merging import shorten
from cutline.edge.progress import Prepared, Progress
from cutline.edge.question import Mode, Question
from cutline.edge.runtime import CPU
from cutline.edge.spans import Crossing, LoadedSpans, check_cut
from cutline.edge.transcript import Transcript
from cutline.errors import BundleError, InputError, ModelMismatch, PromptError, WorkerError
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.prompt import PromptBuilder
from cutline.models.prompt import question as ask_about
from cutline.models.wire import Wire
from cutline.protos.client import WorkerClient, WorkerSession

if TYPE_CHECKING:  # an agent that does not plan loads nothing of it
    from cutline.edge.planning import Chosen, Planner

MEETING_SECONDS = 1.0  # that a request waits for the worker to say which layers it has; later ones find it out


class Agent:
    """Answers with a drafter's bundle and, unless there is none, the worker at the address `worker`.

    With the `target`'s bundle, its first layers can run here: a question says up to which cut, or in mode `auto` the
    `planner` does, which needs both worker and target. Models run on ONNX Runtime's `provider`. Use as an async context
    manager. Questions may be asked concurrently. Raises ModelMismatch if the drafter was made for another target.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        worker: str | None,
        threads: int,
        target: Bundle | None = None,
        provider: str = CPU,
        planner: Planner | None = None,
    ) -> None:
        self.manifest = bundle.manifest
        if target is not None and target.manifest.identity != self.manifest.target:
            raise ModelMismatch(f"{bundle.path} drafts for another target than {target.path}; export it for this one")
        if planner is not None and (worker is None or target is None):
            raise InputError("planning needs a worker and the target's bundle; give --worker and --target")
        self._planner = planner
        self._bundle = bundle
        self._target_bundle = target
        self._spans = None if target is None else LoadedSpans(target, threads=threads, provider=provider)
        self._prompts = PromptBuilder.open(bundle)
        self._drafter = Drafter.open(bundle, threads=threads, provider=provider)
        self._client = None if worker is None else WorkerClient(worker)
        self._gate: Gate | None = None
        self._meeting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Agent:
        if self._planner is not None and self._client is not None:
            self._meeting = asyncio.create_task(self._meet(self._planner, self._client))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._meeting is not None:
            self._meeting.cancel()
            await asyncio.wait([self._meeting])
        if self._client is not None:
            await self._client.close()

    async def answer(self, question: Question) -> Answer:
        """Answer a question. Raises InputError, BundleError, WorkerError."""
        return await self._answer(question, lambda event: None)

    async def stream(self, question: Question) -> AsyncGenerator[Event]:
        """What happens while a question is answered, its `Answer` last. Raises as `answer` does, at any point.

        Close it to give up on the answer.
        """
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:  # in any thread
            loop.call_soon_threadsafe(events.put_nowait, event)

        answering = asyncio.create_task(self._answer(question, tell))
        answering.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            yield await answering
        finally:
            answering.cancel()
            await asyncio.wait([answering])

    async def _answer(self, question: Question, tell: Callable[[Event], object]) -> Answer:
        progress = Progress(time.perf_counter(), Transcript(self._prompts.vocabulary, question.stop), tell)
        prepared = await asyncio.to_thread(self._prepare, question)
        chosen = await self._plan(prepared, progress)
        if chosen is not None:
            prepared = replace(prepared, question=chosen.question)
        tell(_planned(prepared.question, chosen))
        session = await self._carry_out(prepared, progress)
        latency = time.perf_counter() - progress.began
        forecast = None
        if self._planner is not None and chosen is not None:
            hindsight = await asyncio.to_thread(self._planner.learn, chosen, prepared, progress, latency)
            forecast = chosen.forecast(hindsight=hindsight, measured=latency, cold=progress.cold)
        return self._account(question.mode, prepared, progress, session, latency, forecast)

    async def _meet(self, planner: Planner, client: WorkerClient) -> None:
        """Connect to the worker, which no plan counts, and learn which layers it has."""
        with suppress(WorkerError):  # the first session tells what is wrong, if one is opened
            found = await client.describe()
            if found.model == self.manifest.target:
                planner.meet(found.start, found.end)

    async def _plan(self, prepared: Prepared, progress: Progress) -> Chosen | None:
        """What is planned for a question, if that is left to the agent. Raises InputError."""
        question = prepared.question
        if self._planner is None:
            if question.bounded:
                raise InputError(
                    "this agent does not plan, so nothing keeps to exact, image-must-stay, max-latency-ms or "
                    "min-agreement; start it with --edge-profile, --cloud-profile and --link"
                )
            return None
        if question.mode is not Mode.AUTO or question.cut != "image":
            return None
        if self._meeting is not None and not self._meeting.done():
            progress.cold = True
            await asyncio.wait([self._meeting], timeout=MEETING_SECONDS)
        return await asyncio.to_thread(self._planner.plan, prepared, ready=self._ready())

    async def _carry_out(self, prepared: Prepared, progress: Progress) -> WorkerSession | None:
        """Settle a whole answer as the question says. Returns the worker's session, where it was asked."""
        question = prepared.question
        session: WorkerSession | None = None
        match question.mode:
            case Mode.EDGE:
                await self._draft_all(prepared, progress, keep=True)
            case Mode.CLOUD | Mode.SPLIT:
                session = await self._ask_worker(prepared, progress, drafting=None, draft=())
            case Mode.DRAFT:
                drafting = self._converse(prepared)
                session = await self._ask_worker(prepared, progress, drafting=drafting, draft=())
            case Mode.AUTO:
                drafting, drafted = await self._draft_all(prepared, progress, keep=False)
                tokens = tuple(one.token for one in drafted)
                if self._open_gate().keeps(drafted, question.sampling):
                    progress.settle(tokens, [Source.EDGE] * len(tokens))
                else:
                    session = await self._ask_worker(prepared, progress, drafting=drafting, draft=tokens)
        return session

    def _prepare(self, asked: Question) -> Prepared:
        if asked.cut != "image":
            if self._target_bundle is None:
                raise InputError("a cut runs the target's first layers here; give its bundle with --target")
            check_cut(self._target_bundle, asked.cut)
        if asked.keep_image_tokens < 1.0 and self.manifest.family.axes > 1:
            raise InputError(f"{self.manifest.name} places image tokens in a plane, where none can be left out")
        image = decode_image(asked.images[0])
        pixels = self.manifest.family.preprocess(image)
        prompt = self._prompts.build([ask_about(asked.text)], [pixels.grid]).ids
        context = self.manifest.decoder.context
        if (asked.cut != "image" or self._planner is not None) and self._target_bundle is not None:
            context = min(context, self._target_bundle.manifest.decoder.context)
        if len(prompt) >= context:
            raise PromptError(
                f"the prompt takes {len(prompt)} tokens, the target holds {context}; ask something shorter"
            )
        return Prepared(
            question=asked,
            image=image,
            pixels=pixels,
            prompt=prompt,
            asked=shorten(prompt, self.manifest.image_token, asked.keep_image_tokens),
            limit=min(asked.max_tokens, context - len(prompt)),
        )

    def _cross(self, prepared: Prepared) -> Crossing | None:
        """What crosses the cut that was asked for, or None for the image. Raises InputError, BundleError."""
        cut = prepared.question.cut
        if cut == "image" or self._spans is None:
            return None
        keep = prepared.question.keep_image_tokens
        return self._spans.open(cut).converse(prepared.prompt, prepared.pixels, keep=keep)

    def _ready(self) -> frozenset[str]:
        """The cuts whose graphs are loaded."""
        return frozenset() if self._spans is None else self._spans.cuts

    def _converse(self, prepared: Prepared) -> Drafting:
        sampling = prepared.question.sampling
        return self._drafter.converse(prepared.prompt, prepared.pixels, sampling, start=len(prepared.asked))

    async def _draft_all(self, prepared: Prepared, progress: Progress, *, keep: bool) -> tuple[Drafting, list[Drafted]]:
        """Draft a whole answer; `keep` settles its tokens one by one, as they are drafted."""

        def draft() -> tuple[Drafting, list[Drafted]]:
            drafting, drafted = self._converse(prepared), []
            for one in drafting.draft((), prepared.limit):
                drafted.append(one)
                if keep:
                    progress.settle([one.token], [Source.EDGE])
                if progress.over:
                    break
            return drafting, drafted

        drafting, drafted = await asyncio.to_thread(draft)
        progress.confidence = confidence_of(drafted)
        return drafting, drafted

    async def _ask_worker(
        self, prepared: Prepared, progress: Progress, *, drafting: Drafting | None, draft: tuple[int, ...]
    ) -> WorkerSession:
        if self._client is None:
            mode = prepared.question.mode
            raise InputError(f"mode {mode} needs a worker; give --worker HOST:PORT, or use --mode edge")
        cut = prepared.question.cut
        progress.cold |= not self._client.connected or (cut != "image" and cut not in self._ready())
        crossing = await asyncio.to_thread(self._cross, prepared)
        exchange = Exchange(self.manifest, prepared, progress, crossing, drafting)
        return await exchange.run(self._client, self._target(), draft)

    def _target(self) -> str:
        if self.manifest.target is None:
            raise BundleError(f"{self.manifest.name} was exported without a target, so no worker can verify it")
        return self.manifest.target

    def _open_gate(self) -> Gate:
        if self._gate is None:
            self._gate = open_gate(self._bundle)
        return self._gate

    def _is_exact(self, question: Question) -> bool:
        """Whether a worker's answer is the target's own, to the bit of a token."""
        if question.cut == "image":
            return True
        target = self._target_bundle.manifest if self._target_bundle else None
        quantized = target is not None and target.precision != "fp32" and question.cut in target.line.deep_cuts
        return question.wire is Wire.FLOAT32 and question.keep_image_tokens == 1.0 and not quantized

    def _account(
        self,
        mode: Mode,
        prepared: Prepared,
        progress: Progress,
        session: WorkerSession | None,
        latency: float,
        forecast: Forecast | None,
    ) -> Answer:
        """The answer in `mode`, which took `latency` seconds as it was `prepared`."""
        question, ids, stop_tokens = prepared.question, progress.tokens, self.manifest.stop_tokens
        if held := progress.transcript.finish():
            progress.tell(Settled(len(progress.transcript.tokens) - len(held), held))
        return Answer(
            text=progress.transcript.text,
            tokens=progress.transcript.tokens,
            mode=mode,
            latency_ms=latency * 1e3,
            ttft_ms=latency * 1e3 if progress.first is None else (progress.first - progress.began) * 1e3,
            bytes_up=session.bytes_up if session else 0,
            bytes_down=session.bytes_down if session else 0,
            rounds=progress.rounds,
            drafted=progress.drafted,
            accepted=progress.sources.count(Source.DRAFT),
            exact=session is not None and self._is_exact(question),
            cut=question.cut if session else None,
            wire=question.wire if session and question.cut != "image" else None,
            worker=self._client.address if session and self._client else None,
            confidence=progress.confidence,
            complete=progress.over or (bool(ids) and ids[-1] in stop_tokens),
            plan=forecast,
            prompt_tokens=len(prepared.prompt),
        )


def _planned(question: Question, chosen: Chosen | None) -> Planned:
    return Planned(
        mode=question.mode,
        cut=question.cut,
        wire=question.wire if question.cut != "image" else None,
        predicted_ms=None if chosen is None else chosen.plan.latency_ms,
        why=None if chosen is None else chosen.why,
    )
