"""How LFM2-VL sees a picture: in its own proportions, and a large one in square tiles as well.

The arithmetic is that of LFM2-VL's image processor, which transformers has for torchvision alone. A picture becomes
patches in its own proportions, between two limits; one that is much too large is cut into tiles, and comes after them
as a whole. What torchvision's filter makes of a byte Pillow's makes too, or its neighbour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cutline.models.families.checks import channels
from cutline.models.families.family import Arrays, Count, Grid, Spread
from cutline.models.families.pieces import PiecedFamily, Sides
from cutline.models.images import MAX_PIXELS, Pixels

IMAGE, START, END, THUMBNAIL = "<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"
MAX_TILES = 64  # of a picture; published models have 10
_LIMITS = {
    "tile": "tile_size",
    "min_tiles": "min_tiles",
    "max_tiles": "max_tiles",
    "min_tokens": "min_image_tokens",
    "max_tokens": "max_image_tokens",
    "tolerance": "max_pixels_tolerance",
    "thumbnail": "use_thumbnail",
}


class Lfm2Pictures(PiecedFamily, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`merge` x `merge` patches are one image token.

    A picture has from `min_tokens` to `max_tokens`. One of more than `tolerance` times as many is cut into tiles of
    `tile` x `tile` pixels, from `min_tiles` to `max_tiles` (1 for none at all), and with a `thumbnail` comes as a whole
    after them.
    """

    merge: Count
    tile: Count
    min_tiles: Count
    max_tiles: Count
    min_tokens: Count
    max_tokens: Count
    tolerance: Spread
    thumbnail: bool

    def __post_init__(self) -> None:
        most = self.max_tiles * self.tile**2
        if (
            self.tile % self.factor
            or self.max_tiles > MAX_TILES
            or max(most, self.pixels(self.max_tokens)) > MAX_PIXELS
        ):
            raise ValueError(
                f"{self.max_tiles} tiles of {self.tile} pixels or {self.max_tokens} tokens; supported: tiles of whole "
                f"tokens, up to {MAX_TILES}, and {MAX_PIXELS} pixels"
            )

    processors: ClassVar[tuple[str, ...]] = ("Lfm2VlImageProcessor",)
    processor_defaults: ClassVar[Mapping[str, Any] | None] = {
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_image_splitting": True,
        "downsample_factor": 2,
        "encoder_patch_size": 16,
        "tile_size": 512,
        "min_tiles": 2,
        "max_tiles": 10,
        "min_image_tokens": 64,
        "max_image_tokens": 256,
        "max_pixels_tolerance": 2.0,
        "use_thumbnail": True,
        "do_pad": True,
    }
    resample: ClassVar[Image.Resampling] = Image.Resampling.BICUBIC
    image_marker: ClassVar[str] = IMAGE
    markers: ClassVar[tuple[str, ...]] = (IMAGE, START, END, THUMBNAIL)
    named: ClassVar[Mapping[str, str]] = {
        "image_token": IMAGE,
        "image_start_token": START,
        "image_end_token": END,
        "image_thumbnail_token": THUMBNAIL,
    }

    @classmethod
    def read(cls, config: Any, processor: Mapping[str, Any]) -> dict[str, Any]:
        """The fields about pictures; tower and image processor must have the same patches. Raises ValueError."""
        sides = {"encoder_patch_size": config.vision_config.patch_size, "downsample_factor": config.downsample_factor}
        for name, expected in sides.items():
            if processor[name] != expected:
                raise ValueError(f"{name} {processor[name]!r} in its image processor, and {expected} in its config")
        if not processor.get("use_image_special_tokens", True):
            raise ValueError("use_image_special_tokens false in its processor, where true is supported")
        limits = {name: processor[theirs] for name, theirs in _LIMITS.items()}
        if not processor["do_image_splitting"]:
            limits |= {"min_tiles": 1, "max_tiles": 1}
        return limits | {
            "patch": config.vision_config.patch_size,
            "merge": config.downsample_factor,
            "mean": channels("image_mean", processor["image_mean"]),
            "std": channels("image_std", processor["image_std"]),
        }

    @property
    def factor(self) -> int:
        """Pixels along a side of an image token."""
        return self.patch * self.merge

    def pixels(self, tokens: int) -> int:
        """Of so many image tokens."""
        return tokens * self.factor**2

    def whole(self, grid: Grid) -> tuple[int, int]:
        """Height and width of a picture in one piece: whole image tokens, within the limits."""
        height, width = grid
        down, across = (max(self.factor, round(side / self.factor) * self.factor) for side in grid)
        if down * across > self.pixels(self.max_tokens):
            shrink = math.sqrt(height * width / self.pixels(self.max_tokens))
            down, across = (max(self.factor, math.floor(side / shrink / self.factor) * self.factor) for side in grid)
        elif down * across < self.pixels(self.min_tokens):
            stretch = math.sqrt(self.pixels(self.min_tokens) / (height * width))
            down, across = (math.ceil(side * stretch / self.factor) * self.factor for side in grid)
        return down, across

    def tiles(self, grid: Grid) -> tuple[int, int]:
        """Rows and columns of a picture's tiles; (1, 1) for one in one piece."""
        down, across = (max(self.patch, round(side / self.factor) * self.factor) for side in grid)
        if self.max_tiles == 1 or down * across <= self.pixels(self.max_tokens) * self.tolerance:
            return 1, 1
        height, width = grid
        counts = range(1, self.max_tiles + 1)
        fields = [(wide, high) for wide in counts for high in counts if self.min_tiles <= wide * high <= self.max_tiles]
        best, least = (1, 1), math.inf
        for wide, high in sorted(fields, key=math.prod):
            off = abs(width / height - wide / high)
            if off < least or (off == least and width * height > 0.5 * self.tile**2 * wide * high):
                best, least = (wide, high), off
        return best[1], best[0]

    def pieces(self, grid: Grid) -> list[Sides]:
        """Rows and columns of the patches of each piece: the tiles row by row, then the picture as a whole."""
        count, side = math.prod(self.tiles(grid)), self.tile // self.patch
        down, across = self.whole(grid)
        tiles = [(side, side)] * count if count > 1 else []
        return [*tiles, *([(down // self.patch, across // self.patch)] if count == 1 or self.thumbnail else [])]

    def preprocess(self, image: Image.Image) -> Pixels:
        """Patches (n, patch * patch * 3) of all pieces, row by row."""
        grid, (rows, cols) = self.grid(image.size), self.tiles(self.grid(image.size))
        down, across = self.whole(grid)
        made = []
        if rows * cols > 1:
            field = np.asarray(self.resize(image, (cols * self.tile, rows * self.tile)))
            tiled = field.reshape(rows, self.tile, cols, self.tile, 3).swapaxes(1, 2)
            made += list(tiled.reshape(-1, self.tile, self.tile, 3))
        if rows * cols == 1 or self.thumbnail:
            made.append(np.asarray(self.resize(image, (across, down))))
        return Pixels(np.concatenate([self._patches(piece) for piece in made]), grid)

    def _patches(self, piece: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Of bytes (height, width, 3); they are normalised in one step, as there."""
        mean, std = (np.asarray(of, np.float32) * np.float32(255) for of in (self.mean, self.std))
        values = (piece.astype(np.float32) - mean) / std
        return np.asarray(self.cut(values).reshape(-1, 3 * self.patch**2), np.float32)

    def tokens(self, grid: Grid) -> int:
        """One for each `merge` x `merge` patches of every piece."""
        return self.patches(grid) // self.merge**2

    def expand(self, grid: Grid, number: int) -> str:
        """Each tile after its place, and the whole after a mark of its own."""
        del number
        rows, cols = self.tiles(grid)
        own = [IMAGE * (down * across // self.merge**2) for down, across in self.pieces(grid)]
        marks = [f"<|img_row_{at // cols + 1}_col_{at % cols + 1}|>" for at in range(rows * cols)]
        marks = [*marks, THUMBNAIL] if rows * cols > 1 else [""]
        return START + "".join(mark + tokens for mark, tokens in zip(marks, own, strict=False)) + END

    def as_given(self, images: Sequence[Pixels]) -> Arrays:
        """The patches of each piece, padded to as many."""
        if not images:
            return {}
        pieces, parts = self.split(images)
        most = max(map(len, parts))
        return {
            "pixel_values": np.stack([np.pad(part, ((0, most - len(part)), (0, 0))) for part in parts]),
            "pixel_attention_mask": np.array([np.arange(most) < len(part) for part in parts]).astype(np.int32),
            "spatial_shapes": np.array(pieces),
        }

    def example(self, seed: int) -> Pixels:
        """A picture in one piece, wider than high."""
        grid = (2 * self.factor, 3 * self.factor)
        values = np.random.default_rng(seed).uniform(-1, 1, (self.patches(grid), 3 * self.patch**2))
        return Pixels(values.astype(np.float32), grid)
