"""What families share whose towers see square tiles of one size, each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cutline.models.families.family import Arrays, Count, Family, Grid, Spread
from cutline.models.families.parts import Ops
from cutline.models.images import Pixels, Size, normalised


class TileFamily(Family, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Tiles of `tile` x `tile` pixels, with patches of `patch` x `patch` pixels and `tile_tokens` image tokens.

    A grid counts tiles. An image that is cut is seen once more as a whole, in a tile of its own, the last one; the grid
    of one that is not cut is (0, 0).
    """

    apart: ClassVar[frozenset[str]] = frozenset({"patch"})

    tile: Count
    patch: Count
    tile_tokens: Count
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[Spread, Spread, Spread] = (0.5, 0.5, 0.5)

    @property
    def tile_patches(self) -> int:
        """Rows of a tile within the tower."""
        return (self.tile // self.patch) ** 2

    def tiles(self, grid: Grid) -> int:
        """The number of tiles of an image."""
        return grid[0] * grid[1] + 1

    def tokens(self, grid: Grid) -> int:
        """`tile_tokens` for every tile."""
        return self.tile_tokens * self.tiles(grid)

    def patches(self, grid: Grid) -> int:
        """All rows of every tile."""
        return self.tile_patches * self.tiles(grid)

    def seen(self, grid: Grid) -> int:
        """The rows of the same tile."""
        del grid
        return self.tile_patches

    def piece_grid(self, size: Size) -> Grid | None:
        """That of one tile, which a frame has become."""
        return (0, 0) if size == (self.tile, self.tile) and self.takes((0, 0)) else None

    def piece_pixels(self, strip: Image.Image) -> Pixels:
        """The one tile."""
        return Pixels(self.normalised(self.cut(strip)), (0, 0))

    def runs(self, rows: Any, grids: Sequence[Grid]) -> list[tuple[Any, Arrays]]:
        """One piece: tiles are independent and of equal size."""
        del grids
        return [(rows, {})]

    def slices(self, rows: Any, grids: Sequence[Grid]) -> list[tuple[Any, Arrays]]:
        """One piece for each tile, of pixels (n, 3, tile, tile) or of its patches' rows (n, width)."""
        del grids
        size = 1 if rows.ndim == 4 else self.tile_patches
        return [(rows[first : first + size], {}) for first in range(0, len(rows), size)]

    def enter(self, modules: Sequence[Any], pixels: Any, beside: dict[str, Any]) -> Any:
        """The embedded patches of whole tiles, whose places need not be interpolated."""
        del beside
        (embeddings,) = modules
        return embeddings(pixels).flatten(0, 1)

    def step(self, module: Any, index: int, rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """transformers' own layer, which takes a mask of nothing, with tiles as the batch."""
        del index, beside, ops
        return module(self.by_tile(rows), None).flatten(0, 1)

    def as_given(self, images: Sequence[Pixels]) -> Arrays:
        """All tiles as one batch."""
        return {"pixel_values": np.concatenate([image.values for image in images])} if images else {}

    def example(self, seed: int) -> Pixels:
        """One tile."""
        noise = np.random.default_rng(seed).uniform(-1, 1, (1, 3, self.tile, self.tile))
        return Pixels(noise.astype(np.float32), (0, 0))

    def by_tile(self, rows: Any) -> Any:
        """Rows (n, width) by tile: (tiles, `tile_patches`, width)."""
        return rows.unflatten(0, (-1, self.tile_patches))

    def normalised(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Bytes (n, 3, tile, tile) as the tower takes them."""
        return normalised(tiles, self.mean, self.std)

    def cut(self, image: Image.Image) -> NDArray[np.uint8]:
        """The image, of whole tiles, cut into them, row by row: (n, 3, tile, tile)."""
        width, height = image.size
        parts = np.asarray(image).reshape(height // self.tile, self.tile, width // self.tile, self.tile, 3)
        return parts.transpose(0, 2, 4, 1, 3).reshape(-1, 3, self.tile, self.tile)
