"""The agent: answers requests on the device, in the cloud, or with both at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cutline.core.request import Mode, Request
from cutline.devices.machine.cores import usable_cores
from cutline.devices.profile import CPU
from cutline.edge.audit.auditor import Auditor
from cutline.edge.audit.audits import check_share
from cutline.edge.generation.conditions import group_of
from cutline.edge.generation.detokenizer import Transcript
from cutline.edge.generation.energy import EnergyMeter
from cutline.edge.generation.events import Event, Settled
from cutline.edge.generation.generation import Execution, Generation, Prepared
from cutline.edge.generation.preprocess import Preparer
from cutline.edge.generation.result import Answer, Decision, Forecast
from cutline.edge.inference.drafter import Drafter, OpenDrafter
from cutline.edge.inference.target_prefix import device_cuts
from cutline.edge.journal import LIKELIEST, is_kept, record
from cutline.edge.offload.backends.backends import Backends
from cutline.edge.offload.backends.device_models import DeviceModels
from cutline.edge.offload.backends.worker_backend import WorkerContact
from cutline.edge.offload.heartbeat import NOTICE
from cutline.edge.offload.route import Route
from cutline.edge.offload.router import Router
from cutline.edge.offload.status import AgentState, promises_of, unready
from cutline.edge.offload.worker_pool import Workers
from cutline.edge.precedence import Precedence
from cutline.edge.request_planner import RequestPlanner
from cutline.edge.result_builder import account, from_memory, planned
from cutline.errors import InputError, ModelMismatch
from cutline.models.bundle import Bundle
from cutline.models.pairs.pair import DESCRIPTION, served_model
from cutline.models.prompt import TEMPLATE
from cutline.models.vocabulary import TOKENIZER
from cutline.protos.channel.credentials import NO_KEYS, AgentKeys
from cutline.protos.request_ids import new_request_id

if TYPE_CHECKING:  # an agent loads nothing of what it does not do
    from cutline.core.escalations.recorder import EscalationRecorder
    from cutline.edge.audit.spool import AuditSpool
    from cutline.edge.generation.semantic_cache import SemanticCache
    from cutline.edge.offload.backends.openai_upstream import Upstream
    from cutline.edge.planning.planner import Planner

MAX_NOTICE = 60.0  # seconds

Tell = Callable[[Event], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """What few agents need.

    In place of workers there may be an `upstream`, another server with a model of its own. An agent that is `offline`
    connects to none of them. Answers that are in `memory` are not made again; one that is `fresh` uses nothing of a
    request for the next, neither pictures that a worker keeps nor states of its own. What an answer takes of energy the
    `meter` says. Models run on ONNX Runtime's `provider`. A share `audit` of kept answers is checked by the target;
    what that shows of a drafter is in a file in the folder `audit_records`, if there is one, and known at the next
    start; those that are still to be checked wait in the `audit_spool`, which ends with the agent.
    Answers of the target are kept in the `journal`, which ends with the agent. A drafter that does not run on ONNX
    Runtime is loaded by an `open_drafter` of its own.
    """

    upstream: Upstream | None = None
    offline: bool = False
    memory: SemanticCache | None = None
    fresh: bool = False
    meter: EnergyMeter | None = None
    provider: str = CPU
    audit: float = 0.0
    audit_records: Path | None = None
    audit_spool: AuditSpool | None = None
    journal: EscalationRecorder | None = None
    open_drafter: OpenDrafter = Drafter.open


class Agent:
    """Answers with a drafter's bundle and, unless there is none, a worker: the first that serves of those in `worker`.

    That is an address, several in the order of their cost, or the `Workers` themselves; they are reached by `keys`. One
    of which nothing is heard for `notice` seconds is given up. With a target's bundle in place of a drafter's there is
    none: workers answer, and drafts are what answers of late said.

    With the `target`'s bundle, its first layers can run here: a request says up to which cut, or in mode `auto` the
    `planner` does, which needs both worker and target, or an upstream. Without `threads` each model has as many as this
    process has cores. Use as an async context manager; requests may be answered concurrently. Raises ModelMismatch if
    the drafter was made for another target, InputError for what does not go together.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        worker: str | Sequence[str] | Workers | None = None,
        target: Bundle | None = None,
        planner: Planner | None = None,
        threads: int | None = None,
        keys: AgentKeys = NO_KEYS,
        notice: float = NOTICE,
        settings: AgentSettings = AgentSettings(),
    ) -> None:
        served, drafter = served_model(bundle), None if bundle.manifest.role == "target" else bundle
        self.manifest = served.manifest
        if drafter is None and (planner is not None or settings.upstream is not None):
            raise InputError("without a drafter neither is planned nor an upstream asked; give a drafter's bundle")
        if target is not None and target.manifest.identity != self.manifest.target:
            raise ModelMismatch(f"{bundle.path} drafts for another target than {target.path}; export it for this one")
        if not 0.0 < notice <= MAX_NOTICE:
            raise InputError(f"notice is {notice}; give more than 0 and at most {MAX_NOTICE:.0f} seconds")
        if settings.upstream is not None and worker:
            raise InputError("an upstream answers in place of workers; give one or the other")
        if planner is not None and settings.upstream is None and (not worker or target is None):
            raise InputError("planning needs a worker and the target's bundle; give --worker and --target")
        if planner is not None and planner.upstream != (settings.upstream is not None):
            raise InputError("an upstream is planned for by its own planner, and no worker is by that")
        self._prompts = prompts = served.prompts
        self._preparer = Preparer(self.manifest, prompts, target, planned=planner is not None, fresh=settings.fresh)
        models = DeviceModels(
            drafter,
            target,
            served,
            threads=threads or usable_cores(),
            provider=settings.provider,
            fresh=settings.fresh,
            open_drafter=settings.open_drafter,
        )
        if not isinstance(worker, Workers):
            addresses = () if worker is None else (worker,) if isinstance(worker, str) else worker
            worker = Workers(addresses, keys=keys, offline=settings.offline)
        self.workers = worker
        self._backends = Backends(
            drafter=drafter,
            models=models,
            contact=WorkerContact(served=self.manifest, workers=worker, notice=notice),
            upstream=settings.upstream,
            vocabulary=prompts.vocabulary,
        )
        self._planning = RequestPlanner(planner, self._backends)
        check_share(settings.audit)
        if settings.audit > 0.0 and settings.upstream is not None:
            raise InputError("an upstream has another model, which audits nothing; leave out audit or the upstream")
        if settings.journal is not None and settings.upstream is not None:
            raise InputError("an upstream has another model, of which no drafter learns; leave out journal or upstream")
        if settings.audit > 0.0 and (why := self._backends.gate.unaudited) is not None:
            raise InputError(f"{why}; calibrate by another measure, or leave out audit")
        self._backends.audits.share = settings.audit
        self._audit_records = settings.audit_records
        if (file := self._audit_record) is not None:
            self._backends.audits.load(file, of=self._backends.calibration)
        self._precedence = Precedence()
        self._auditor = Auditor(
            self._backends.audits,
            lambda: (self._backends.gate, self._backends.calibration),
            ask=lambda request: self._metered(request, lambda event: None),
            idle=lambda: self._waited_for == 0,
            save=self._save_audits,
            spool=settings.audit_spool,
            planned=planner is not None,
        )
        self._waited_for = 0  # answers that somebody waits for
        self._memory = settings.memory
        self._journal = settings.journal
        self._meter = settings.meter or EnergyMeter()

    async def __aenter__(self) -> Agent:
        await self.workers.open()
        self._planning.open()
        await self._auditor.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._auditor.__aexit__()
        await self._planning.close()
        await self.workers.close()
        if self._backends.upstream is not None:
            await self._backends.upstream.close()
        if self._journal is not None:
            await asyncio.to_thread(self._journal.close)

    @property
    def audits_waiting(self) -> int:
        """Kept answers that are still to be audited."""
        return self._auditor.waiting

    @property
    def offline(self) -> bool:
        """Whether no worker is asked, nor connected to; may be set at any time, on the event loop."""
        return self.workers.offline

    @offline.setter
    def offline(self, offline: bool) -> None:
        self.workers.offline = offline
        if offline and self._backends.upstream is not None:
            self._backends.upstream.disconnect()

    async def take(self, drafter: Bundle) -> None:
        """Go on with another drafter of the same target, which is loaded meanwhile.

        What is under way ends with the old one. The new one only drafts: its gate opens, group by group, once the
        target's answers have shown that it keeps its promise. Raises ModelMismatch, InputError, BundleError.
        """
        backends = self._backends
        if backends.drafter is None:
            raise InputError("this agent has no drafter, and takes none while it runs")
        _check_alike(backends.drafter, drafter)
        taken = await asyncio.to_thread(backends.with_drafter, drafter)
        if (why := taken.gate.unaudited) is not None:
            raise InputError(f"{drafter.path} cannot show what it promises while the agent runs: {why}; restart it")
        await self._auditor.save()
        self._backends, self.manifest = taken, drafter.manifest
        self._auditor.begin_anew(taken.audits)

    async def answer(self, question: Request) -> Answer:
        """Answer a request. Raises InputError, BundleError, WorkerError."""
        return await self._waited(question, lambda event: None)

    async def stream(self, question: Request) -> AsyncGenerator[Event]:
        """What happens while a request is answered, its `Answer` last. Raises as `answer` does, at any point.

        Close it to give up on the answer.
        """
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:  # in any thread
            loop.call_soon_threadsafe(events.put_nowait, event)

        answering = asyncio.create_task(self._waited(question, tell))
        answering.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            yield await answering
        finally:
            answering.cancel()
            await asyncio.wait([answering])

    async def _waited(self, request: Request, tell: Tell) -> Answer:
        """An answer that somebody waits for, and that may be audited."""
        backends = self._backends
        self._waited_for += 1
        try:
            answer = await self._metered(request, tell)
        finally:
            self._waited_for -= 1
        if backends is self._backends:  # an audit of another drafter's answer says nothing of this one
            self._auditor.take(request, answer)
        return answer

    async def _metered(self, request: Request, tell: Tell) -> Answer:
        if not request.request_id:
            request = msgspec.structs.replace(request, request_id=new_request_id())
        async with self._precedence.turn(request.priority):
            with self._meter.reading() as reading:
                answer = await self._answer(request, tell)
                return msgspec.structs.replace(answer, energy=self._meter.energy(reading))

    async def _answer(self, request: Request, tell: Tell) -> Answer:
        """Prepare, plan, route, report."""
        backends = self._backends  # which may change meanwhile
        generation = self._begun(request, tell)
        prepared = await self._prepare(request, generation)
        chosen = await self._planning.plan(prepared, generation)
        execution = Execution.unplanned(request) if chosen is None else chosen.execution
        tell(planned(execution, chosen))
        if (recalled := await self._recall(prepared, generation)) is not None:
            return recalled
        route = await Router(backends, prepared, execution, generation).run()
        forecast = await self._planning.learn(chosen, prepared, generation, route)
        generation.finish()
        self._learn(backends, prepared, generation, route)
        return await self._report(prepared, execution, generation, route, forecast)

    def _begun(self, request: Request, tell: Tell) -> Generation:
        transcript = Transcript(self._backends.vocabulary, request.stop, likely=request.logprobs is not None)
        stops = request.sampling.stops(self.manifest.stop_tokens)
        generation = Generation(time.perf_counter(), transcript, tell, stops, alternatives=request.logprobs)
        if request.logprobs is None and self._journal is not None and is_kept(request):
            generation.alternatives = LIKELIEST
        return generation

    async def _prepare(self, request: Request, generation: Generation) -> Prepared:
        prepared = await asyncio.to_thread(self._preparer.prepare, request)
        generation.limit = prepared.limit
        generation.parts.lap("prepare")
        return prepared

    async def _recall(self, prepared: Prepared, generation: Generation) -> Answer | None:
        """The answer in memory, if there is one to the same request about near-identical images."""
        request = prepared.request
        if self._memory is None or request.exact:
            return None
        found = await asyncio.to_thread(self._memory.find, request, prepared.images)
        if found is None:
            return None
        generation.parts.lap("memory")
        generation.tell(Settled(0, tuple(found[0].tokens)))
        gate = self._backends.said(group_of(request), Decision.RECALLED)
        return from_memory(*found, prepared, generation, gate)

    def _learn(self, backends: Backends, prepared: Prepared, generation: Generation, route: Route) -> None:
        """Learn from what is the target's own, with the `backends` that the answer is of."""
        if not route.exact or route.tail is not None:
            return
        backends.models.learn(prepared, generation)
        if route.unkept is not None:
            gate, theirs = backends.gate, backends.worded(generation.tokens)
            agreed = gate.agrees(route.gate.group, route.unkept, theirs)
            backends.audits.note_unkept(route.gate.group, gate, confidence=generation.confidence or 0.0, agreed=agreed)
        if self._journal is not None:
            drafter = "" if backends.drafter is None else backends.drafter.manifest.identity
            record(self._journal, prepared, generation, served=self.manifest, drafter=drafter)

    async def _report(
        self,
        prepared: Prepared,
        execution: Execution,
        generation: Generation,
        route: Route,
        forecast: Forecast | None,
    ) -> Answer:
        """The answer, which is remembered where there is a memory."""
        answer = account(prepared, execution, generation, route, forecast)
        if self._memory is not None:
            await asyncio.to_thread(self._memory.keep, prepared.request, prepared.images, answer)
        return answer

    @property
    def _audit_record(self) -> Path | None:
        """The file for what audits show of the drafter."""
        return self._audit_records and self._audit_records / f"{self.manifest.identity[:16]}.json"

    def _save_audits(self) -> None:
        if (file := self._audit_record) is not None:
            self._backends.audits.save(file, of=self._backends.calibration)

    def state(self) -> AgentState:
        """How it stands now."""
        backends, target = self._backends, self._backends.models.target
        upstream = backends.upstream
        asks = bool(self.workers.addresses) and not self.offline
        cloud = asks or (upstream is not None and not self.offline)
        alone = backends.drafter is not None
        needs = {Mode.CLOUD: cloud, Mode.DRAFT: asks, Mode.SPLIT: asks and target is not None, Mode.EDGE: alone}
        verified = bool(self.workers.addresses or self.workers.nobody)
        why = unready(self.manifest, workers=verified, upstream=upstream is not None)
        return AgentState(
            ready=why is None,
            why=why,
            offline=self.offline,
            modes=tuple(mode for mode in Mode if needs.get(mode, True)),
            drafter=self.manifest.name,
            target=None if target is None else target.name,
            cuts=() if target is None else device_cuts(target),
            plans=self._planning.plans,
            tools=self._prompts.takes_tools,
            videos=self.manifest.family.video is not None,
            upstream=None if upstream is None else upstream.url,
            promises=promises_of(backends.gate),
            audits=backends.audits.every(backends.gate),
            journal=None if self._journal is None else self._journal.counts,
            workers=self.workers.states,
        )


def _check_alike(old: Bundle, new: Bundle) -> None:
    """Check that one drafter may take the other's place while an agent runs. Raises ModelMismatch, InputError."""
    ours, theirs = old.manifest, new.manifest
    if theirs.target != ours.target:
        raise ModelMismatch(f"{new.path} drafts for another target than {old.path}; export it for this one")
    same = [ours.family == theirs.family, ours.stop_tokens == theirs.stop_tokens, ours.penalties == theirs.penalties]
    same += [ours.image_token == theirs.image_token, ours.decoder.context == theirs.decoder.context]
    same += [ours.files.get(name) == theirs.files.get(name) for name in (TOKENIZER, TEMPLATE, DESCRIPTION)]
    if theirs.role != "drafter" or DESCRIPTION in theirs.files or not all(same):
        raise InputError(f"{new.path} reads other prompts than {old.path}, which needs a restart")
