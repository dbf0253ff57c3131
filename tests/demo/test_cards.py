"""The cards, against scikit-learn's own copy of the scans and what a card says of itself."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from cutline.demo import cards
from cutline.demo.cards import CARD, COLOURS, EMPTY, PLACES, Split, draw


def test_the_scans_are_those_of_load_digits() -> None:
    ours, theirs = cards._own_scans(), load_digits()
    assert np.array_equal(ours.ink * 16, theirs.images)
    assert np.array_equal(ours.values, theirs.target)


def test_cards_of_others_scans_show_those_alone() -> None:
    """Scans that are all ink make cards of full squares, whose values are theirs."""
    others = cards.Scans(np.ones((3, 8, 8), np.float32), np.array([7, 7, 7]))
    batch = draw(others, 20, np.random.default_rng(0))
    assert set(batch.values[batch.values != EMPTY].tolist()) == {7}
    same = draw(others, 20, np.random.default_rng(0))
    assert np.array_equal(batch.pixels, same.pixels)


def test_splits_share_no_scan_and_cover_them_all() -> None:
    covered = [index for split in Split for index in range(*split.value)]
    assert sorted(covered) == list(range(1797))


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("split", list(Split))
def test_a_seed_gives_the_same_cards(split: Split, augment: bool) -> None:
    one, other = (draw(split, 20, np.random.default_rng(4), augment=augment) for _ in range(2))
    assert np.array_equal(one.pixels, other.pixels)
    assert one.card(3).digits == other.card(3).digits
    assert one.pixels.shape == (20, CARD, CARD, 3)


def test_digits_are_bright_where_the_card_says_and_nowhere_else() -> None:
    batch = draw(Split.EVALUATION, 200, np.random.default_rng(1))
    shown = batch.pixels.astype(int).max(axis=-1)
    for index in range(200):
        quadrants = [shown[index, row : row + 32, column : column + 32] for row in (0, 32) for column in (0, 32)]
        bright = [float((quadrant > 130).mean()) > 0.01 for quadrant in quadrants]
        assert bright == (batch.values[index] != EMPTY).tolist()
        assert [PLACES.index(digit.place) for digit in batch.card(index).digits] == np.flatnonzero(bright).tolist()


def test_a_digits_colour_is_the_one_it_is_painted_in() -> None:
    batch = draw(Split.EVALUATION, 100, np.random.default_rng(2))
    paints = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0)}
    for index in range(100):
        for digit in batch.card(index).digits:
            row, column = divmod(PLACES.index(digit.place), 2)
            quadrant = batch.pixels[index, row * 32 :, column * 32 :][:32, :32].reshape(-1, 3).astype(float)
            ink = quadrant[quadrant.max(axis=1).argsort()[-30:]].mean(axis=0)
            leaning = {name: np.corrcoef(ink, paint)[0, 1] for name, paint in paints.items()}
            assert max(leaning, key=leaning.__getitem__) == digit.colour
            assert digit.colour in COLOURS


def test_every_number_of_digits_and_every_value_occurs() -> None:
    batch = draw(Split.TRAIN, 1000, np.random.default_rng(3))
    counts = np.bincount((batch.values != EMPTY).sum(axis=1), minlength=5)
    assert counts[0] == 0
    assert (counts[1:] > 200).all()
    assert set(batch.values.flatten()) == {EMPTY, *range(10)}
