"""Which pictures are unfamiliar: how often by chance, and that what is far is found."""

from __future__ import annotations

import math
from fractions import Fraction

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from cutline.edge.inference.familiarity import DIRECTIONS, Familiarity, familiarity_of, fewest_pictures

WIDTH = 8


def rows_of(rng: np.random.Generator, count: int, width: int = WIDTH) -> NDArray[np.float32]:
    return np.asarray(rng.normal(size=(count, width)) * np.linspace(0.1, 3.0, width) + 5.0, np.float32)


def known(count: int = 200, width: int = WIDTH, alarm: float = 0.05) -> Familiarity:
    found = familiarity_of(rows_of(np.random.default_rng(1), count, width), alarm=alarm)
    assert found is not None
    return found


@pytest.mark.parametrize("alarm", [0.02, 0.05, 0.1])
def test_familiar_pictures_are_taken_for_others_as_often_as_is_said(alarm: float) -> None:
    """Exactly floor(alarm * (n + 1)) / (n + 1) of them, for n that tell: over many calibrations, not of each."""
    rng, count, flagged, tried = np.random.default_rng(3), 120, 0, 0
    for run in range(150):
        found = familiarity_of(rows_of(rng, count), alarm=alarm, seed=run)
        assert found is not None
        flagged += sum(found.is_unfamiliar([row]) for row in rows_of(rng, 40))
        tried += 40
    closed_form = math.floor(Fraction(str(alarm)) * (count // 2 + 1)) / (count // 2 + 1)
    assert closed_form <= alarm
    assert flagged / tried == pytest.approx(closed_form, abs=0.015)


@given(arrays(np.float32, WIDTH, elements=st.floats(-1000.0, 1000.0, width=32)))
@settings(max_examples=50)
def test_the_distance_is_mahalanobis_where_all_directions_are_kept(row: NDArray[np.float32]) -> None:
    rows = rows_of(np.random.default_rng(1), 200)
    fitted = rows[np.random.default_rng(0).permutation(200)][:100].astype(np.float64)
    off = row.astype(np.float64) - fitted.mean(0)
    theirs = off @ np.linalg.solve(np.cov(fitted.T), off)
    assert known().distance(row) == pytest.approx(theirs, rel=1e-3, abs=1e-3)


def test_what_is_far_beside_the_directions_is_found_too() -> None:
    """As many wide directions as are kept, and one that hardly varies: a small step along that is far."""
    rng = np.random.default_rng(5)
    rows = np.zeros((200, DIRECTIONS + 4), np.float32)
    rows[:, :DIRECTIONS] = rng.normal(size=(200, DIRECTIONS)) * 10
    rows[:, DIRECTIONS:] = rng.normal(size=(200, 4)) * 0.1
    found = familiarity_of(rows)
    assert found is not None
    beside = np.zeros(DIRECTIONS + 4, np.float32)
    assert not found.is_unfamiliar([beside])
    beside[-1] = 20.0
    assert found.is_unfamiliar([beside])


def test_of_several_pictures_one_that_is_far_is_enough_and_each_has_its_part_of_the_alarm() -> None:
    found, rng = known(alarm=0.1), np.random.default_rng(7)
    near, far = rows_of(rng, 1)[0], np.full(WIDTH, 100.0, np.float32)
    assert found.is_unfamiliar([near, far])
    assert not found.is_unfamiliar([])
    pairs = sum(found.is_unfamiliar(list(pair)) for pair in rows_of(rng, 800).reshape(-1, 2, WIDTH))
    assert pairs / 400 <= 0.1 + 0.05


def test_too_few_pictures_tell_nothing() -> None:
    for alarm in (0.02, 0.05, 0.3):
        fewest = fewest_pictures(alarm)
        rows = rows_of(np.random.default_rng(1), fewest)
        assert familiarity_of(rows[:-1], alarm=alarm) is None
        found = familiarity_of(rows, alarm=alarm)
        assert found is not None
        assert found.is_unfamiliar([np.full(WIDTH, 1e6, np.float32)])


def test_pictures_that_are_all_the_same_are_familiar_and_others_are_not() -> None:
    rows = np.ones((120, WIDTH), np.float32)
    found = familiarity_of(rows)
    assert found is not None
    assert found.is_unfamiliar([rows[0] * 2])


def test_it_reads_as_it_was_written_and_nothing_else_does() -> None:
    found = known(width=DIRECTIONS + 9)
    raw = msgspec.json.encode(found)
    assert msgspec.json.decode(raw, type=Familiarity) == found
    for change in ({"variances": [1.0]}, {"rest": 0.0}, {"alarm": 1.0}, {"mean": "AA=="}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(msgspec.to_builtins(found) | change, Familiarity)
    with pytest.raises(ValueError, match="a row of"):
        found.distance(np.ones(3, np.float32))
