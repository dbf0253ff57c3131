"""Runs of right drafts, against sums and against what a worker does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.cloud.engine import cost_model
from cutline.partitioner.acceptance import (
    FIRST_RATE,
    FIRST_SEEN,
    believed_rate,
    confirmed_tokens,
    right_tokens,
    worth_verifying,
)

rates = st.floats(0, 1)
counts = st.integers(0, 60)


@given(rates, counts, counts)
def test_right_tokens_are_the_sum_of_their_chances(rate: float, after: int, until: int) -> None:
    expected = math.fsum(rate**index for index in range(after + 1, until + 1))
    assert right_tokens(rate, after, until) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@given(rates, counts)
def test_a_pass_confirms_one_more_than_is_right(rate: float, drafted: int) -> None:
    expected = math.fsum(rate**index for index in range(drafted + 1))
    assert confirmed_tokens(rate, drafted) == pytest.approx(expected, rel=1e-5)


@given(rates, st.integers(0, 40), st.floats(0.01, 1), st.floats(1e-4, 1))
def test_as_many_rows_are_worth_it_as_the_worker_takes(rate: float, limit: int, share: float, fixed: float) -> None:
    passes = np.array([fixed * (1 + share * rows) for rows in range(1, limit + 2)])
    ours, theirs = worth_verifying(passes, limit, rate), cost_model.rows_worth_verifying(limit, rate, share)
    tokens = confirmed_tokens(rate, np.arange(limit + 1))
    assert tokens[ours] / passes[ours] == pytest.approx(tokens[theirs] / passes[theirs], rel=1e-6)


@given(rates, counts)
def test_the_worker_believes_what_it_has_seen(rate: float, seen: int) -> None:
    assert cost_model.Acceptance().rate == FIRST_RATE
    assert cost_model.Acceptance().tried == FIRST_SEEN
    accepted = rate * seen
    estimate = cost_model.Acceptance(4.0 + accepted, 5.0 + seen)
    assert believed_rate(rate, seen) == pytest.approx(estimate.rate)
