"""How strictly a group is kept after audits: the bound that holds whatever the world does, and what chance does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.edge.audit.evidence import CHANCE, EVERY, RATES
from cutline.edge.audit.levels import AIM, IDLE, LEVELS, SHUT, STEP, Watched, noted, passed_on, threshold_at

RISK, CALIBRATED = 0.05, 0.5


def after(watched: Watched, *, agreed: bool, confidence: float = 1.0, risk: float = RISK) -> Watched:
    return noted(watched, confidence=confidence, calibrated=CALIBRATED, risk=risk, agreed=agreed)


@given(st.lists(st.booleans(), max_size=300), st.floats(0.005, 0.3))
def test_no_world_makes_more_of_the_audited_answers_differ_than_its_bound(agreed: list[bool], risk: float) -> None:
    """Also one that knows the strictness, as the order of outcomes may be any."""
    watched, wrong = Watched(), 0
    for count, one in enumerate(agreed, start=1):
        watched, wrong = after(watched, agreed=one, risk=risk), wrong + (not one)
        assert wrong < AIM * risk * count + LEVELS / STEP + 1
        if watched.shut:
            break


def test_from_ten_by_the_risk_on_the_bound_is_the_risk() -> None:
    """The worst world is right until the bound leaves room for one more, and then wrong: counted out to the end."""
    for risk in (0.02, 0.05, 0.1):
        watched, wrong, count = Watched(), 0, 0
        while count < 1000:
            worse = after(watched, agreed=False, risk=risk)
            watched, wrong = (after(watched, agreed=True, risk=risk), wrong) if worse.shut else (worse, wrong + 1)
            count += 1
            assert wrong <= risk * count or count < (LEVELS / STEP + 1) / (risk * (1 - AIM))
        assert (LEVELS / STEP + 1) / (risk * (1 - AIM)) == pytest.approx(10 / risk)


def test_where_every_answer_differs_it_is_shut_after_as_many_as_arithmetic_says() -> None:
    watched, count = Watched(), 0
    while not watched.shut:
        watched, count = after(watched, agreed=False), count + 1
    assert count == math.ceil(LEVELS / (STEP * (1 - AIM * RISK))) == 5


def test_it_is_opened_after_as_many_right_ones_as_arithmetic_says() -> None:
    """That is where the mixture of (1-q)^n / (1-r)^n over rates, and trails by their weights, reaches LEVELS/CHANCE."""

    def weight(count: int) -> float:
        rates = [RISK * (step + 0.5) / RATES for step in range(RATES)]
        trails = range(math.ceil(count / EVERY))
        of_one = [
            math.fsum(((1 - rate) / (1 - RISK)) ** (count - place * EVERY) for rate in rates) / RATES
            for place in trails
        ]
        return math.fsum(one / ((place + 1) * (place + 2)) for place, one in zip(trails, of_one, strict=True))

    closed_form = next(count for count in range(1, 1000) if weight(count) >= LEVELS / CHANCE)
    watched, count = Watched(strictness=SHUT), 0
    while watched.shut:
        watched, count = after(watched, agreed=True), count + 1
    assert count == closed_form
    assert watched.strictness == 0.0, "the loosest of those that hold"


def test_the_share_that_differs_comes_to_half_of_the_risk_where_the_world_allows_it() -> None:
    """An answer differs with a chance of its doubt. A stationary strictness moves by 0 in the mean: that is the aim."""
    rng, watched, wrong, kept = np.random.default_rng(2), Watched(), 0, 0
    for confidence in rng.uniform(CALIBRATED, 1.0, 6000):
        least = threshold_at(CALIBRATED, watched.strictness)
        agreed = bool(rng.random() < confidence)
        if least is None:  # as everything is compared then
            watched = after(watched, agreed=agreed, confidence=float(confidence))
        elif confidence >= least:
            kept, wrong = kept + 1, wrong + (not agreed)
            watched = after(watched, agreed=agreed, confidence=float(confidence))
    deviation = math.sqrt(AIM * RISK / kept)
    assert wrong / kept < AIM * RISK + 4 * deviation + LEVELS / STEP / kept
    assert kept > 50


def test_a_promise_that_is_broken_is_hardly_ever_taken_for_kept_again() -> None:
    """Of groups that are shut, whose answers differ as often as promised at every level, CHANCE open at most."""
    rng, opened, runs = np.random.default_rng(4), 0, 30
    for _ in range(runs):
        watched = Watched(strictness=SHUT)
        for _ in range(150):
            watched = after(watched, agreed=bool(rng.random() >= RISK), confidence=float(rng.uniform(CALIBRATED, 1.0)))
            if not watched.shut:
                opened += 1
                break
    assert opened <= CHANCE * runs + 4


def test_a_group_that_is_kept_too_strictly_to_be_audited_is_shut_and_opened_again() -> None:
    """No answer is surer than 0.9, and two that differ ask for more: it must not stay so for ever."""
    watched = after(after(Watched(), agreed=False), agreed=False)
    least = threshold_at(CALIBRATED, watched.strictness)
    assert least is not None
    assert least > 0.9
    for _ in range(IDLE - 1):
        watched = passed_on(watched)
    assert not watched.shut
    watched = passed_on(watched)
    assert watched == passed_on(watched) == Watched(watched.all, SHUT)
    for _ in range(2 * IDLE):
        watched = after(watched, agreed=True, confidence=0.9)
    assert watched.strictness == 0.0
    assert after(passed_on(Watched(strictness=1.0)), agreed=True).idle == 0, "an audit is a sign of life"


def test_each_level_leaves_half_of_the_doubt() -> None:
    assert [threshold_at(0.5, level) for level in range(3)] == [0.5, 0.75, 0.875]
    assert threshold_at(0.5, SHUT) is None
