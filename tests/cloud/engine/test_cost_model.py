"""How many drafted tokens a pass should verify, against trying every number."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cutline.cloud.engine.cost_model import (
    FIRST_PROMPT_ROWS,
    PACING,
    WIDE_ROWS,
    Acceptance,
    PassCost,
    prompt_rows,
    rows_worth_verifying,
)


def pace(count: int, rate: float, row_share: float) -> float:
    """Tokens a second of a pass with `count` drafted tokens, in passes of no row."""
    return math.fsum(rate**index for index in range(count + 1)) / (1 + row_share * (count + 1))


@given(st.integers(0, 60), st.floats(0, 1), st.floats(0.01, 1))
@example(60, 1.0, 1.0)
@example(60, 0.0, 0.01)
def test_no_other_number_of_rows_is_faster(available: int, rate: float, row_share: float) -> None:
    chosen = rows_worth_verifying(available, rate, row_share)
    assert 0 <= chosen <= available
    best = max(pace(count, rate, row_share) for count in range(available + 1))
    assert pace(chosen, rate, row_share) == pytest.approx(best, rel=1e-9)


def test_certain_drafts_are_taken_whole_and_hopeless_ones_not_at_all() -> None:
    assert rows_worth_verifying(40, 1.0, 0.5) == 40
    assert rows_worth_verifying(40, 0.0, 0.01) == 0
    assert rows_worth_verifying(0, 0.9, 0.1) == 0


varied = st.lists(st.integers(1, 200), min_size=5, max_size=80).filter(lambda sizes: max(sizes) > 2 * min(sizes))


@given(st.floats(1e-4, 1.0), st.floats(0.01, 1.0), varied)
@example(1e-4, 0.5, [100, 110] * 30)
def test_a_line_is_found_again(fixed: float, share: float, sizes: list[int]) -> None:
    cost = PassCost()
    for rows in sizes:
        cost = cost.after(rows, fixed * (1 + share * rows))
    assert cost.row_share == pytest.approx(share, rel=1e-3)


def test_older_passes_fade() -> None:
    cost = PassCost()
    for share in (0.5, 0.02):
        for rows in range(600):
            cost = cost.after(rows % 20 + 1, 1 + share * (rows % 20 + 1))
    assert cost.row_share == pytest.approx(0.02, rel=0.05)


@given(st.integers(1, 5000), st.lists(st.floats(1e-5, 10), max_size=200))
def test_passes_of_one_size_tell_nothing(rows: int, seconds: list[float]) -> None:
    cost = PassCost()
    for each in seconds:
        cost = cost.after(rows, each)
    assert cost.row_share == 0.1


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(1e-9, 1e3)), max_size=100))
def test_whatever_was_measured_the_share_makes_sense(passes: list[tuple[int, float]]) -> None:
    cost = PassCost()
    for rows, seconds in passes:
        cost = cost.after(rows, seconds)
        assert 0.001 <= cost.row_share <= 1


@given(st.lists(st.integers(0, 30).flatmap(lambda tried: st.tuples(st.integers(0, tried), st.just(tried)))))
def test_the_rate_is_what_was_seen(rounds: list[tuple[int, int]]) -> None:
    acceptance = Acceptance()
    assert acceptance.rate == 0.8
    for accepted, tried in rounds:
        acceptance = acceptance.after(accepted, tried)
    assert acceptance.rate == (4 + sum(a for a, _ in rounds)) / (5 + sum(t for _, t in rounds))


@given(st.lists(st.tuples(st.integers(1, 200), st.floats(1e-4, 10)), max_size=60), st.integers(0, 300))
def test_prompts_at_most_double_a_pass_as_far_as_it_was_seen(passes: list[tuple[int, float]], beside: int) -> None:
    cost = PassCost()
    for rows, seconds in passes:
        cost = cost.after(rows, seconds)
    room = prompt_rows(beside, cost, PACING)
    assert PACING.least_prompt_rows <= room <= PACING.most_prompt_rows
    if room > PACING.least_prompt_rows:
        wide = [(rows, seconds) for rows, seconds in passes if rows >= WIDE_ROWS]
        slowest = max((seconds / rows for rows, seconds in wide), default=PACING.pass_seconds / FIRST_PROMPT_ROWS)
        fastest = min((seconds / rows for rows, seconds in wide), default=slowest)
        assert (room + beside) * fastest <= PACING.pass_seconds * (1 + 1e-6)
        if beside == 0 and room < PACING.most_prompt_rows:
            assert (room + 1) * slowest >= PACING.pass_seconds * (1 - 1e-6)
    if room > PACING.least_prompt_rows and beside:
        share = cost.row_share
        assert share * room <= (1 + share * beside) * (1 + 1e-9)
        assert room <= 2 * max(rows for rows, _ in passes) + 1e-6
