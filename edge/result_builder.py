"""The account of an answer: what it cost, where it came from, and how it was planned."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from cutline.edge.generation.events import Planned
from cutline.edge.generation.generation import Execution, Generation, Prepared
from cutline.edge.generation.result import Answer, DraftedBy, Forecast, Gated, Provenance, Recalled, Tail
from cutline.edge.offload.route import Route

if TYPE_CHECKING:
    from cutline.edge.planning.plan_result import Chosen


def account(
    prepared: Prepared, execution: Execution, generation: Generation, route: Route, forecast: Forecast | None
) -> Answer:
    """The answer to a `prepared` request: what the `generation` has, by the `route` that it went."""
    request, worker, latency = prepared.request, route.worker, route.seconds
    return Answer(
        text=generation.transcript.text,
        tokens=generation.transcript.tokens,
        mode=request.mode,
        latency_ms=latency * 1e3,
        ttft_ms=latency * 1e3 if generation.first is None else (generation.first - generation.began) * 1e3,
        bytes_up=route.bytes_up,
        bytes_down=route.bytes_down,
        rounds=generation.rounds,
        drafted=generation.drafted,
        accepted=generation.sources.count(Provenance.DRAFT),
        recent=generation.record(DraftedBy.RECENT)[0],
        passes=route.passes,
        exact=False if worker is None or route.tail is Tail.UNVERIFIED else route.exact,
        cut=execution.cut if worker else None,
        wire=execution.wire if worker and execution.cut != "image" else None,
        worker=worker,
        confidence=generation.confidence,
        complete=generation.ended,
        ending=generation.ending,
        plan=forecast,
        gate=route.gate,
        prompt_tokens=len(prepared.prompt),
        reused_images=generation.reused_images if worker else 0,
        reused_tokens=generation.opened[1].reused if worker and generation.opened else 0,
        reduced_images=prepared.reduced,
        video=prepared.video,
        lost=tuple(route.lost),
        alone_from=route.alone_from,
        tail=route.tail,
        parts_ms=_parts_ms(generation),
        seed=request.sampling.seed if request.sampling.temperature > 0.0 else None,
        request_id=request.request_id,
    )


def from_memory(
    remembered: Answer, recalled: Recalled, prepared: Prepared, generation: Generation, gate: Gated
) -> Answer:
    """The answer to a request that was `remembered`: its tokens keep their sources, and nobody was asked anew."""
    latency_ms = (time.perf_counter() - generation.began) * 1e3
    return msgspec.structs.replace(
        remembered,
        latency_ms=latency_ms,
        ttft_ms=latency_ms,
        bytes_up=0,
        bytes_down=0,
        rounds=0,
        drafted=0,
        accepted=0,
        recent=0,
        passes=0,
        exact=False,
        worker=None,
        cut=None,
        wire=None,
        plan=None,
        gate=gate,
        lost=(),
        reused_images=0,
        reused_tokens=0,
        reduced_images=prepared.reduced,
        video=prepared.video,
        energy=None,
        recalled=recalled,
        parts_ms=_parts_ms(generation),
        request_id=prepared.request.request_id,
    )


def planned(execution: Execution, chosen: Chosen | None) -> Planned:
    """How an answer will be made; `chosen` if that was planned."""
    return Planned(
        mode=execution.mode,
        cut=execution.cut,
        wire=execution.wire if execution.cut != "image" else None,
        predicted_ms=None if chosen is None else chosen.plan.latency_ms,
        why=None if chosen is None else chosen.why,
    )


def _parts_ms(generation: Generation) -> dict[str, float]:
    return {part: took * 1e3 for part, took in generation.parts.seconds.items()}
