"""What a demo run found: every outcome, and the figures made from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

import msgspec
import numpy as np

from cutline.core.request import Mode
from cutline.demo.questions import KINDS
from cutline.demo.requests import CardRequest
from cutline.edge.generation.result import Answer

SHOWN_MODES = (Mode.EDGE, Mode.CLOUD, Mode.DRAFT, Mode.AUTO)  # that a demo shows: the target is not cut in it


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request answered in one mode, beside the unsplit target's own answer (its text and token ids)."""

    request: CardRequest
    answer: Answer
    target_text: str
    target_ids: tuple[int, ...]

    @property
    def right(self) -> bool:
        """Whether the answer is the right one."""
        return self.answer.text == self.request.question.answer

    @property
    def identical(self) -> bool:
        """Whether the answer has exactly the unsplit target's tokens."""
        return tuple(token.id for token in self.answer.tokens) == self.target_ids

    @property
    def offloaded(self) -> bool:
        """Whether the worker was asked."""
        return self.answer.worker is not None


class ModeResult(msgspec.Struct, frozen=True, kw_only=True):
    """A mode's figures over `n` requests: rates in 0..1, bytes, rounds and tokens as means a request."""

    mode: Mode
    n: int
    right: float
    identical_to_target: float
    p50_ms: float
    p95_ms: float
    ttft_p50_ms: float
    bytes_up: float
    bytes_down: float
    rounds: float
    tokens: float
    drafted: float
    accepted: float
    offloaded: float
    kept_agreement: float | None  # of answers that the edge gave alone, those equal to the target's


# What people are shown of a mode, in this order.
FIGURES: dict[str, Callable[[ModeResult], str]] = {
    "right": lambda mode: f"{mode.right:.1%}",
    "= target": lambda mode: f"{mode.identical_to_target:.1%}",
    "latency p50": lambda mode: f"{mode.p50_ms:.0f} ms",
    "latency p95": lambda mode: f"{mode.p95_ms:.0f} ms",
    "first token p50": lambda mode: f"{mode.ttft_p50_ms:.0f} ms",
    "bytes up": lambda mode: f"{mode.bytes_up:.0f}",
    "bytes down": lambda mode: f"{mode.bytes_down:.0f}",
    "round trips": lambda mode: f"{mode.rounds:.2f}",
    "tokens": lambda mode: f"{mode.tokens:.1f}",
    "drafted": lambda mode: f"{mode.drafted:.1f}",
    "accepted": lambda mode: f"{mode.accepted:.1f}",
    "offloaded": lambda mode: f"{mode.offloaded:.0%}",
    "kept = target": lambda mode: "" if mode.kept_agreement is None else f"{mode.kept_agreement:.1%}",
}


class ModelResult(msgspec.Struct, frozen=True, kw_only=True):
    """A model alone: how often it is right, over all questions and for each kind."""

    name: str
    identity: str
    right: float
    right_by_kind: dict[str, float]


class DemoResult(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run."""

    modes: list[ModeResult]
    target: ModelResult
    drafter: ModelResult
    link: str
    images: int
    seed: int


def mode_result(mode: Mode, outcomes: Sequence[Outcome]) -> ModeResult:
    """The figures of one mode's outcomes."""
    answers = [outcome.answer for outcome in outcomes]
    latencies = [answer.latency_ms for answer in answers]
    kept = [outcome.identical for outcome in outcomes if not outcome.offloaded]
    return ModeResult(
        mode=mode,
        n=len(outcomes),
        right=fmean(outcome.right for outcome in outcomes),
        identical_to_target=fmean(outcome.identical for outcome in outcomes),
        p50_ms=float(np.percentile(latencies, 50)),
        p95_ms=float(np.percentile(latencies, 95)),
        ttft_p50_ms=float(np.percentile([answer.ttft_ms for answer in answers], 50)),
        bytes_up=fmean(answer.bytes_up for answer in answers),
        bytes_down=fmean(answer.bytes_down for answer in answers),
        rounds=fmean(answer.rounds for answer in answers),
        tokens=fmean(len(answer.tokens) for answer in answers),
        drafted=fmean(answer.drafted for answer in answers),
        accepted=fmean(answer.accepted for answer in answers),
        offloaded=fmean(outcome.offloaded for outcome in outcomes),
        kept_agreement=fmean(kept) if kept else None,
    )


def model_result(name: str, identity: str, answered: Iterable[tuple[CardRequest, str]]) -> ModelResult:
    """A model's figures from its answers' texts."""
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for request, text in answered:
        right[request.question.kind].append(text == request.question.answer)
    by_kind = {kind: fmean(found) for kind, found in right.items() if found}
    return ModelResult(
        name=name, identity=identity, right=fmean(chain.from_iterable(right.values())), right_by_kind=by_kind
    )
