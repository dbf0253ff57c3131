from __future__ import annotations

import pytest

from cutline.bench.plan_figures import LIMITS, Cell, Choosing, Timed, grouped, result, spread


def timed(predicted: float, measured: float, mode: str = "draft") -> Timed:
    return Timed(plan=f"{mode} at image", mode=mode, predicted_ms=predicted, measured_ms=measured, parts_ms={})


def choosing(chosen: float, best: float, auto: float, plain: float | None = None) -> Choosing:
    return Choosing(limits="none", chosen="a", chosen_ms=chosen, best="b", best_ms=best, auto_ms=auto, plain_ms=plain)


def test_errors_count_both_ways() -> None:
    found = spread([timed(110, 100), timed(80, 100), timed(100, 100), timed(95, 100), timed(90, 100)])
    assert found.n == 5
    assert found.median == pytest.approx(0.1)
    assert found.bias == pytest.approx(-0.05)
    assert found.ninth_decile == pytest.approx(0.16)  # between the two largest, 0.1 and 0.2


def test_plans_are_grouped_by_what_is_asked() -> None:
    plans = [timed(1, 1, "edge"), timed(3, 2), timed(1, 2)]
    assert {mode: one.n for mode, one in grouped(plans, lambda plan: plan.mode).items()} == {"edge": 1, "draft": 2}


def test_regret_is_against_the_best_plan_and_a_faster_agent_loses_nothing() -> None:
    cells = [
        Cell(speed=1.0, link="wifi", plans=[timed(10, 10)], choosing=[choosing(10, 10, 9), choosing(11, 10, 10.4, 9)]),
        Cell(speed=0.5, link="3g", plans=[timed(12, 10)], choosing=[choosing(13, 10, 12, 11.5), choosing(10, 10, 10)]),
    ]
    made = result(cells, prompt_tokens=30, answer_tokens=8, acceptance=0.9)
    assert made.regret_median == pytest.approx(0.05)
    assert made.regret_most == pytest.approx(0.3)
    assert made.auto_within == 0.75
    assert made.auto_within_plain == 0.5
    assert made.error.n == 2


def test_the_first_limit_is_none() -> None:
    first, *others = LIMITS.values()
    assert not first.exact
    assert not first.image_must_stay
    assert all(one.exact for one in others)
