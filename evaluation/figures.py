"""What records come to, mode by mode: right answers, how sure that is, time and cost."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from cutline.core.request import Mode
from cutline.evaluation.records import EvalRecord
from cutline.evaluation.scores import CIDER, Score

Z = 1.959963984540054  # standard deviations about a normal mean that hold 95% of it
RESAMPLES = 1000  # of a bootstrap
FEW = 20_000  # questions up to which there is one; of more, means are normal
BINS = 10  # of confidence, equally wide


class Interval(msgspec.Struct, frozen=True):
    """A figure, and where it is with 95% confidence."""

    value: float
    low: float
    high: float


class GroupFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A group's score in a mode, over the `n` of its questions whose right answer is known."""

    n: int
    score: Interval


class Reliability(msgspec.Struct, frozen=True, kw_only=True):
    """Of a bin of confidence: `n` answers, how sure their drafter was, and their score, as means."""

    n: int
    confidence: float
    score: float


class ModeFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A mode's figures over `n` questions, `known` of them with right answers; bytes, rounds, joules as means.

    `to_cloud` is the score less that of mode cloud on the same questions, `same` the share of answers with exactly its
    tokens (its text, of an upstream), `kept_same` that of those that no worker was asked for. `calibration_error` is
    the expected one of the confidences, by `reliability`. `within` is the share of answers within the limit of latency.
    """

    n: int
    known: int
    score: Interval | None
    to_cloud: Interval | None
    same: float | None
    kept_same: float | None
    p50_ms: float
    p95_ms: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    within: float | None
    bytes_up: float
    bytes_down: float
    rounds: float
    tokens: float
    joules: float | None
    asked: float
    calibration_error: float | None
    reliability: list[Reliability | None]
    groups: dict[str, GroupFigures]


@dataclass(slots=True)
class _Sums:
    """What is summed of a mode: a few numbers a question, whatever was said."""

    latency: array[float] = field(default_factory=lambda: array("f"))
    ttft: array[float] = field(default_factory=lambda: array("f"))
    rows: array[float] = field(default_factory=lambda: array("f"))  # of the score, one behind the other
    known: int = 0
    apart: array[float] = field(default_factory=lambda: array("f"))  # from cloud's score
    groups: dict[str, array[int]] = field(default_factory=dict)  # their places among the rows
    costs: NDArray[np.float64] = field(default_factory=lambda: np.zeros(5))
    joules: list[float] = field(default_factory=lambda: [0.0, 0.0])
    same: list[int] = field(default_factory=lambda: [0, 0])
    kept: list[int] = field(default_factory=lambda: [0, 0])
    within: int = 0
    bins: NDArray[np.float64] = field(default_factory=lambda: np.zeros((BINS, 3)))


Row32 = NDArray[np.float32]


def figures_of(
    questions: Iterable[Sequence[EvalRecord]], modes: Sequence[Mode], score: Score, *, limit_ms: float | None = None
) -> dict[Mode, ModeFigures]:
    """The figures of each mode over the records of questions, of which none is held."""
    sums = {mode: _Sums() for mode in modes}
    for records in questions:
        by_mode = {record.mode: record for record in records if record.why is None}
        cloud = by_mode.get(Mode.CLOUD)
        right = None if cloud is None else _row(score, cloud)
        for mode, record in by_mode.items():
            assert mode is not None
            _add(sums[mode], record, score, cloud, right, limit_ms)
    return {mode: _figures(of, score, limit_ms) for mode, of in sums.items() if of.latency}


def drop(figures: ModeFigures, other: ModeFigures) -> Interval | None:
    """By how much the score falls from the first to the other's questions, which are others."""
    if figures.score is None or other.score is None:
        return None
    ours, theirs = figures.score, other.score
    value = ours.value - theirs.value
    low = math.hypot(ours.value - ours.low, theirs.high - theirs.value)  # Newcombe's, from both intervals
    high = math.hypot(ours.high - ours.value, theirs.value - theirs.low)
    return Interval(value, value - low, value + high)


def wilson(found: float, count: int) -> Interval:
    """A share of `count`, with Wilson's interval."""
    share = found / count
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return Interval(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))


def resampled(rows: NDArray[np.float32], score: Score) -> Interval:
    """The figure of rows (n, columns), with the interval of a bootstrap (percentiles), or of many a normal one."""
    value = score.whole(np.asarray(rows.mean(axis=0, dtype=np.float64)))
    if len(rows) > FEW and rows.shape[1] == 1:
        half = Z * float(rows.std(dtype=np.float64)) / math.sqrt(len(rows))
        return Interval(value, value - half, value + half)
    rng = np.random.default_rng(0)
    drawn = np.array([score.whole(_mean_of(rows, rng)) for _ in range(RESAMPLES)])
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def _mean_of(rows: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float64]:
    return np.asarray(rows[rng.integers(0, len(rows), len(rows))].mean(axis=0), np.float64)


def _row(score: Score, record: EvalRecord) -> Row32 | None:
    return score.row(record.text, record.answers).astype(np.float32) if record.answers else None


def _add(
    of: _Sums, record: EvalRecord, score: Score, cloud: EvalRecord | None, right: Row32 | None, limit_ms: float | None
) -> None:
    of.latency.append(record.latency_ms)
    of.ttft.append(record.ttft_ms)
    of.costs += record.bytes_up, record.bytes_down, record.rounds, len(record.tokens), record.asked
    of.within += limit_ms is not None and record.latency_ms <= limit_ms
    if record.joules is not None:
        of.joules[0] += record.joules
        of.joules[1] += 1
    if cloud is not None:
        foreign = record.foreign or cloud.foreign
        same = record.text == cloud.text if foreign else record.tokens == cloud.tokens
        for counted in (of.same, *([] if record.asked else [of.kept])):
            counted[0] += same
            counted[1] += 1
    if (row := _row(score, record)) is None:
        return
    value = score.whole(row)
    if record.group is not None:
        of.groups.setdefault(record.group, array("q")).append(of.known)
    of.rows.extend(row.tolist())
    of.known += 1
    if right is not None:
        of.apart.append(value - score.whole(right))
    if record.confidence is not None and score.name != CIDER:  # which no probability can equal
        into = of.bins[min(BINS - 1, int(record.confidence * BINS))]
        into += 1, record.confidence, value


def _figures(of: _Sums, score: Score, limit_ms: float | None) -> ModeFigures:
    n = len(of.latency)
    up, down, rounds, tokens, asked = (of.costs / n).tolist()
    rows = np.array(of.rows, np.float32).reshape(of.known, -1 if of.known else 1)
    (p50, p95), (first50, first95) = (np.percentile(times, [50, 95]).tolist() for times in (of.latency, of.ttft))
    judged = of.bins[:, 0].sum()
    means = of.bins[:, 1:] / np.maximum(of.bins[:, :1], 1)
    error = float((of.bins[:, 0] * abs(means[:, 0] - means[:, 1])).sum() / judged) if judged else None
    return ModeFigures(
        n=n,
        known=len(rows),
        score=_interval(rows, score),
        to_cloud=resampled(np.array(of.apart, np.float32)[:, None], _MEAN) if of.apart else None,
        same=_share(of.same),
        kept_same=_share(of.kept),
        p50_ms=p50,
        p95_ms=p95,
        ttft_p50_ms=first50,
        ttft_p95_ms=first95,
        within=None if limit_ms is None else of.within / n,
        bytes_up=up,
        bytes_down=down,
        rounds=rounds,
        tokens=tokens,
        joules=of.joules[0] / of.joules[1] if of.joules[1] else None,
        asked=asked,
        calibration_error=error,
        reliability=[
            Reliability(n=int(count), confidence=float(sure), score=float(right)) if count else None
            for count, (sure, right) in zip(of.bins[:, 0], means, strict=True)
        ],
        groups={
            name: GroupFigures(n=len(places), score=found)
            for name, places in sorted(of.groups.items())
            if (found := _interval(rows[np.array(places)], score)) is not None
        },
    )


_MEAN = Score("mean", lambda text, answers: np.zeros(1))


def _interval(rows: NDArray[np.float32], score: Score) -> Interval | None:
    if not len(rows):
        return None
    return wilson(float(rows.sum()), len(rows)) if score.shares else resampled(rows, score)


def _share(counted: Sequence[int]) -> float | None:
    return counted[0] / counted[1] if counted[1] else None
