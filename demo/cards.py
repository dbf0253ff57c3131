"""Digit cards: 64x64 RGB pictures of up to four handwritten digits, one a quadrant, each in one of four colours.

The digits are the real scans of the UCI "Optical Recognition of Handwritten Digits" test set (Alpaydin and
Kaynak, 1998, CC BY 4.0), as scikit-learn's `load_digits` gives them; `digits.npz` beside this file holds them.
Training, calibration and evaluation never share a scan.
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

CARD = 64  # pixels a side
GLYPH = 24  # pixels a side of one drawn digit
PLACES = ("top left", "top right", "bottom left", "bottom right")
COLOURS = ("red", "green", "blue", "yellow")
EMPTY = -1

_RGB = np.array([[225, 55, 55], [60, 205, 85], [75, 115, 240], [230, 210, 60]], np.float32)
_CORNERS = np.array([[0, 0], [0, 32], [32, 0], [32, 32]])  # (row, column) of each quadrant


class Split(enum.Enum):
    """Which scans a card may use, as a half-open range of `load_digits` samples."""

    TRAIN = (0, 1200)
    CALIBRATION = (1200, 1500)
    EVALUATION = (1500, 1797)


@dataclass(frozen=True, slots=True)
class Digit:
    """One digit on a card: its value 0..9, a name of `COLOURS` and a name of `PLACES`."""

    value: int
    colour: str
    place: str


@dataclass(frozen=True, slots=True)
class Card:
    """A card: its picture (64, 64, 3) uint8 and what it shows, in reading order."""

    pixels: NDArray[np.uint8]
    digits: tuple[Digit, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Many cards at once. `values` and `colours` are (n, 4) with `EMPTY` where a quadrant holds nothing."""

    pixels: NDArray[np.uint8]
    values: NDArray[np.int64]
    colours: NDArray[np.int64]

    def card(self, index: int) -> Card:
        """The card at `index`."""
        digits = tuple(
            Digit(int(value), COLOURS[colour], place)
            for value, colour, place in zip(self.values[index], self.colours[index], PLACES, strict=True)
            if value != EMPTY
        )
        return Card(self.pixels[index], digits)


@dataclass(frozen=True, slots=True, eq=False)
class Scans:
    """Scans of digits: their ink (n, 8, 8) float32, 0 to 1, and `values` (n,)."""

    ink: NDArray[np.float32]
    values: NDArray[np.int64]


@functools.cache
def _own_scans() -> Scans:
    with resources.files("cutline.demo").joinpath("digits.npz").open("rb") as file, np.load(file) as data:
        return Scans(data["scans"].astype(np.float32) / 16.0, data["values"].astype(np.int64))


def draw(source: Split | Scans, count: int, rng: np.random.Generator, *, augment: bool = False) -> Batch:
    """Draw `count` cards from the scans of a split, or from others; `augment` bends and thickens the strokes, for
    training.
    """
    found, (first, end) = (source, (0, len(source.ink))) if isinstance(source, Scans) else (_own_scans(), source.value)
    scans, labels = found.ink, found.values
    chosen = rng.integers(first, end, size=(count, 4))
    occupied = rng.random((count, 4)).argsort(axis=1) < rng.integers(1, 5, size=(count, 1))
    values = np.where(occupied, labels[chosen], EMPTY)
    colours = np.where(occupied, rng.integers(0, 4, size=(count, 4)), EMPTY)

    glyphs = _warp(scans[chosen.reshape(-1)], _shapes(rng, count * 4, augment))
    if augment:
        glyphs = glyphs ** rng.uniform(0.6, 1.7, size=(len(glyphs), 1, 1)).astype(np.float32)
    glyphs = np.clip(glyphs * rng.uniform(0.85, 1.25, size=(len(glyphs), 1, 1)).astype(np.float32), 0, 1)
    glyphs = glyphs.reshape(count, 4, GLYPH, GLYPH, 1) * occupied[:, :, None, None, None]

    paint = _RGB[colours] + rng.uniform(-20, 20, size=(count, 4, 3)).astype(np.float32)
    canvas = rng.uniform(15, 55, size=(count, 1, 1, 3)).astype(np.float32)
    canvas = canvas + rng.normal(0, 9, size=(count, CARD, CARD, 3)).astype(np.float32)
    offsets = _CORNERS + 4 + rng.integers(-2, 3, size=(count, 4, 2))
    for card in range(count):
        for quadrant in np.flatnonzero(occupied[card]):
            row, column = offsets[card, quadrant]
            area = canvas[card, row : row + GLYPH, column : column + GLYPH]
            ink = glyphs[card, quadrant]
            area += ink * (paint[card, quadrant] - area)
    return Batch(np.clip(canvas, 0, 255).astype(np.uint8), values, colours)


def _shapes(rng: np.random.Generator, count: int, augment: bool) -> NDArray[np.float32]:
    """Maps from glyph to scan coordinates, both in [-1, 1]: (count, 2, 3)."""
    turn, stretch, slant, shift = (14, 0.13, 0.18, 0.16) if augment else (3, 0.03, 0.0, 0.0)
    angle = np.deg2rad(rng.uniform(-turn, turn, count))
    scale = 1 + rng.uniform(-stretch, stretch, (2, count))
    shear = rng.uniform(-slant, slant, count) if slant else np.zeros(count)
    move = rng.uniform(-shift, shift, (2, count)) if shift else np.zeros((2, count))
    cos, sin = np.cos(angle), np.sin(angle)
    rows = np.stack([cos * scale[0], (sin + shear) * scale[0], move[0]], axis=-1)
    columns = np.stack([-sin * scale[1], cos * scale[1], move[1]], axis=-1)
    return np.stack([rows, columns], axis=1).astype(np.float32)


def _warp(scans: NDArray[np.float32], shapes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sample (n, 8, 8) scans bilinearly through (n, 2, 3) affine maps into (n, GLYPH, GLYPH)."""
    count, side, _ = scans.shape
    line = (np.arange(GLYPH, dtype=np.float32) * 2 + 1) / GLYPH - 1
    grid = np.stack([*np.meshgrid(line, line, indexing="ij"), np.ones((GLYPH, GLYPH), np.float32)])
    where = np.einsum("nij,jhw->nihw", shapes, grid)
    where = ((where + 1) * side - 1) / 2 + 1  # in pixels of the scan padded by one
    padded = np.pad(scans, ((0, 0), (1, 1), (1, 1))).reshape(count, -1)
    where = np.clip(where, 0, side + 0.999)
    corner = where.astype(np.int64)
    row, column = where[:, 0] - corner[:, 0], where[:, 1] - corner[:, 1]
    first = (corner[:, 0] * (side + 2) + corner[:, 1]).reshape(count, -1)

    def at(step: int) -> NDArray[np.float32]:
        return np.take_along_axis(padded, first + step, axis=1).reshape(count, GLYPH, GLYPH)

    top = at(0) * (1 - column) + at(1) * column
    bottom = at(side + 2) * (1 - column) + at(side + 3) * column
    warped: NDArray[np.float32] = (top * (1 - row) + bottom * row).astype(np.float32)
    return warped
