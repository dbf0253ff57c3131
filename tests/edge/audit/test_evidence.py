"""Evidence for and against a promise, which may be looked at after every answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.edge.audit.evidence import (
    CHANCE,
    EVERY,
    MOST,
    Evidence,
    at_most,
    is_above,
    is_below,
    weight_above,
    weight_below,
)

outcomes = st.lists(st.booleans(), max_size=4 * EVERY)
risks = st.floats(0.005, 0.5)


def seen(agreed: list[bool]) -> Evidence:
    evidence = Evidence()
    for one in agreed:
        evidence = evidence.with_one(agreed=one)
    return evidence


@given(outcomes, risks, st.floats(0.0, 1.0))
def test_its_mean_does_not_grow_while_a_promise_holds(agreed: list[bool], risk: float, share: float) -> None:
    """Then it is ever 1/CHANCE with a chance of CHANCE at most, by Ville's inequality: for any rate, at any time."""
    evidence = seen(agreed)
    # What a trail that begins now will count for, counted already: all that are to begin sum to 1 with those that did.
    number = len(agreed) // EVERY + 1
    new = 1.0 / (number * (number + 1)) if len(agreed) % EVERY == 0 else 0.0
    for weight, rate in ((weight_above, share * risk), (weight_below, risk + share * (1.0 - risk))):
        after = rate * weight(evidence.with_one(agreed=False), risk) + (1.0 - rate) * weight(
            evidence.with_one(agreed=True), risk
        )
        assert after <= (weight(evidence, risk) + new) * (1.0 + 1e-9)


def first(changes: Callable[[Evidence, float], bool], risk: float, rates: list[float], runs: int) -> list[int]:
    """After how many answers, which differ at these rates one after another, it changes; else their number."""
    rng, found = np.random.default_rng(3), list[int]()
    for _ in range(runs):
        evidence, count = Evidence(), 0
        for rate in rates:
            evidence, count = evidence.with_one(agreed=bool(rng.random() >= rate)), count + 1
            if changes(evidence, risk):
                break
        found.append(count)
    return found


def test_a_promise_that_holds_is_hardly_ever_taken_for_broken() -> None:
    assert sum(count < 150 for count in first(is_above, 0.05, [0.05] * 150, 60)) <= 0.05 * 60 + 5


@pytest.mark.parametrize("good", [0, 400])
def test_what_is_broken_is_found_out_soon_also_after_a_long_time(good: int) -> None:
    found = first(is_above, 0.05, [0.0] * good + [0.3] * 120, 20)
    assert sorted(found)[18] < good + 100
    assert min(found) > good


def test_what_holds_again_is_found_out_too() -> None:
    found = first(is_below, 0.05, [0.3] * 60 + [0.0] * 200, 10)
    assert all(60 < count < 260 for count in found)


@given(st.lists(st.integers(0, 3), max_size=300), risks, st.floats(0.001, 0.5))
def test_what_is_quick_to_see_is_what_the_weight_says(rare: list[int], risk: float, chance: float) -> None:
    evidence = seen([one > 0 for one in rare])
    assert is_below(evidence, risk, chance=chance) == (weight_below(evidence, risk) >= 1.0 / chance)


@given(outcomes)
def test_a_bound_is_where_evidence_begins_to_count(agreed: list[bool]) -> None:
    evidence = seen(agreed)
    assert (evidence.audited, evidence.disagreed) == (len(agreed), len(agreed) - sum(agreed))
    bound = at_most(evidence)
    assert evidence.disagreed / max(1, evidence.audited) <= bound or len(agreed) > EVERY
    if bound < 1.0 - 1e-6:
        assert is_below(evidence, bound + 1e-6)
        assert not is_below(evidence, bound - 1e-6)


def test_no_more_is_kept_than_so_many_trails() -> None:
    evidence = seen([True] * EVERY * (MOST + 5))
    assert len(evidence.trails) == MOST
    assert evidence.audited == EVERY * (MOST + 5)
    assert pytest.approx(0.05) == CHANCE
