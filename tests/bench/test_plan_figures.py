from __future__ import annotations

import pytest

from cutline.bench.plan_figures import LIMITS, Cell, Choosing, Timed, grouped, regret_by_cuts, result, spread


def timed(predicted: float, measured: float, mode: str = "draft", cut: str = "image") -> Timed:
    return Timed(plan=f"{mode} at {cut}", mode=mode, cut=cut, predicted_ms=predicted, measured_ms=measured, parts_ms={})


def choosing(chosen: float, best: float, auto: float, plain: float | None = None) -> Choosing:
    return Choosing(limits="none", chosen="a", chosen_ms=chosen, best="b", best_ms=best, auto_ms=auto, plain_ms=plain)


CUT = [  # of a device without a gate
    timed(12, 11, "cloud"),
    timed(7, 10, "split", "vision.0"),
    timed(9, 8, "split", "decoder.0"),
    timed(6, 8, "draft", "decoder.0"),
]


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
        Cell(speed=1.0, link="wifi", plans=CUT, choosing=[choosing(10, 10, 9), choosing(11, 10, 10.4, 9)]),
        Cell(speed=0.5, link="3g", plans=[timed(12, 10)], choosing=[choosing(13, 10, 12, 11.5), choosing(10, 10, 10)]),
    ]
    made = result(cells, prompt_tokens=30, answer_tokens=8, acceptance=0.9)
    assert made.regret_median == pytest.approx(0.05)
    assert made.regret_most == pytest.approx(0.3)
    assert made.auto_within == 0.75
    assert made.auto_within_plain == 0.5
    assert made.error.n == 5
    assert made.regret_by_cuts.n == 8  # four sets of cuts, without drafts and with


def test_regret_without_some_cuts_is_that_of_the_choice_among_the_others() -> None:
    found = regret_by_cuts([Cell(speed=1.0, link="wifi", plans=CUT, choosing=[])])
    # Without drafts vision.0 is chosen wherever it may be, and is worse by a quarter in the two sets of cuts where
    # decoder.0 may be as well. With drafts the right plan always is.
    assert found.n == 8
    assert found.most == pytest.approx(0.25)
    assert found.median == 0.0
    assert found.ninth_decile == pytest.approx(0.25)


def test_the_first_limit_is_none() -> None:
    first, *others = LIMITS.values()
    assert not first.exact
    assert not first.image_must_stay
    assert all(one.exact for one in others)
