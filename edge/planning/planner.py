"""Planning each request: the best way to answer it by the planner's predictions and by what the agent has learnt.

The search over all choices is done once for each kind of request and kept; a request then takes the conditions of the
moment. After an answer the same choice is predicted again with all that is known by then (the answer's length, what the
gate said, the link as it showed): what is left between that and the measured latency corrects its mode. A mode that is
not chosen teaches nothing, and what was learnt of it fades.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace

import msgspec
import numpy as np

from cutline.core.lru_cache import LruCache
from cutline.core.request import Mode, Request
from cutline.core.wire import Wire
from cutline.devices.link import LinkProfile
from cutline.devices.machine.power import Sensors
from cutline.edge.generation.conditions import group_of
from cutline.edge.generation.generation import Execution, Generation, Prepared
from cutline.edge.generation.result import DraftedBy
from cutline.edge.inference.target_prefix import device_cuts
from cutline.edge.planning.plan_result import Chosen
from cutline.edge.planning.thermal import Thermal
from cutline.errors import InputError
from cutline.models.bundle import Manifest
from cutline.models.costs import layer_costs, request_sizes
from cutline.models.layerline import END
from cutline.partitioner.acceptance import FIRST_RATE, FIRST_SEEN
from cutline.partitioner.cost import Terms, served, terms_of
from cutline.partitioner.estimators import Average, LinkEstimate, Live, Observation, Opening, Reply, Serving
from cutline.partitioner.explain import conflict, refusal, summary
from cutline.partitioner.plan import Conditions, Limits, Plan, Space
from cutline.partitioner.predict import predict
from cutline.partitioner.roofline import Speed
from cutline.partitioner.search import Search, replan, search
from cutline.partitioner.setting import Asked, GateRates, Setting, own_grids
from cutline.partitioner.spans import Floats

Known = Callable[[str, Wire], int]

FLOAT32 = Wire.FLOAT32
MIN_AGREEMENT = 0.9
KINDS = 64  # of requests whose searches are kept
READY = 0.03  # by so much a plan must be better if its graphs are not loaded yet
FORESEEN_SEEN = 100  # tokens that the pair's calibrated acceptance counts for, likewise
GATE_SEEN = 20  # answers that the gate's calibration counts for, beside those seen here


class Planner:
    """Plans requests to a worker, or to an upstream, over `link`, and learns from their answers. For any threads.

    Cuts are those that the target's bundle has graphs for, wire formats those whose price was measured. `throttled`
    says whether the device is held back, None where that is not known; without it the device's own sensors do.
    """

    def __init__(
        self,
        setting: Setting,
        link: LinkProfile,
        *,
        throttled: Callable[[], bool | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._setting = setting
        self._layers = {layer.name: layer for layer in layer_costs(setting.target)}
        self._link = Conditions.over(link)
        self._clock = clock
        self._priced = setting.prices is not None
        self.upstream = isinstance(setting.cloud, Speed)
        self._cuts = ("image",) if self.upstream else _cuts(setting.target, priced=self._priced)
        sustained = setting.edge.sustained
        # Without a figure for a device that is held back there is nothing to do about it.
        self._slowed = 1.0 if sustained is None else min(sustained, 1.0)
        self._thermal = None if sustained is None else Thermal(throttled or Sensors().throttled, clock=clock)
        self._searches: LruCache[tuple[object, ...], tuple[Asked, Search]] = LruCache(KINDS)
        self._turn = threading.Lock()
        self._live = Live(
            at=clock(),
            link=LinkEstimate.around(self._link.rtt, self._link.uplink),
            acceptance=_prior(setting.acceptance),
            kept={group: Average.of(gate.kept, GATE_SEEN) for group, gate in setting.gates.items()},
            serving=Serving.around(setting.cloud) if isinstance(setting.cloud, Speed) else None,
        )

    def meet(self, start: str, end: str) -> None:
        """Plan no cut but those that a worker of the layers `[start, end)` can begin at, if it names any."""
        line = self._setting.target.line
        if {start, end} <= {*line.layers, END}:
            theirs = line.layers[line.place(start) : line.place(end)]
            self._cuts = tuple(cut for cut in _cuts(self._setting.target, priced=self._priced) if cut in theirs)

    def plan(self, prepared: Prepared, *, ready: Collection[str], known: Known = lambda cut, wire: 0) -> Chosen:
        """The best plan for a request; `ready` are the cuts whose graphs are loaded.

        `known` says how many of its images, from the first, the worker keeps as they cross a cut in a format. Raises
        InputError if none keeps to the request's limits.
        """
        with self._turn:
            live = self._live = self._live.aged(self._clock())
        question, throttled = prepared.request, self._is_throttled()
        kind = hash((question.tenant, prepared.prompt))  # the same words are often asked again, and nobody's are kept
        asked, group = self._asked(prepared, live, kind, known("image", FLOAT32)), group_of(question)
        found = self._searched(asked, self._space(question), group)
        found = replace(found, terms=self._spared(found.terms, prepared, known))
        conditions = self._conditions(live)
        factors = np.array([live.correction(choice.mode) for choice in found.terms.choices])
        bounded = replace(
            found,
            terms=self._adjusted(found.terms, live, kept=_kept(live, group), throttled=throttled),
            limits=self._limits(question),
        )
        found, aside = self._within_limits(replan(bounded, conditions, correction=factors), question, factors)
        loaded = {None, "image", *ready}
        cuts = np.array([choice.cut in loaded for choice in found.terms.choices])
        costs = np.where(found.allowed, found.found.latency * np.where(cuts, 1.0, 1 + READY), np.inf)
        found = replace(found, best=int(np.argmin(costs)))
        plan = found.plan
        assert plan is not None
        if live.serving is not None and not live.serving.answered:
            aside += "; how long the upstream takes is a guess until it has answered"
        return Chosen(
            execution=Execution(mode=plan.mode, cut=plan.cut or "image", wire=plan.wire or FLOAT32),
            plan=plan,
            next=found.runner_up,
            correction=live.correction(plan.mode),
            why=summary(found, asked) + aside,
            kind=kind,
            asked=asked,
            conditions=conditions,
            serving=live.serving,
            throttled=throttled,
        )

    def _within_limits(self, found: Search, question: Request, factors: Floats) -> tuple[Search, str]:
        """A search with a best plan, and what to say of it besides. Raises InputError where there is none.

        Before an upstream that must not be asked, or not for so long, the drafter's answer is better than none, unless
        somebody said how good it must be.
        """
        if found.best is not None:
            return found, ""
        if self.upstream and question.min_agreement is None:
            limits = msgspec.structs.replace(found.limits, agreement=0.0)
            alone = replan(replace(found, limits=limits), found.conditions, correction=factors)
            if alone.best is not None:
                return alone, f"; {conflict(found)}"
        raise InputError(refusal(found))

    def learn(
        self, chosen: Chosen, prepared: Prepared, progress: Generation, latency: float, *, whole: bool = True
    ) -> float:
        """Learn from an answer that took `latency` seconds. A cold one teaches nothing of how long things take.

        One that is not `whole`, since a worker was lost on its way, teaches nothing at all.

        Returns the seconds that would have been predicted, uncorrected, had all been known.
        """
        asked_cloud = bool(progress.sent) if self.upstream else progress.opened is not None
        gated = chosen.plan.mode is Mode.AUTO
        right, tried = progress.record(DraftedBy.DRAFTER)
        uploads = progress.opened is not None and chosen.plan.cut == "image"
        uploaded = sum(size for _, size in progress.sent[1:]) if uploads else None
        pixels = self._pixels(prepared, progress.reused_images)
        group = group_of(prepared.request)
        seen = Observation(
            kind=chosen.kind,
            tokens=max(1, len(progress.tokens)),
            group=group,
            right=_as_of_all(right, tried, self._setting.gates.get(group)) if gated else right,
            tried=tried,
            kept=not asked_cloud if gated else None,
            opening=None if progress.cold else _opening(progress),
            reply=_reply(progress) if self.upstream and not progress.cold else None,
            density=uploaded / pixels if uploaded is not None and pixels else None,
        )
        with self._turn:
            live = self._live.aged(self._clock()).after(seen, overhead=self._setting.overheads.session)
            hindsight = self._hindsight(chosen, prepared, progress, seen, live, uploaded)
            if whole:
                self._live = live if progress.cold else live.corrected(chosen.plan.mode, latency, hindsight)
        return hindsight

    def _hindsight(
        self,
        chosen: Chosen,
        prepared: Prepared,
        progress: Generation,
        seen: Observation,
        live: Live,
        uploaded: int | None,
    ) -> float:
        setting, plan, kept = self._setting_of(seen.group), chosen.plan, float(bool(seen.kept))
        if setting.gate is not None:  # its word is known, and so is the length
            setting = replace(setting, gate=replace(setting.gate, kept=kept, longer=1.0))
        asked = replace(chosen.asked, answer_tokens=seen.tokens, image_bytes=uploaded or chosen.asked.image_bytes)
        terms = self._spared(terms_of(setting, asked, _alone(plan)), prepared, lambda cut, wire: progress.reused_images)
        terms = self._adjusted(terms, live, kept=kept, throttled=chosen.throttled)
        return float(predict(terms, self._conditions(live)).latency[0])

    def _setting_of(self, group: str) -> Setting:
        """The setting with what the gate does in this group; with no gate where it keeps nothing of it."""
        return replace(self._setting, gate=self._setting.gates.get(group))

    def _asked(self, prepared: Prepared, live: Live, kind: int, known: int) -> Asked:
        """The request's sizes, as far as they are known before it is answered; `known` images need not be sent."""
        setting = self._setting
        files = sum(map(len, prepared.request.images[known:]))  # of which pieces of videos are none
        small = files if self.upstream else round(live.density.value * self._pixels(prepared, known))
        return Asked(
            grids=tuple(one.grid for one in prepared.pixels),
            image_bytes=small if prepared.pieces else min(files, small),
            prompt_tokens=len(prepared.prompt),
            answer_tokens=min(prepared.limit, _coarse(live.expected_tokens(kind), 3)),
            drafter_grids=own_grids(setting.drafter, setting.target, (one.size for one in prepared.images)),
        )

    def _pixels(self, prepared: Prepared, known: int) -> int:
        """Of the pictures that were made small for the upload: those after the `known` ones."""
        fitted, pieces = self._setting.target.family.fitted, prepared.pieces  # which are as small as they may be
        pictures = tuple(enumerate(prepared.images))[known:]
        return sum(math.prod(one.size if index in pieces else fitted(one.size)) for index, one in pictures)

    def _spared(self, terms: Terms, prepared: Prepared, known: Known) -> Terms:
        """The terms without the images that the worker keeps: they are neither run nor packed, sent or decoded."""
        target, grids = self._setting.target, [one.grid for one in prepared.pixels]
        sent, saved = np.ones(len(terms.choices)), np.zeros(len(terms.choices))
        for index, choice in enumerate(terms.choices):
            if choice.cut not in target.line.image_cuts or not (count := known(choice.cut, choice.wire or FLOAT32)):
                continue
            spared, whole = (request_sizes(target, some, 0) for some in (grids[:count], grids))
            sent[index] -= spared.patches / whole.patches
            if choice.wire is not None:  # of files only those are counted that have to be sent
                saved[index] = self._layers[choice.cut].boundary_bytes(spared, choice.wire) or 0
        return replace(
            terms,
            upload=terms.upload - saved,
            packing=terms.packing * sent,
            cloud_prepare=terms.cloud_prepare * sent,
            edge_prefill=terms.edge_prefill * sent,
        )

    def _searched(self, asked: Asked, space: Space, group: str) -> Search:
        """Every choice for a request like this one of its `group`, with the terms of this one's upload."""
        alike = replace(asked, prompt_tokens=_coarse(asked.prompt_tokens, 4), image_bytes=0)
        key = (alike, space, group)
        if (kept := self._searches.get(key)) is None:
            alike = replace(alike, image_bytes=asked.image_bytes)
            kept = alike, search(self._setting_of(group), alike, space, self._link, limits=Limits())
            self._searches.put(key, kept)
        then, found = kept
        more = np.where(found.terms.place == 0, float(asked.image_bytes - then.image_bytes), 0.0)
        more *= 4 / 3 if self.upstream else 1.0
        return replace(found, terms=replace(found.terms, upload=found.terms.upload + more))

    def _space(self, question: Request) -> Space:
        """What may be chosen: never the drafter's answer without the gate, if that keeps any of the request's group.

        But before an upstream, where no cut gives the target's answer to a picture that stays.
        """
        modes: tuple[Mode, ...] = (Mode.EDGE, Mode.CLOUD, Mode.AUTO) if self.upstream else (Mode.DRAFT, Mode.AUTO)
        if question.mode is Mode.SPLIT:
            modes = (Mode.SPLIT,)
        elif question.effort == 1.0 and not self.upstream:  # without drafts the worker decodes alone
            modes = (Mode.CLOUD, Mode.SPLIT, *modes)
        return Space(
            modes=modes,
            cuts=self._cuts,
            wires=tuple(Wire) if self._priced else (Wire.FLOAT32,),
            efforts=(question.effort,),
        )

    def _limits(self, question: Request) -> Limits:
        latency, edge, pictures = question.max_latency_ms, self._setting.edge, bool(question.images)
        return Limits(
            latency=None if latency is None else latency / 1e3,
            memory=edge.memory_free_bytes or edge.memory_bytes,
            image_must_stay=question.image_must_stay and pictures,
            exact=question.exact,
            agreement=MIN_AGREEMENT if question.min_agreement is None else question.min_agreement,
            leak=question.max_leak if pictures else None,
        )

    def _conditions(self, live: Live) -> Conditions:
        return msgspec.structs.replace(
            self._link,
            rtt=live.link.trip.value,
            uplink=1 / live.link.byte.value,
            queue=live.queue.value,
            acceptance=live.acceptance.value,
        )

    def _is_throttled(self) -> bool:
        return self._thermal is not None and self._thermal.throttled()

    def _adjusted(self, terms: Terms, live: Live, *, kept: float, throttled: bool) -> Terms:
        """The terms where the gate keeps the share `kept`, on a device that is held back or not."""
        slow = 1 / self._slowed if throttled else 1.0
        if live.serving is not None:
            terms = served(terms, Speed(live.serving.first.value, live.serving.token.value))
        return replace(
            terms,
            kept=kept,
            prepare=terms.prepare * slow,
            packing=terms.packing * slow,
            drafter=Speed(terms.drafter.first * slow, terms.drafter.token * slow),
            edge_prefill=terms.edge_prefill * slow,
            edge_step=terms.edge_step * slow,
        )


def _prior(acceptance: float | None) -> Average:
    """How often a drafted token is right, before any was seen: as calibrated, or as is mostly so."""
    return Average.of(FIRST_RATE, FIRST_SEEN) if acceptance is None else Average.of(acceptance, FORESEEN_SEEN)


def _kept(live: Live, group: str) -> float:
    """The share of answers that the gate keeps of a group; none of one that was not calibrated."""
    return live.kept[group].value if group in live.kept else 0.0


def _as_of_all(right: int, tried: int, gate: GateRates | None) -> float:
    """How many of `tried` tokens would be right in all answers, if these are of one that the gate passed on."""
    return tried - (tried - right) / (1.0 if gate is None else gate.harder)


def _opening(progress: Generation) -> Opening | None:
    """How the session's opening went, if there was a session."""
    if progress.opened is None:
        return None
    began = progress.sent[0][0]
    at, opened = progress.opened
    return Opening(
        sent=[(when - began, size) for when, size in progress.sent],
        answered=at - began,
        upload=opened.upload_seconds,
        prepare=opened.prepare_seconds,
        queue=opened.queue_seconds,
    )


def _reply(progress: Generation) -> Reply | None:
    """How the upstream replied, if it was asked and did."""
    if not progress.sent or progress.first is None or progress.last is None:
        return None
    at, size = progress.sent[0]
    return Reply(size=size, first=progress.first - at, later=progress.last - progress.first, trip=progress.connecting)


def _alone(plan: Plan) -> Space:
    """The space of this plan alone."""
    effort = 1.0 if plan.drafting is None else plan.drafting.effort
    return Space(modes=(plan.mode,), cuts=(plan.cut or "image",), wires=(plan.wire or Wire.FLOAT32,), efforts=(effort,))


def _cuts(target: Manifest, *, priced: bool) -> tuple[str, ...]:
    """The cuts that may be chosen: quantized layers on the device only where it was measured what they change."""
    cuts = ("image", *(cut for cut in device_cuts(target) if cut != "image"))
    return tuple(cut for cut in cuts if priced or target.is_exact_at(cut, FLOAT32))


def _coarse(count: float, bits: int) -> int:
    """`count` to so many leading binary digits, 1 at least: kinds of requests that are alike share a search."""
    whole = max(1, round(count))
    step = 1 << max(0, whole.bit_length() - bits)
    return max(1, round(whole / step) * step)
