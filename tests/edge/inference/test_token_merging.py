"""Merging rows: how many are left, what they are, and in which order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from cutline.edge.inference.token_merging import kept_of, merge, merge_runs, shorten

IMAGE = 3
Rows = NDArray[np.float32]

some_rows = st.tuples(st.integers(1, 24), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-100, 100, width=32))
)
shares = st.floats(0.01, 1.0)
prompts = st.lists(st.sampled_from([1, 2, IMAGE, IMAGE, IMAGE]), max_size=30)


def noise(count: int, width: int = 8, seed: int = 0) -> Rows:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


@settings(deadline=None)
@given(rows=some_rows, data=st.data())
def test_as_many_are_left_as_asked_and_nothing_is_lost(rows: Rows, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(rows)))
    left, sizes = merge(rows, count)
    assert left.shape == (count, rows.shape[1])
    assert left.dtype == np.float32
    assert sizes.sum() == len(rows)
    assert (sizes >= 1).all()
    # Means weighted by size: the sum of all rows is what it was.
    np.testing.assert_allclose(
        (left.astype(np.float64) * sizes[:, None]).sum(0), rows.sum(0, dtype=np.float64), atol=1e-3
    )
    # A mean lies within what it is made of.
    assert (left <= rows.max(0) + 1e-4).all()
    assert (left >= rows.min(0) - 1e-4).all()


@settings(deadline=None)
@given(rows=some_rows, data=st.data())
def test_it_is_deterministic(rows: Rows, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(rows)))
    (first, sizes), (again, others) = merge(rows, count), merge(rows.copy(), count)
    assert np.array_equal(first, again)
    assert np.array_equal(sizes, others)


def test_all_are_left_untouched() -> None:
    rows = noise(9)
    left, sizes = merge(rows, 9)
    assert np.array_equal(left, rows)
    assert (sizes == 1).all()


@settings(deadline=None)
@given(count=st.integers(2, 20), seed=st.integers(0, 99), data=st.data())
def test_rows_that_are_alike_are_merged_first_and_the_others_keep_their_order(
    count: int, seed: int, data: st.DataObject
) -> None:
    rows = noise(count, seed=seed)
    place = data.draw(st.integers(0, count - 2))
    rows[place + 1] = rows[place]  # neighbours stand on both sides of the matching
    left, sizes = merge(rows, count - 1)
    np.testing.assert_allclose(left, np.delete(rows, place, 0), rtol=1e-6)
    assert sizes.tolist() == [2 if index == place else 1 for index in range(count - 1)]


def test_it_is_the_matching_of_the_paper() -> None:
    """One pass against a plain loop over the pairs."""
    rows = noise(16, seed=5)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    edges = []
    for even in range(0, 16, 2):
        similar = {odd: float(unit[even] @ unit[odd]) for odd in range(1, 16, 2)}
        odd = max(similar, key=lambda one: similar[one])
        edges.append((similar[odd], even, odd))
    groups: dict[int, list[int]] = {index: [index] for index in range(16)}
    for _, even, odd in sorted(edges, reverse=True)[:5]:
        groups[odd] += groups.pop(even)
    left, sizes = merge(rows, 11)
    np.testing.assert_allclose(left, [rows[groups[index]].mean(0) for index in sorted(groups)], rtol=1e-5)
    assert sizes.tolist() == [len(groups[index]) for index in sorted(groups)]


def test_rows_of_zeros_can_be_merged() -> None:
    left, sizes = merge(np.zeros((5, 3), np.float32), 1)
    assert np.array_equal(left, np.zeros((1, 3)))
    assert sizes.tolist() == [5]


@given(prompt=prompts, share=shares)
def test_prompt_and_rows_shrink_alike(prompt: list[int], share: float) -> None:
    count = prompt.count(IMAGE)
    rows = noise(count)
    short = shorten(prompt, IMAGE, share)
    assert len(merge_runs(rows, prompt, IMAGE, share)) == short.count(IMAGE) <= count
    assert [token for token in short if token != IMAGE] == [token for token in prompt if token != IMAGE]
    assert (IMAGE in short) == (IMAGE in prompt)


def test_runs_are_merged_each_by_itself() -> None:
    prompt = [1, *[IMAGE] * 6, 2, *[IMAGE] * 4, 9]
    rows = noise(10)
    assert shorten(prompt, IMAGE, 0.5) == (1, IMAGE, IMAGE, IMAGE, 2, IMAGE, IMAGE, 9)
    expected = np.concatenate([merge(rows[:6], 3)[0], merge(rows[6:], 2)[0]])
    assert np.array_equal(merge_runs(rows, prompt, IMAGE, 0.5), expected)


@pytest.mark.parametrize(
    ("count", "share", "kept"), [(16, 0.5, 8), (16, 0.01, 1), (1, 0.5, 1), (64, 1.0, 64), (7, 0.5, 4)]
)
def test_a_share_rounds_up(count: int, share: float, kept: int) -> None:
    assert kept_of(count, share) == kept == math.ceil(count * share)
