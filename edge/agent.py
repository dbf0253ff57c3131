"""The agent: answers questions on the device, in the cloud, or with both at once."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from cutline.core.request import Mode, Request
from cutline.core.wire import Wire
from cutline.devices.machine.cores import usable_cores
from cutline.devices.profile import CPU
from cutline.edge.generation.conditions import group_of
from cutline.edge.generation.detokenizer import Transcript
from cutline.edge.generation.energy import EnergyMeter
from cutline.edge.generation.events import Event, Settled
from cutline.edge.generation.gate import Gate, Group, confidence_of, open_gate
from cutline.edge.generation.generation import Generation, Prepared
from cutline.edge.generation.preprocess import Preparer
from cutline.edge.generation.result import Answer, Decision, Gated, Provenance
from cutline.edge.inference.boundary_noise import Noise, new_secret
from cutline.edge.inference.drafter import Drafted, Drafter, DrafterConversation, likelihoods_of
from cutline.edge.inference.target_prefix import Crossing, LoadedSpans, device_cuts
from cutline.edge.offload.failover import Failover
from cutline.edge.offload.heartbeat import NOTICE
from cutline.edge.offload.status import AgentState, unready
from cutline.edge.offload.upload_cache import Uploads
from cutline.edge.offload.worker_pool import Workers
from cutline.edge.offload.worker_session import DeviceModels
from cutline.edge.result_builder import account, from_memory, is_exact, planned
from cutline.errors import BundleError, InputError, ModelMismatch, WorkerError
from cutline.models.bundle import Bundle
from cutline.models.prompt import PromptBuilder
from cutline.protos.channel.credentials import NO_KEYS, AgentKeys
from cutline.protos.request_ids import new_request_id

if TYPE_CHECKING:  # an agent loads nothing of what it does not do
    from cutline.edge.generation.semantic_cache import SemanticCache
    from cutline.edge.offload.openai_upstream import Upstream
    from cutline.edge.planning.plan_result import Chosen
    from cutline.edge.planning.planner import Planner

MAX_NOTICE = 60.0  # seconds
MEETING_SECONDS = 1.0  # that a request waits for the worker to say which layers it has; later ones find it out


class Agent:
    """Answers with a drafter's bundle and, unless there is none, a worker: the first that serves of those in `worker`.

    That is an address, several in the order of their cost, or the `Workers` themselves; they are reached by `keys`. One
    of which nothing is heard for `notice` seconds is given up. An agent that is `offline` connects to none.
    What an answer takes of energy the `meter` says. In place of workers there may be an `upstream`, another server with
    a model of its own, and answers that are in `memory` are not made again. One that is `fresh` uses nothing of a
    question for the next: neither pictures that a worker keeps nor states of its own.

    With the `target`'s bundle, its first layers can run here: a question says up to which cut, or in mode `auto` the
    `planner` does, which needs both worker and target, or an upstream. Models run on ONNX Runtime's `provider`. Use as
    an async context manager. Without `threads` each model has as many as this process has cores. Questions may be
    asked concurrently. Raises ModelMismatch if the drafter was made for
    another target.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        worker: str | Sequence[str] | Workers | None = None,
        threads: int | None = None,
        target: Bundle | None = None,
        provider: str = CPU,
        planner: Planner | None = None,
        keys: AgentKeys = NO_KEYS,
        notice: float = NOTICE,
        offline: bool = False,
        meter: EnergyMeter | None = None,
        upstream: Upstream | None = None,
        memory: SemanticCache | None = None,
        fresh: bool = False,
    ) -> None:
        self.manifest = bundle.manifest
        if target is not None and target.manifest.identity != self.manifest.target:
            raise ModelMismatch(f"{bundle.path} drafts for another target than {target.path}; export it for this one")
        if not 0.0 < notice <= MAX_NOTICE:
            raise InputError(f"notice is {notice}; give more than 0 and at most {MAX_NOTICE:.0f} seconds")
        if upstream is not None and worker:
            raise InputError("an upstream answers in place of workers; give one or the other")
        if planner is not None and upstream is None and (not worker or target is None):
            raise InputError("planning needs a worker and the target's bundle; give --worker and --target")
        if planner is not None and planner.upstream != (upstream is not None):
            raise InputError("an upstream is planned for by its own planner, and no worker is by that")
        threads = threads or usable_cores()
        self._planner = planner
        self._bundle = bundle
        self._target_bundle = target
        self._spans = None if target is None else LoadedSpans(target, threads=threads, provider=provider)
        self._prompts = PromptBuilder.open(bundle)
        self._preparer = Preparer(self.manifest, self._prompts, target, planned=planner is not None, fresh=fresh)
        self._uploads = Uploads()
        self._secret = new_secret()
        self._drafter = Drafter.open(bundle, threads=threads, provider=provider)
        if not isinstance(worker, Workers):
            addresses = () if worker is None else (worker,) if isinstance(worker, str) else worker
            worker = Workers(addresses, keys=keys, offline=offline)
        self.workers = worker
        self._notice = notice
        self._meter = meter or EnergyMeter()
        self._upstream = upstream
        self._memory = memory
        self._gate: Gate | None = None
        self._meeting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Agent:
        await self.workers.open()
        if self._planner is not None and self._upstream is None and not self.offline:
            self._meeting = asyncio.create_task(self._meet(self._planner))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._meeting is not None:
            self._meeting.cancel()
            await asyncio.wait([self._meeting])
        await self.workers.close()
        if self._upstream is not None:
            await self._upstream.close()

    @property
    def offline(self) -> bool:
        """Whether no worker is asked, nor connected to; may be set at any time, on the event loop."""
        return self.workers.offline

    @offline.setter
    def offline(self, offline: bool) -> None:
        self.workers.offline = offline
        if offline and self._upstream is not None:
            self._upstream.disconnect()

    async def answer(self, question: Request) -> Answer:
        """Answer a question. Raises InputError, BundleError, WorkerError."""
        return await self._answer(question, lambda event: None)

    async def stream(self, question: Request) -> AsyncGenerator[Event]:
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

    async def _answer(self, question: Request, tell: Callable[[Event], object]) -> Answer:
        if not question.request_id:
            question = msgspec.structs.replace(question, request_id=new_request_id())
        with self._meter.reading() as reading:
            answer = await self._made(question, tell)
            return msgspec.structs.replace(answer, energy=self._meter.energy(reading))

    async def _made(self, question: Request, tell: Callable[[Event], object]) -> Answer:
        progress = Generation(time.perf_counter(), Transcript(self._prompts.vocabulary, question.stop), tell)
        progress.gate = self._gated(question, Decision.NOT_ASKED)
        prepared = await asyncio.to_thread(self._preparer.prepare, question)
        progress.parts.lap("prepare")
        chosen = await self._plan(prepared, progress)
        if chosen is not None:
            prepared = replace(prepared, question=chosen.question)
            progress.parts.lap("plan")
        tell(planned(prepared.question, chosen))
        if (recalled := await self._recall(question, prepared, progress)) is not None:
            return recalled
        asking = await self._carry_out(question, prepared, progress)
        ended = None if asking is None else asking.ended  # what was corrected later was there before
        latency = (time.perf_counter() if ended is None else ended) - progress.began
        forecast = None
        if self._planner is not None and chosen is not None:
            whole = asking is None or not (asking.lost or asking.tail)
            learn = functools.partial(self._planner.learn, chosen, prepared, progress, latency, whole=whole)
            hindsight = await asyncio.to_thread(learn)
            forecast = chosen.forecast(hindsight=hindsight, measured=latency, cold=progress.cold)
        progress.finish()
        ends = bool(progress.tokens) and progress.tokens[-1] in self.manifest.stop_tokens
        answer = account(
            question.mode,
            prepared,
            progress,
            asking,
            latency=latency,
            forecast=forecast,
            exact=None if self._upstream is not None else is_exact(prepared.question, self._target_bundle),
            complete=progress.over or ends,
        )
        if self._memory is not None:
            await asyncio.to_thread(self._memory.keep, question, prepared.images, answer)
        return answer

    async def _recall(self, question: Request, prepared: Prepared, progress: Generation) -> Answer | None:
        """The answer in memory, if there is one to the same question about near-identical images."""
        if self._memory is None or question.exact:
            return None
        found = await asyncio.to_thread(self._memory.find, question, prepared.images)
        if found is None:
            return None
        progress.parts.lap("memory")
        progress.tell(Settled(0, tuple(found[0].tokens)))
        progress.gate = self._gated(question, Decision.RECALLED)
        return from_memory(*found, prepared, progress, time.perf_counter() - progress.began)

    async def _meet(self, planner: Planner) -> None:
        """Connect to a worker, which no plan counts, and learn which layers it has."""
        try:
            if (client := self.workers.choose()) is None:
                return
        except InputError:  # keys that no longer read: a session says it, if one is opened
            return
        try:
            found = await self.workers.describe(client, model=self.manifest.target or "")
        except (WorkerError, InputError) as error:  # likewise
            self.workers.report(client.address, error)
            return
        except asyncio.CancelledError as error:
            self.workers.report(client.address, error)
            raise
        self.workers.report(client.address, None)
        planner.meet(found.start, found.end)

    async def _plan(self, prepared: Prepared, progress: Generation) -> Chosen | None:
        """What is planned for a question, if that is left to the agent. Raises InputError."""
        question = prepared.question
        if self._planner is None:
            if question.mode is Mode.SPLIT and question.cut == "image":
                raise InputError(self._uncut())
            if question.bounded:
                raise InputError(
                    "this agent does not plan, so nothing keeps to exact, image-must-stay, max-latency-ms, "
                    "min-agreement or max-leak; start it with --edge-profile, --link and, for a worker, --cloud-profile"
                )
            return None
        if question.mode not in (Mode.AUTO, Mode.SPLIT) or question.cut != "image":
            return None
        if self._meeting is not None and not self._meeting.done():
            progress.cold = True
            await asyncio.wait([self._meeting], timeout=MEETING_SECONDS)
        reachable = self.workers.reachable
        if self._upstream is not None:
            reachable = self._upstream.reachable and not self.offline
        if not reachable and not question.exact and question.mode is Mode.AUTO:
            return None

        def known(cut: str, wire: Wire) -> int:
            kept = (self._uploads.known(one, prepared, cut, wire) for one in self.workers.addresses)
            return max(kept, default=0)

        return await asyncio.to_thread(self._planner.plan, prepared, ready=self._ready(), known=known)

    async def _carry_out(self, asked: Request, prepared: Prepared, progress: Generation) -> Failover | None:
        """Settle a whole answer to what was `asked`, as it was planned. Returns how workers were asked, if any were."""
        match prepared.question.mode:
            case Mode.EDGE:
                await self._draft_all(prepared, progress, keep=True)
                return None
            case Mode.AUTO:
                group, progress.gate = self._group(asked), self._gated(asked, Decision.PASSED)
                models, drafted = DeviceModels(), list[Drafted]()
                if group is not None:  # of a closed one no answer can be kept, so none is waited for
                    models = await self._draft_all(prepared, progress, keep=False)
                    drafted = list(models.drafted.values())
                tokens = tuple(one.token for one in drafted)
                if group is not None and group.keeps(drafted, self.manifest.stop_tokens):
                    progress.gate = self._gated(asked, Decision.KEPT)
                    progress.settle(tokens, [Provenance.EDGE] * len(tokens), likelihoods_of(drafted))
                    return None
                asking = self._ask(asked, prepared, progress, drafts=True)
                asking.models = models
                asking.believed = tokens
                if prepared.question.bounded:  # it was not planned, and only a plan keeps to its bounds
                    async with asking.models.until_ended():
                        await asking.go_on_alone()
                    return asking
            case mode:
                asking = self._ask(asked, prepared, progress, drafts=mode is Mode.DRAFT)
        async with asking.models.until_ended():
            await asking.run()
        return asking

    def state(self) -> AgentState:
        """How it stands now."""
        asks = bool(self.workers.addresses) and not self.offline
        cloud = (asks or self._upstream is not None) and not self.offline
        needs = {Mode.CLOUD: cloud, Mode.DRAFT: asks, Mode.SPLIT: asks and self._spans is not None}
        target = self._target_bundle
        verified = bool(self.workers.addresses or self.workers.nobody)
        why = unready(self.manifest, workers=verified, upstream=self._upstream is not None)
        return AgentState(
            ready=why is None,
            why=why,
            offline=self.offline,
            modes=tuple(mode for mode in Mode if needs.get(mode, True)),
            drafter=self.manifest.name,
            target=None if target is None else target.manifest.name,
            cuts=() if target is None else device_cuts(target.manifest),
            plans=self._planner is not None,
            upstream=None if self._upstream is None else self._upstream.url,
            workers=self.workers.states,
        )

    def _cross(self, prepared: Prepared) -> Crossing | None:
        """What crosses the cut that was asked for, or None for the image. Raises InputError, BundleError."""
        cut = prepared.question.cut
        if cut == "image" or self._spans is None:
            return None
        share = prepared.question.noise
        return self._spans.open(cut).converse(
            prepared.prompt,
            prepared.pixels,
            names=prepared.names,
            fresh=prepared.fresh,
            keep=prepared.question.keep_image_tokens,
            noise=Noise.at(cut, share, self._secret) if share else None,
            tenant=prepared.question.tenant,
        )

    def _uncut(self) -> str:
        """What to say of a split that nobody said the cut of, and that nothing plans."""
        if self._target_bundle is None:
            return "mode split needs the target's bundle on the device; give --target, or use mode cloud"
        cuts = ", ".join(cut for cut in device_cuts(self._target_bundle.manifest) if cut != "image")
        return (
            f"mode split needs a cut: {self._target_bundle.manifest.name} may be cut at {cuts or 'none'}; with "
            "--edge-profile, --cloud-profile and --link the best one is planned"
        )

    def _ready(self) -> frozenset[str]:
        """The cuts whose graphs are loaded."""
        return frozenset() if self._spans is None else self._spans.cuts

    def _converse(self, prepared: Prepared) -> DrafterConversation:
        question = prepared.question
        return self._drafter.converse(
            prepared.prompt,
            prepared.pixels,
            question.sampling,
            names=prepared.kept,
            start=len(prepared.asked),
            alternatives=question.logprobs,
            tenant=question.tenant,
        )

    async def _draft_all(self, prepared: Prepared, progress: Generation, *, keep: bool) -> DeviceModels:
        """Draft a whole answer; `keep` settles its tokens one by one, as they are drafted.

        Returns what drafted it.
        """
        models = DeviceModels()

        def draft() -> None:
            models.drafting = self._converse(prepared)
            transcript = progress.transcript if keep else progress.transcript.empty()
            for token in models.draft((), prepared.limit):
                if keep:
                    progress.settle([token], [Provenance.EDGE], likelihoods_of([models.drafted[len(progress.tokens)]]))
                else:
                    progress.guess([one.token for one in models.drafted.values()])
                    transcript.add(token, Provenance.EDGE)
                if transcript.stopped:
                    break

        async with models.until_ended():
            await models.run(draft)
        progress.parts.lap("edge")
        progress.confidence = confidence_of(list(models.drafted.values()))
        # A thread may hold on to its work for a moment, and the next question is to find this conversation ended.
        drafting, models.drafting = models.drafting, None
        return DeviceModels(drafting=drafting, drafted=models.drafted)

    def _ask(self, asked: Request, prepared: Prepared, progress: Generation, *, drafts: bool) -> Failover:
        """How workers are asked what was `asked`; `drafts` says that the drafter drafts for them."""
        given = self.offline or self.workers.addresses or self.workers.nobody or self._upstream
        if not given and asked.mode is not Mode.AUTO:
            raise InputError(f"mode {asked.mode} needs a worker; give --worker HOST:PORT, or use --mode edge")
        cut = prepared.question.cut
        progress.cold |= cut != "image" and cut not in self._ready()
        return Failover(
            manifest=self.manifest,
            prepared=prepared,
            progress=progress,
            workers=self.workers,
            uploads=self._uploads,
            model="" if self._upstream is not None else self._target(),
            mode=asked.mode,
            exact=asked.exact,
            drafts=drafts,
            cross=lambda: self._cross(prepared),
            converse=lambda: self._converse(prepared),
            notice=self._notice,
            upstream=self._upstream,
            vocabulary=self._prompts.vocabulary,
        )

    def _target(self) -> str:
        if self.manifest.target is None:
            raise BundleError(f"{self.manifest.name} was exported without a target, so no worker can verify it")
        return self.manifest.target

    def _open_gate(self) -> Gate:
        """The gate, which keeps nothing where the drafter is not calibrated. Raises BundleError."""
        if self._gate is None:
            self._gate = Gate({}) if self.manifest.calibration is None else open_gate(self._bundle)
        return self._gate

    def _group(self, asked: Request) -> Group | None:
        """What the gate does with answers to what was `asked`, None where it keeps none of that kind.

        Raises BundleError for a drafter that is not calibrated, where nobody was given who could verify it.
        """
        given = self.workers.addresses or self.workers.nobody or self._upstream
        if self.manifest.calibration is None and not given:
            path = self._bundle.path
            raise BundleError(f"{path} is not calibrated, so no answer can be trusted; run `cutline calibrate`")
        return self._open_gate().of(group_of(asked))

    def _gated(self, asked: Request, decision: Decision) -> Gated:
        return self._open_gate().said(group_of(asked), decision)
