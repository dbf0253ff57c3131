"""Gemma 4's tower: pictures in their own proportions, fitted into so many image tokens, and seen as a whole.

The arithmetic is that of its image processor (transformers, PIL backend): resize to the most patches that there is room
for, in whole image tokens, and bring the bytes to 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cutline.models.families.family import Arrays, Count, Family, Grid, Spread
from cutline.models.families.parts import Ops
from cutline.models.families.positions import frequencies
from cutline.models.images import Pixels, Size, normalised

IMAGE, START, END = "<|image|>", "<|image>", "<image|>"


class PatchFamily(Family, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Patches of `patch` x `patch` pixels; `pool` x `pool` of them are one image token, of which there are `most`.

    The tower's rotary embedding has base `tower_theta` over heads of `tower_head`. What its rows become is
    `standardised` or not. A grid counts patches.
    """

    patch: Count
    pool: Count
    most: Count
    tower_head: Count
    tower_theta: Spread
    standardised: bool

    image_marker: ClassVar[str] = IMAGE
    markers: ClassVar[tuple[str, ...]] = (IMAGE, START, END)
    named: ClassVar[Mapping[str, str]] = {"image_token": IMAGE, "boi_token": START, "eoi_token": END}
    processors: ClassVar[tuple[str, ...]] = ("Gemma4ImageProcessor",)
    resample: ClassVar[Image.Resampling] = Image.Resampling.BICUBIC
    normalises: ClassVar[bool] = False
    apart: ClassVar[frozenset[str]] = frozenset({"tower_head", "tower_theta", "standardised"})

    @classmethod
    def read(cls, vision: Any, processor: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that are of a picture and the tower `vision`. Raises ValueError as `of` does."""
        if vision.model_type != "gemma4_vision":
            raise ValueError(f"a tower of the kind {vision.model_type}, where gemma4_vision is supported")
        for name, own in (("patch_size", vision.patch_size), ("pooling_kernel_size", vision.pooling_kernel_size)):
            if processor[name] != own:
                raise ValueError(f"{name} {processor[name]!r} in its image processor, and {own} in its tower")
        most = processor["max_soft_tokens"]
        if vision.position_embedding_size < most * vision.pooling_kernel_size:
            raise ValueError(
                f"position_embedding_size {vision.position_embedding_size} in its vision_config, and pictures of "
                f"{most * vision.pooling_kernel_size} patches along a side"
            )
        return {
            "patch": vision.patch_size,
            "pool": vision.pooling_kernel_size,
            "most": most,
            "tower_head": vision.head_dim,
            "tower_theta": vision.rope_parameters["rope_theta"],
            "standardised": vision.standardize,
        }

    @property
    def factor(self) -> int:
        """Pixels along a side of an image token."""
        return self.patch * self.pool

    def preprocess(self, image: Image.Image) -> Pixels:
        """Patches (rows * cols, patch * patch * 3), row by row."""
        fitted = self.resize(image, self.fitted(image.size))
        pixels = normalised(np.asarray(fitted).transpose(2, 0, 1)[None], (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))[0]
        rows, cols = grid = fitted.height // self.patch, fitted.width // self.patch
        patches = pixels.reshape(3, rows, self.patch, cols, self.patch).transpose(1, 3, 2, 4, 0)
        return Pixels(patches.reshape(rows * cols, -1), grid)

    def fitted(self, size: Size) -> Size:
        """The most whole image tokens in about the proportions of `size`; of a thin picture one along a side."""
        width, height = size
        # In the order in which transformers rounds.
        scale = math.sqrt(self.most * self.pool**2 * self.patch**2 / (height * width))
        down, across = (math.floor(scale * side / self.factor) for side in (height, width))
        if down == 0:
            down, across = 1, min(width // height, self.most)
        elif across == 0:
            down, across = min(height // width, self.most), 1
        return across * self.factor, down * self.factor

    def grid(self, size: Size) -> Grid:
        """Rows and columns of patches."""
        width, height = self.fitted(size)
        return height // self.patch, width // self.patch

    def is_settled(self, size: Size) -> bool:
        """Not where there is room for more tokens along a side."""
        return self.fitted(size) == size

    def takes(self, grid: Grid) -> bool:
        """Whether `grid` has whole image tokens, and no more than there may be."""
        whole = grid[0] % self.pool == grid[1] % self.pool == 0 and min(grid) >= self.pool
        return whole and self.tokens(grid) <= self.most

    def tokens(self, grid: Grid) -> int:
        """One for each `pool` x `pool` patches."""
        return math.prod(grid) // self.pool**2

    def patches(self, grid: Grid) -> int:
        """The area of the grid."""
        return math.prod(grid)

    def expand(self, grid: Grid, number: int) -> str:
        """The image tokens between two marks."""
        del number
        return f"{START}{IMAGE * self.tokens(grid)}{END}"

    def runs(self, rows: Any, grids: Sequence[Grid]) -> list[tuple[Any, Arrays]]:
        """One piece a picture."""
        ends = np.cumsum([math.prod(grid) for grid in grids]).tolist()
        return [(rows[end - math.prod(grid) : end], self.beside(grid)) for grid, end in zip(grids, ends, strict=True)]

    def beside(self, grid: Grid) -> Arrays:
        """`places` (n, 2) say column and row of each patch; `order` (n,) has the patches by image token.

        `cos` and `sin` (n, tower_head) rotate each row: a half by its column, a half by its row.
        """
        places = np.indices(grid)[::-1].reshape(2, -1).T
        sides = (grid[0] // self.pool, self.pool, grid[1] // self.pool, self.pool)
        order = np.arange(math.prod(grid)).reshape(sides).swapaxes(1, 2).reshape(-1)
        angles = places[..., None].astype(np.float32) * frequencies(self.tower_theta, self.tower_head // 4)
        angles = np.tile(angles, 2).reshape(len(places), -1)
        return {"places": places.copy(), "order": order, "cos": np.cos(angles), "sin": np.sin(angles)}

    def enter(self, modules: Sequence[Any], pixels: Any, beside: dict[str, Any]) -> Any:
        """The embedded patches, with their places added."""
        projection, learnt = modules
        across, down = beside["places"].unbind(1)
        return projection((2 * (pixels - 0.5)).type_as(learnt)) + (learnt[0][across] + learnt[1][down])

    def step(self, module: Any, index: int, rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """transformers' own layer."""
        del index, ops
        turns = beside["cos"][None].type_as(rows), beside["sin"][None].type_as(rows)
        return module(rows[None], position_embeddings=turns, position_ids=beside["places"][None])[0]

    def leave(self, modules: Sequence[Any], rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """The mean of a token's patches, made as long as it is wide, and the projection."""
        del ops
        projection, *standard = modules
        pooled = rows[beside["order"]].unflatten(0, (-1, self.pool**2)).float().mean(1).type_as(rows)
        pooled = pooled.float() * rows.shape[1] ** 0.5
        if standard:
            bias, scale = standard
            pooled = (pooled - bias.float()) * scale.float()
        return projection(inputs_embeds=pooled.type_as(rows))

    def as_given(self, images: Sequence[Pixels]) -> Arrays:
        """The patches of each picture and their places, padded to as many."""
        if not images:
            return {}
        most = max(len(image.values) for image in images)
        fill = [((0, most - len(image.values)), (0, 0)) for image in images]
        places: list[NDArray[np.int64]] = [self.beside(image.grid)["places"] for image in images]
        return {
            "pixel_values": np.stack([np.pad(image.values, more) for image, more in zip(images, fill, strict=True)]),
            "image_position_ids": np.stack(
                [np.pad(one, more, constant_values=-1) for one, more in zip(places, fill, strict=True)]
            ),
        }

    def example(self, seed: int) -> Pixels:
        """A picture wider than high."""
        grid = (2 * self.pool, 3 * self.pool)
        values = np.random.default_rng(seed).uniform(0, 1, (math.prod(grid), 3 * self.patch**2))
        return Pixels(values.astype(np.float32), grid)
