"""The account of an answer: what it cost, where it came from, and how it was planned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cutline.core.request import Mode, Request
from cutline.core.wire import Wire
from cutline.edge.generation.events import Planned
from cutline.edge.generation.generation import Generation, Prepared
from cutline.edge.generation.result import Answer, Forecast, Provenance, Recalled, Tail
from cutline.edge.offload.failover import Failover
from cutline.models.bundle import Bundle

if TYPE_CHECKING:
    from cutline.edge.planning.plan_result import Chosen


def account(
    mode: Mode,
    prepared: Prepared,
    progress: Generation,
    asking: Failover | None,
    *,
    latency: float,
    forecast: Forecast | None,
    exact: bool | None,
    complete: bool,
) -> Answer:
    """The answer in `mode`, which took `latency` seconds as it was `prepared`; `asking` says how a worker was asked.

    `exact` is what an answer would be whose every token a worker gave, None if none could say so.
    """
    question, worker = prepared.question, None if asking is None else asking.worker
    unverified = asking is not None and asking.tail is Tail.UNVERIFIED
    return Answer(
        text=progress.transcript.text,
        tokens=progress.transcript.tokens,
        mode=mode,
        latency_ms=latency * 1e3,
        ttft_ms=latency * 1e3 if progress.first is None else (progress.first - progress.began) * 1e3,
        bytes_up=asking.bytes_up if asking else 0,
        bytes_down=asking.bytes_down if asking else 0,
        rounds=progress.rounds,
        drafted=progress.drafted,
        accepted=progress.sources.count(Provenance.DRAFT),
        exact=False if worker is None or unverified else exact,
        cut=question.cut if worker else None,
        wire=question.wire if worker and question.cut != "image" else None,
        worker=worker,
        confidence=progress.confidence,
        complete=complete,
        plan=forecast,
        gate=progress.gate,
        prompt_tokens=len(prepared.prompt),
        reused_images=progress.reused_images if worker else 0,
        reused_tokens=progress.opened[1].reused if worker and progress.opened else 0,
        reduced_images=prepared.reduced,
        lost=tuple(asking.lost) if asking else (),
        alone_from=asking.alone_from if asking else None,
        tail=asking.tail if asking else None,
        parts_ms={part: took * 1e3 for part, took in progress.parts.seconds.items()},
        seed=question.sampling.seed if question.sampling.temperature > 0.0 else None,
        request_id=question.request_id,
    )


def is_exact(question: Request, target: Bundle | None) -> bool:
    """Whether a worker's answer is the target's own, to the bit of a token; layers before a cut are of this bundle."""
    if question.cut == "image":
        return True
    deep = target is not None and question.cut in target.manifest.line.deep_cuts
    quantized = target is not None and target.manifest.precision != "fp32" and deep
    changed = question.wire is not Wire.FLOAT32 or question.keep_image_tokens < 1.0 or question.noise > 0.0
    return not changed and not quantized


def from_memory(
    remembered: Answer, recalled: Recalled, prepared: Prepared, progress: Generation, latency: float
) -> Answer:
    """The answer to a question that was `remembered`: its tokens keep their sources, and nobody was asked anew."""
    return msgspec.structs.replace(
        remembered,
        latency_ms=latency * 1e3,
        ttft_ms=latency * 1e3,
        bytes_up=0,
        bytes_down=0,
        rounds=0,
        drafted=0,
        accepted=0,
        exact=False,
        worker=None,
        cut=None,
        wire=None,
        plan=None,
        gate=progress.gate,
        lost=(),
        reused_images=0,
        reused_tokens=0,
        reduced_images=prepared.reduced,
        energy=None,
        recalled=recalled,
        parts_ms={part: took * 1e3 for part, took in progress.parts.seconds.items()},
        request_id=prepared.question.request_id,
    )


def planned(question: Request, chosen: Chosen | None) -> Planned:
    """How an answer to `question` will be made; `chosen` if that was planned."""
    return Planned(
        mode=question.mode,
        cut=question.cut,
        wire=question.wire if question.cut != "image" else None,
        predicted_ms=None if chosen is None else chosen.plan.latency_ms,
        why=None if chosen is None else chosen.why,
    )
