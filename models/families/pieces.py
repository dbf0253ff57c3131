"""What families share whose towers see a picture in pieces: its tiles and the whole of it, each by itself.

A piece has the proportions that are left to it, so the pieces of a picture follow from its height and width.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutline.models.families.family import Arrays, Count, Family, Grid, Spread
from cutline.models.images import Pixels, Size, size_fault

Sides = tuple[int, int]  # rows and columns


class ProportionedFamily(Family, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A grid is a picture's height and width: what a picture becomes depends on both."""

    def grid(self, size: Size) -> Grid:
        """Height and width of the picture."""
        return size[1], size[0]

    def fitted(self, size: Size) -> Size:
        """The picture's own size."""
        return size

    def is_settled(self, size: Size) -> bool:
        """Always."""
        del size
        return True

    def takes(self, grid: Grid) -> bool:
        """Whether a picture may have such sides."""
        return size_fault((grid[1], grid[0])) is None


class PiecedFamily(ProportionedFamily, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Patches of `patch` x `patch` pixels."""

    patch: Count
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[Spread, Spread, Spread] = (0.5, 0.5, 0.5)

    @abstractmethod
    def pieces(self, grid: Grid) -> list[Sides]:
        """Rows and columns of the patches of each piece, in order."""

    @abstractmethod
    def beside(self, piece: Sides) -> Arrays:
        """The tower's other inputs for a piece with so many rows and columns of patches."""

    def patches(self, grid: Grid) -> int:
        """Those of all pieces."""
        return sum(map(math.prod, self.pieces(grid)))

    def seen(self, grid: Grid) -> int:
        """The rows of the same piece, on average."""
        return round(sum(math.prod(piece) ** 2 for piece in self.pieces(grid)) / self.patches(grid))

    def runs(self, rows: Any, grids: Sequence[Grid]) -> list[tuple[Any, Arrays]]:
        """One piece of every picture after another, as they do not attend to each other.

        Where the tower has made one row of several patches, all pieces have fewer.
        """
        pieces = [piece for grid in grids for piece in self.pieces(grid)]
        whole = sum(map(math.prod, pieces))
        ends = [end * len(rows) // whole for end in accumulate(map(math.prod, pieces))]
        return [
            (rows[first:end], self.beside(piece)) for piece, first, end in zip(pieces, [0, *ends], ends, strict=False)
        ]

    def cut(self, piece: NDArray[Any]) -> NDArray[Any]:
        """A piece (height, width, ...) as its patches (n, patch, patch, ...), row by row."""
        rows, cols = (side // self.patch for side in piece.shape[:2])
        sides = piece.reshape(rows, self.patch, cols, self.patch, *piece.shape[2:]).swapaxes(1, 2)
        return sides.reshape(rows * cols, self.patch, self.patch, *piece.shape[2:])

    def split(self, images: Sequence[Pixels]) -> tuple[list[Sides], list[NDArray[np.float32]]]:
        """The pieces of all `images`, and the values of each."""
        pieces = [piece for image in images for piece in self.pieces(image.grid)]
        values = np.concatenate([image.values for image in images])
        return pieces, np.split(values, list(accumulate(map(math.prod, pieces)))[:-1])


def by_token(piece: Sides, side: int) -> NDArray[np.int64]:
    """The rows (tokens, side * side) of a `piece` that `side` x `side` of are one token, token by token."""
    sides = (piece[0] // side, side, piece[1] // side, side)
    return np.arange(math.prod(piece)).reshape(sides).swapaxes(1, 2).reshape(-1, side**2)
