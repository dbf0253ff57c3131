"""What bench/plan_accuracy.py makes of its measurements: errors of predictions, and what a choice by them costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, combinations, product
from typing import Any

import msgspec
import numpy as np


class Bound(msgspec.Struct, frozen=True):
    """What a plan must keep to."""

    exact: bool = False
    image_must_stay: bool = False


# What plans may be bound by: `Limits` of the planner and fields of a question alike; both want agreement 0.9 anyway.
LIMITS = {
    "none": Bound(),
    "exact": Bound(exact=True),
    "exact, image stays": Bound(exact=True, image_must_stay=True),
}


class Timed(msgspec.Struct, frozen=True, kw_only=True):
    """One plan in one cell: means over the requests, in milliseconds; `parts_ms` are those of the prediction."""

    plan: str
    mode: str
    cut: str | None
    predicted_ms: float
    measured_ms: float
    parts_ms: dict[str, float]

    @property
    def error(self) -> float:
        """How far the prediction is off, as a share of what was measured."""
        return self.predicted_ms / self.measured_ms - 1


class Choosing(msgspec.Struct, frozen=True, kw_only=True):
    """What was chosen in a cell among the plans that keep to `limits`, beside the best of them as measured.

    All three are measured side by side; `auto_ms` are those of an agent that plans by itself. `plain_ms` are those of
    the best mode without planning, which uploads the picture; None where the limits forbid that.
    """

    limits: str
    chosen: str
    chosen_ms: float
    best: str
    best_ms: float
    auto_ms: float
    plain_ms: float | None

    @property
    def regret(self) -> float:
        """What the planner's choice takes longer than the best plan, as a share of that."""
        return self.chosen_ms / self.best_ms - 1

    @property
    def auto_loss(self) -> float:
        """What the agent that plans takes longer than the best plan; below 0 if it found one that was not measured."""
        return self.auto_ms / self.best_ms - 1


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """A device with the share `speed` of its core, on a link."""

    speed: float
    link: str
    plans: list[Timed]
    choosing: list[Choosing]


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """How far `n` predictions are off: absolute errors, and by how much they are too long (or short, below 0)."""

    n: int
    median: float
    ninth_decile: float
    bias: float


class Regret(msgspec.Struct, frozen=True, kw_only=True):
    """What `n` choices by prediction take longer than the best of the same plans, as shares of that."""

    n: int
    median: float
    ninth_decile: float
    most: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run: the cells and the figures that sum them up."""

    prompt_tokens: float
    answer_tokens: float
    acceptance: float
    error: Spread
    error_by_mode: dict[str, Spread]
    regret_median: float
    regret_most: float
    regret_by_cuts: Regret
    auto_within: float
    auto_within_plain: float
    cells: list[Cell]


def result(cells: Sequence[Cell], *, prompt_tokens: float, answer_tokens: float, acceptance: float) -> Result:
    """The figures of all cells.

    `auto_within` is the share of choices in which the agent lost at most 5% to the best plan of all,
    `auto_within_plain` to the best mode without planning.
    """
    every = [plan for cell in cells for plan in cell.plans]
    choices = [choosing for cell in cells for choosing in cell.choosing]
    regrets = [one.regret for one in choices]
    plain = [one.auto_ms / one.plain_ms - 1 for one in choices if one.plain_ms is not None]
    return Result(
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        acceptance=acceptance,
        error=spread(every),
        error_by_mode=grouped(every, lambda plan: plan.mode),
        regret_median=float(np.median(regrets)),
        regret_most=max(regrets),
        regret_by_cuts=regret_by_cuts(cells),
        auto_within=sum(one.auto_loss <= 0.05 for one in choices) / len(choices),
        auto_within_plain=sum(loss <= 0.05 for loss in plain) / len(plain),
        cells=list(cells),
    )


def regret_by_cuts(cells: Iterable[Cell]) -> Regret:
    """Regret where only some of the cuts may be chosen, for every two or more of them, without drafts, with, and gated.

    One cut may be best everywhere; without it the others must be told apart. All plans were asked here, but fewer times
    than the finalists, so part of it is noise.
    """
    regrets = []
    for cell in cells:
        cuts = dict.fromkeys(plan.cut for plan in cell.plans if plan.cut is not None)
        some = chain.from_iterable(combinations(cuts, count) for count in range(2, len(cuts) + 1))
        for left, modes in product(some, ({"cloud", "split"}, {"cloud", "split", "draft"}, {"auto"})):
            plans = [plan for plan in cell.plans if plan.cut in left and plan.mode in modes]
            if not plans:  # a drafter without a gate has no mode auto
                continue
            chosen = min(plans, key=lambda plan: plan.predicted_ms)
            regrets.append(chosen.measured_ms / min(plan.measured_ms for plan in plans) - 1)
    return Regret(
        n=len(regrets),
        median=float(np.median(regrets)),
        ninth_decile=float(np.quantile(regrets, 0.9)),
        most=max(regrets),
    )


def spread(plans: Iterable[Timed]) -> Spread:
    """How far these predictions are off."""
    errors = np.array([plan.error for plan in plans])
    return Spread(
        n=len(errors),
        median=float(np.median(np.abs(errors))),
        ninth_decile=float(np.quantile(np.abs(errors), 0.9)),
        bias=float(np.median(errors)),
    )


def grouped(plans: Sequence[Timed], key: Callable[[Timed], Any]) -> dict[Any, Spread]:
    """`spread` of plans that are alike in `key`."""
    keys = dict.fromkeys(map(key, plans))
    return {one: spread(plan for plan in plans if key(plan) == one) for one in keys}
