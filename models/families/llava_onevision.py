"""LLaVA-OneVision: tiles that hold a picture in its own proportions, and tokens for what it fills of them.

The arithmetic is that of LLaVA-OneVision's image processor (transformers, PIL backend), as it is for each picture of a
list: of the sizes that the model knows the one that keeps most of the picture is chosen, the picture is fitted into it
between black margins, and the whole of it comes first as a tile of its own. Behind the connector the rows of the tiles
make up one field again; what the margins take is left out, a large field is shrunk, and a row that the model learnt
ends each line. So a grid is the picture's own height and width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cutline.models.families.checks import channels, check_decoder
from cutline.models.families.family import Arrays, Count, Grid
from cutline.models.families.parts import Ops, Parts
from cutline.models.families.pieces import ProportionedFamily
from cutline.models.families.tiles import TileFamily
from cutline.models.images import Pixels

IMAGE = "<image>"
MAX_TILES = 64  # of a picture; published models have 36
_SHRUNK = 1.1  # times as long as it may be a side of the field is at least before it is shrunk


class LlavaOnevision(
    ProportionedFamily, TileFamily, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="llava-onevision"
):
    """The sizes (height, width) that a picture is fitted into are `fields`, in pixels.

    A field of more tokens than `most` tiles have is shrunk.
    """

    fields: Annotated[tuple[tuple[Count, Count], ...], msgspec.Meta(min_length=1, max_length=256)]
    most: Count

    def __post_init__(self) -> None:
        for height, width in self.fields:
            whole = height % self.tile == width % self.tile == 0
            if not whole or not 0 < height * width <= MAX_TILES * self.tile**2:
                raise ValueError(f"a field of {height} by {width}; supported: up to {MAX_TILES} tiles of {self.tile}")
        if self.tile_tokens != self.side**2:
            raise ValueError(f"{self.tile_tokens} tokens a tile, where each of its patches is one")

    kinds: ClassVar[tuple[str, ...]] = ("llava_onevision",)
    parts: ClassVar[Parts] = Parts(
        image=("vision_tower.embeddings",),
        tower="vision_tower.encoder.layers",
        connector=("multi_modal_projector",),
        decoder="language_model",
        learnt=("image_newline",),
    )
    image_marker: ClassVar[str] = IMAGE
    markers: ClassVar[tuple[str, ...]] = (IMAGE,)
    named: ClassVar[Mapping[str, str]] = {"image_token": IMAGE}
    answering: ClassVar[tuple[str, ...]] = ("LlavaOnevisionForConditionalGeneration",)
    processors: ClassVar[tuple[str, ...]] = ("LlavaOnevisionImageProcessor",)
    resample: ClassVar[Image.Resampling] = Image.Resampling.BICUBIC

    @classmethod
    def of(cls, config: Any, processor: Mapping[str, Any]) -> LlavaOnevision:
        """See `Family.of`; tower and image processor must have the same tiles."""
        vision = config.vision_config
        check_decoder(config.text_config, ("qwen2", "qwen3", "llama"))
        taken = config.vision_feature_layer, config.vision_feature_select_strategy
        if taken != (-1, "full") or vision.model_type != "siglip_vision_model":
            raise ValueError(
                f"vision_feature_layer {taken[0]!r}, vision_feature_select_strategy {taken[1]!r} and a tower of the "
                f"kind {vision.model_type}; supported: -1, full and siglip_vision_model"
            )
        tile, patch = vision.image_size, vision.patch_size
        if not isinstance(tile, int) or not isinstance(patch, int):
            raise ValueError(f"image_size {tile!r} and patch_size {patch!r} in its vision_config, not one number each")
        if dict(processor["size"]) != {"height": tile, "width": tile}:
            raise ValueError(f"size {dict(processor['size'])!r} in its image processor, and a tower that sees {tile}")
        tokens = (tile // patch) ** 2
        if (said := processor.get("num_image_tokens") or tokens) != tokens:
            raise ValueError(f"num_image_tokens {said!r} in its processor, and a tower that gives {tokens} a tile")
        ratio = config.vision_aspect_ratio
        most = ratio.removeprefix("anyres_max_") if isinstance(ratio, str) else ""
        if not most.isdecimal() or processor.get("vision_aspect_ratio", ratio) != ratio:
            raise ValueError(f"vision_aspect_ratio {ratio!r}; supported: anyres_max_ and a number, the same everywhere")
        pins = [list(pin) for pin in config.image_grid_pinpoints]
        if pins != [list(pin) for pin in processor["image_grid_pinpoints"]]:
            raise ValueError("image_grid_pinpoints in its image processor, and others in its config")
        return cls._checked(
            tile=tile,
            patch=patch,
            tile_tokens=tokens,
            fields=tuple(map(tuple, pins)),
            most=int(most),
            mean=channels("image_mean", processor["image_mean"]),
            std=channels("image_std", processor["image_std"]),
        )

    def field(self, grid: Grid) -> tuple[int, int]:
        """The size (height, width) that keeps most pixels of a picture, and of those the one with least beside it."""
        height, width = grid

        def kept(field: tuple[int, int]) -> int:
            scale = min(field[1] / width, field[0] / height)
            return min(int(width * scale) * int(height * scale), width * height)

        return min(self.fields, key=lambda field: (-kept(field), math.prod(field) - kept(field)))

    def preprocess(self, image: Image.Image) -> Pixels:
        """Tiles (n, 3, tile, tile): the whole picture, then those that it fills, row by row."""
        grid = self.grid(image.size)
        height, width = self.field(grid)
        across, down = width / image.width, height / image.height
        if across < down:
            fitted = width, min(math.ceil(image.height * across), height)
        else:
            fitted = min(math.ceil(image.width * down), width), height
        filled = Image.new("RGB", (width, height))
        filled.paste(self.resize(image, fitted), ((width - fitted[0]) // 2, (height - fitted[1]) // 2))
        whole = self.resize(image, (self.tile, self.tile))
        return Pixels(self.normalised(np.concatenate([self.cut(whole), self.cut(filled)])), grid)

    def takes(self, grid: Grid) -> bool:
        """Whether a picture may have such sides, and something of it is left in its field."""
        return super().takes(grid) and min(self.shrunk(grid)) > 0

    def tiles(self, grid: Grid) -> int:
        """Those of the field, and the whole picture."""
        return math.prod(self.field(grid)) // self.tile**2 + 1

    def shape(self, grid: Grid) -> tuple[int, int]:
        """Rows and columns of the field without margins, before it is shrunk."""
        field = self.field(grid)
        rows, cols = (side // self.tile * self.side for side in field)
        height, width = grid
        if width / height > cols / rows:  # the divisions are those of the original, as their rounding matters
            return rows - (rows - int(round(height * (cols / width), 7))) // 2 * 2, cols
        return rows, cols - (cols - int(round(width * (rows / height), 7))) // 2 * 2

    def shrunk(self, grid: Grid) -> tuple[int, int]:
        """Rows and columns of the field as it enters the decoder, without the ends of its lines."""
        rows, cols = self.shape(grid)
        ratio = math.sqrt(rows * cols / (self.most * self.side**2))
        return (int(rows // ratio), int(cols // ratio)) if ratio > _SHRUNK else (rows, cols)

    @property
    def side(self) -> int:
        """Patches along a side of a tile."""
        return self.tile // self.patch

    def tokens(self, grid: Grid) -> int:
        """Those of the whole picture, then the field's, with one at the end of each line."""
        rows, cols = self.shrunk(grid)
        return self.tile_tokens + rows * (cols + 1)

    def expand(self, grid: Grid, number: int) -> str:
        """The image tokens."""
        del number
        return IMAGE * self.tokens(grid)

    def runs(self, rows: Any, grids: Sequence[Grid]) -> list[tuple[Any, Arrays]]:
        """One piece for each picture, of pixels (n, 3, tile, tile) or of its patches' rows (n, width)."""
        counts = [self.tiles(grid) if rows.ndim == 4 else self.patches(grid) for grid in grids]
        ends = list(accumulate(counts))
        pieces = (rows[end - count : end] for end, count in zip(ends, counts, strict=True))
        return [(piece, self.beside(grid)) for piece, grid in zip(pieces, grids, strict=True)]

    def slices(self, rows: Any, grids: Sequence[Grid]) -> list[tuple[Any, Arrays]]:
        """As `runs`: which rows of its tiles become tokens depends on the whole picture."""
        return self.runs(rows, grids)

    def beside(self, grid: Grid) -> Arrays:
        """`near` (tokens, 4) are the rows behind the connector that a token is made of, and `weights` their shares.

        The row that ends a line stands behind those of all tiles.
        """
        field, (rows, cols) = self.field(grid), self.shape(grid)
        down, across = (side // self.tile for side in field)
        of_tiles = self.tile_tokens + np.arange(down * across * self.tile_tokens)
        places = of_tiles.reshape(down, across, self.side, self.side).swapaxes(1, 2).reshape(down * self.side, -1)
        top, left = (places.shape[0] - rows) // 2, (places.shape[1] - cols) // 2
        places = places[top : top + rows, left : left + cols]
        high, wide = self.shrunk(grid)
        (above, down_share), (before, across_share) = _between(rows, high), _between(cols, wide)
        near = places[above[:, None, :, None], before[None, :, None, :]].reshape(high, wide, 4)
        weights = (down_share[:, None, :, None] * across_share[None, :, None, :]).reshape(high, wide, 4)
        end = self.tile_tokens * self.tiles(grid)
        lines = np.pad(near, ((0, 0), (0, 1), (0, 0)), constant_values=end).reshape(-1, 4)
        shares = np.pad(weights, ((0, 0), (0, 1), (0, 0)), constant_values=0.25).reshape(-1, 4)
        whole = np.arange(self.tile_tokens)[:, None].repeat(4, 1)
        return {
            "near": np.concatenate([whole, lines]),
            "weights": np.concatenate([np.full(whole.shape, 0.25), shares]).astype(np.float32),
        }

    def leave(self, modules: Sequence[Any], rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """The projection, then each token's share of the rows that it is made of."""
        projector, end = modules
        made = ops.join([projector(rows), end[None]], 0)
        return (made[beside["near"]] * beside["weights"][..., None].type_as(made)).sum(1)

    def as_given(self, images: Sequence[Pixels]) -> Arrays:
        """The tiles of each, padded to as many, and the pictures' sizes."""
        if not images:
            return {}
        most = max(len(image.values) for image in images)
        padded = [np.pad(one.values, ((0, most - len(one.values)), (0, 0), (0, 0), (0, 0))) for one in images]
        return {"pixel_values": np.stack(padded), "image_sizes": np.array([image.grid for image in images])}

    def example(self, seed: int) -> Pixels:
        """A picture with margins, in as few tiles as any field has that is not one tile, if there is one."""
        height, width = min(self.fields, key=lambda field: (math.prod(field) == self.tile**2, math.prod(field)))
        grid = height, max(1, width - self.patch * 2)
        noise = np.random.default_rng(seed).uniform(-1, 1, (self.tiles(grid), 3, self.tile, self.tile))
        return Pixels(noise.astype(np.float32), grid)


def _between(size: int, made: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The two places (made, 2) of `size` about each of `made` that they are shrunk to, and their shares.

    As torch interpolates: between the middles of what a side is divided into.
    """
    at = np.maximum(
        (np.arange(made, dtype=np.float32) + np.float32(0.5)) * np.float32(size / made) - np.float32(0.5), 0
    )
    below = np.floor(at).astype(np.int64)
    share = (at - below).astype(np.float32)
    return np.stack([below, np.minimum(below + 1, size - 1)], 1), np.stack([1 - share, share], 1)
