"""How MiniCPM-V sees a picture: as a whole, and a larger one in slices too, in its proportions.

The arithmetic is that of MiniCPM-V's image processor (transformers, PIL backend): every piece has about the area of one
slice, and whole image tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from PIL import Image

from cutline.models.families.family import Arrays, Count, Grid
from cutline.models.families.pieces import PiecedFamily, Sides
from cutline.models.images import MAX_PIXELS, Pixels, normalised

MERGE = 2  # rows along a side that become one, within the tower and once more behind it
MAX_SLICES = 64  # of a picture; published models have 9


class SlicedFamily(PiecedFamily, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A picture has `most` slices at most, or with 1 none, each of about `side` x `side` pixels."""

    most: Count
    side: Count

    resample: ClassVar[Image.Resampling] = Image.Resampling.BICUBIC

    def __post_init__(self) -> None:
        if self.most > MAX_SLICES or self.most * self.side**2 > MAX_PIXELS or self.side < self.factor:
            raise ValueError(
                f"{self.most} slices of {self.side} pixels; supported: of one image token, {self.factor} pixels, at "
                f"least, up to {MAX_SLICES}, and {MAX_PIXELS} pixels"
            )

    @property
    def factor(self) -> int:
        """Pixels along a side of an image token."""
        return self.patch * MERGE**2

    def field(self, grid: Grid) -> Sides | None:
        """Rows and columns of a picture's slices: as near to its proportions as can be; None for a small one's."""
        height, width = grid
        wanted, count = math.log(width / height), min(math.ceil(width * height / self.side**2), self.most)
        fields = [
            (rows, number // rows)
            for number in range(max(2, count - 1), min(count + 1, self.most) + 1)
            for rows in range(1, number + 1)
            if number % rows == 0
        ]
        off = {field: abs(wanted - math.log(field[1] / field[0])) for field in fields}
        # Of two fields as near the one with more rows counts, and of those the first.
        return min(fields, key=lambda field: (off[field], -field[0])) if count > 1 else None

    def scaled(self, height: float, width: float) -> Sides:
        """Height and width of a piece in these proportions: whole image tokens, of about the area of a slice."""
        high = int(self.side / math.sqrt(width / height))
        wide = int(high * (width / height))
        return self._multiple(high, self.factor), self._multiple(wide, self.factor)

    def sizes(self, grid: Grid) -> list[Sides]:
        """Height and width of the whole picture as a piece, then of its slices, row by row."""
        (height, width), field = grid, self.field(grid)
        if field is None:
            return [self.scaled(*grid)]
        rows, cols = field
        slice_ = self.scaled(self._multiple(height, rows) / rows, self._multiple(width, cols) / cols)
        return [self.scaled(*grid), *[slice_] * (rows * cols)]

    def _multiple(self, side: int, of: int) -> int:
        return max(round(side / of) * of, of)

    def pieces(self, grid: Grid) -> list[Sides]:
        """See `PiecedFamily.pieces`."""
        return [(high // self.patch, wide // self.patch) for high, wide in self.sizes(grid)]

    def preprocess(self, image: Image.Image) -> Pixels:
        """Patches (n, 3 * patch * patch) of all pieces, row by row."""
        grid = self.grid(image.size)
        (down, across), *slices = self.sizes(grid)
        made = [np.asarray(self.resize(image, (across, down)))]
        if field := self.field(grid):
            (rows, cols), (high, wide) = field, slices[0]
            sliced = np.asarray(self.resize(image, (cols * wide, rows * high)))
            made += list(sliced.reshape(rows, high, cols, wide, 3).swapaxes(1, 2).reshape(-1, high, wide, 3))
        patches = np.concatenate([self.cut(piece) for piece in made]).transpose(0, 3, 1, 2)
        return Pixels(normalised(patches, self.mean, self.std).reshape(len(patches), -1), grid)

    def as_given(self, images: Sequence[Pixels]) -> Arrays:
        """The patches of all pieces side by side."""
        if not images:
            return {}
        pieces, parts = self.split(images)
        patches = np.concatenate(parts).reshape(-1, 3, self.patch, self.patch).transpose(1, 2, 0, 3)
        return {"pixel_values": patches.reshape(1, 3, self.patch, -1), "target_sizes": np.array(pieces, np.int32)}
