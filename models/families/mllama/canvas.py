"""Tiles of a canvas that a picture is put on in its own proportions, in a corner: as Llama 3.2 Vision sees pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from cutline.models.families.checks import channels
from cutline.models.families.family import Count, Grid
from cutline.models.families.tiles import TileFamily
from cutline.models.images import Pixels, Size


class CanvasFamily(TileFamily, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A canvas has `most` tiles at most; a grid counts its rows and columns. A picture always has `most` of them."""

    most: Count

    @classmethod
    def read(cls, vision: Any, processor: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that it has, of a `vision` config with class tokens. Raises ValueError as `of` does."""
        tile, patch, most = vision.image_size, vision.patch_size, vision.max_num_tiles
        if not isinstance(tile, int) or not isinstance(patch, int):
            raise ValueError(f"image_size {tile!r} and patch_size {patch!r} in its vision_config, not one number each")
        if (size := dict(processor["size"])) != {"height": tile, "width": tile}:
            raise ValueError(f"size {size!r} in its image processor, and a tower that sees {tile}")
        if (tiles := processor["max_image_tiles"]) != most:
            raise ValueError(f"max_image_tiles {tiles!r} in its image processor, and a tower of max_num_tiles {most}")
        mean, std = (channels(name, processor[name]) for name in ("image_mean", "image_std"))
        patches = (tile // patch) ** 2 + 1
        return {"tile": tile, "patch": patch, "tile_tokens": patches, "mean": mean, "std": std, "most": most}

    def rows(self, grid: Grid) -> int:
        """Those of all tiles that it may have."""
        del grid
        return self.most * self.tile_tokens

    def patches(self, grid: Grid) -> int:
        """Those of all tiles that it may have."""
        del grid
        return self.most * self.tile_patches

    def seen(self, grid: Grid) -> int:
        """All of the picture."""
        return self.patches(grid)

    def preprocess(self, image: Image.Image) -> Pixels:
        """Tiles (most, 3, tile, tile), of which those that it has stand first; black beside it, zeros behind."""
        rows, cols = self.grid(image.size)
        canvas = Image.new("RGB", (cols * self.tile, rows * self.tile))
        canvas.paste(self.resize(image, self.fitted(image.size)))
        tiles = self.normalised(self.cut(canvas))
        values = np.zeros((self.most, *tiles.shape[1:]), np.float32)
        values[: len(tiles)] = tiles
        return Pixels(values, (rows, cols))

    def grid(self, size: Size) -> Grid:
        """Rows and columns of the canvas that has to be filled up least, or else shrinks the picture least."""
        width, height = size
        canvases = [(down * self.tile, across * self.tile) for down, across in arrangements(self.most)]
        scales = [min(down / height, across / width) for down, across in canvases]
        larger = [scale for scale in scales if scale >= 1]
        chosen = min(larger) if larger else max(scales)
        down, across = min(
            (canvas for canvas, scale in zip(canvases, scales, strict=True) if scale == chosen), key=math.prod
        )
        return down // self.tile, across // self.tile

    def fitted(self, size: Size) -> Size:
        """As large as the canvas in proportion, but no larger than it is, where it is larger than a tile."""
        (width, height), (rows, cols) = size, self.grid(size)
        across = min(max(width, self.tile), cols * self.tile)
        down = min(max(height, self.tile), rows * self.tile)
        if across / width < down / height:
            return across, min(math.floor(height * (across / width)) or 1, down)
        return min(math.floor(width * (down / height)) or 1, across), down

    def is_settled(self, size: Size) -> bool:
        """Whether it is fitted, and so is what that is."""
        return self.fitted(size) == size

    def settle(self, image: Image.Image) -> Image.Image:
        """Only if it gets the same tiles."""
        settled = super().settle(image)
        return settled if self.grid(settled.size) == self.grid(image.size) else image

    def takes(self, grid: Grid) -> bool:
        """Whether it has so many tiles."""
        return grid in arrangements(self.most)

    def example(self, seed: int) -> Pixels:
        """Two tiles."""
        noise = np.random.default_rng(seed).uniform(-1, 1, (self.most, 3, self.tile, self.tile)).astype(np.float32)
        grid = (2, 1) if self.most > 1 else (1, 1)
        noise[math.prod(grid) :] = 0
        return Pixels(noise, grid)


def arrangements(most: int) -> list[Grid]:
    """All (rows, columns) of up to `most` tiles, in transformers' order."""
    return [(down, across) for down in range(1, most + 1) for across in range(1, most + 1) if down * across <= most]
