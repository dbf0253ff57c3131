"""InternVL 3 and 3.5 (the folders that transformers reads itself, `-hf`): tiles in the picture's proportions.

The arithmetic is that of GOT-OCR2's image processor (transformers, PIL backend), with cropping, as InternVL's processor
always asks for it: of all arrangements of up to `most` tiles the one nearest to the picture's proportions is filled,
and the whole picture comes after it as a thumbnail. A class token stands before the patches of each tile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
from PIL import Image

from cutline.models.families.checks import BOUNDED_ROTATIONS, channels, check_decoder
from cutline.models.families.family import Grid
from cutline.models.families.parts import Ops, Parts
from cutline.models.families.tiles import TileFamily
from cutline.models.images import Pixels, Size
from cutline.models.video import Footage, VideoMode

IMAGE, START, END = "<IMG_CONTEXT>", "<img>", "</img>"
MAX_TILES = 64  # of a picture; published models have 12
FRAMES = 8  # of a video, as the published models' own chat takes


class InternVL(TileFamily, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="internvl"):
    """At least `least` and at most `most` tiles, without the thumbnail."""

    least: Annotated[int, msgspec.Meta(ge=1, le=MAX_TILES)]
    most: Annotated[int, msgspec.Meta(ge=1, le=MAX_TILES)]

    kinds: ClassVar[tuple[str, ...]] = ("internvl",)
    parts: ClassVar[Parts] = Parts(
        image=("vision_tower.embeddings",),
        tower="vision_tower.encoder.layer",
        connector=("vision_tower.layernorm", "multi_modal_projector"),
        decoder="language_model",
    )
    image_marker: ClassVar[str] = IMAGE
    markers: ClassVar[tuple[str, ...]] = (IMAGE, START, END)
    named: ClassVar[Mapping[str, str]] = {
        "context_image_token": IMAGE,
        "start_image_token": START,
        "end_image_token": END,
    }
    answering: ClassVar[tuple[str, ...]] = ("InternVLForConditionalGeneration",)
    processors: ClassVar[tuple[str, ...]] = ("GotOcr2ImageProcessor",)
    resample: ClassVar[Image.Resampling] = Image.Resampling.BICUBIC

    @classmethod
    def of(cls, config: Any, processor: Mapping[str, Any]) -> InternVL:
        """See `Family.of`; tower and image processor must have the same tiles."""
        vision = config.vision_config
        check_decoder(config.text_config, ("qwen2", "qwen3", "llama"), BOUNDED_ROTATIONS)
        taken = config.vision_feature_layer, config.vision_feature_select_strategy
        if taken != (-1, "default"):
            raise ValueError(f"vision_feature_layer {taken[0]!r} and strategy {taken[1]!r}; supported: -1 and default")
        sides = {name: set(getattr(vision, name)) for name in ("image_size", "patch_size")}
        for name, side in sides.items():
            if len(side) != 1:
                raise ValueError(f"{name} {sorted(side)!r} in its vision_config, where squares are supported")
        (tile,), (patch,) = sides.values()
        ratio = config.downsample_ratio
        if ratio != 0.5 or tile % patch or tile // patch % 2:
            raise ValueError(
                f"image_size {tile}, patch_size {patch} and downsample_ratio {ratio!r}; supported: 0.5, and patches "
                "that divide a tile into an even number"
            )
        tokens = (tile // patch // 2) ** 2
        for name, said in {
            "image_seq_length in its processor": processor.get("image_seq_length", tokens),
            "image_seq_length in its config": config.image_seq_length,
        }.items():
            if said != tokens:
                raise ValueError(f"{name} {said!r}, and a tower that gives {tokens} a tile")
        if dict(processor["size"]) != {"height": tile, "width": tile}:
            raise ValueError(f"size {dict(processor['size'])!r} in its image processor, and tiles of {tile}")
        least, most = processor["min_patches"], processor["max_patches"]
        if not 1 <= least <= most <= MAX_TILES:
            raise ValueError(f"min_patches {least!r} and max_patches {most!r}; supported: 1 to {MAX_TILES}")
        return cls._checked(
            tile=tile,
            patch=patch,
            tile_tokens=tokens,
            least=least,
            most=most,
            mean=channels("image_mean", processor["image_mean"]),
            std=channels("image_std", processor["image_std"]),
        )

    @property
    def tile_patches(self) -> int:
        """The patches of a tile, and its class token."""
        return 1 + super().tile_patches

    def preprocess(self, image: Image.Image) -> Pixels:
        """Tiles (n, 3, tile, tile), row by row; after several tiles the whole image comes last."""
        grid, whole = self.grid(image.size), self.resize(image, (self.tile, self.tile))
        if grid == (0, 0):
            return Pixels(self.normalised(self.cut(whole)), grid)
        filled = self.resize(image, (grid[1] * self.tile, grid[0] * self.tile))
        return Pixels(self.normalised(np.concatenate([self.cut(filled), self.cut(whole)])), grid)

    def grid(self, size: Size) -> Grid:
        """Rows and columns of the tiles that are nearest to the proportions of `size`; (0, 0) for one tile.

        Of those that are equally near the larger ones are taken for a picture of more than half of their area.
        """
        if self.most == 1:
            return (0, 0)
        width, height = size
        ratio, area = width / height, width * height
        best, least = (1, 1), math.inf
        for cols, rows in arrangements(self.least, self.most):
            off = abs(ratio - cols / rows)
            if off < least or (off == least and area > 0.5 * self.tile * self.tile * cols * rows):
                best, least = (rows, cols), off
        return (0, 0) if best == (1, 1) else best

    def fitted(self, size: Size) -> Size:
        """One tile where there is one; the tiles and the thumbnail of several are both made of the whole picture."""
        return (self.tile, self.tile) if self.grid(size) == (0, 0) else size

    def is_settled(self, size: Size) -> bool:
        """Whether a picture of one tile is seen as one again, which it is not if several are the least."""
        return self.fitted(size) == size

    def takes(self, grid: Grid) -> bool:
        """Whether there is such an arrangement."""
        rows, cols = grid
        return grid == (0, 0) or (grid != (1, 1) and min(grid) >= 1 and self.least <= rows * cols <= self.most)

    def expand(self, grid: Grid, number: int) -> str:
        """All image tokens between two marks."""
        del number
        return f"{START}{IMAGE * self.tokens(grid)}{END}"

    @property
    def video(self) -> VideoMode:
        """Frames as single tiles, which are counted in words."""
        return InternVideo(self)

    def step(self, module: Any, index: int, rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """transformers' own layer, with tiles as the batch."""
        del index, beside, ops
        return module(self.by_tile(rows)).flatten(0, 1)

    def leave(self, modules: Sequence[Any], rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """The tower's norm, then two by two patches, without the class token, side by side, and their projection."""
        del beside, ops
        norm, projector = modules
        side = self.tile // self.patch
        patches = norm(self.by_tile(rows))[:, 1:].unflatten(1, (side // 2, 2, side // 2, 2))
        merged = patches.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(0, 2)
        return projector(merged)


@dataclass(frozen=True, slots=True)
class InternVideo:
    """How InternVL looks at videos: each frame in one tile, after its number."""

    family: InternVL
    together: int = 1

    def sample(self, footage: Footage, most: int) -> tuple[int, ...]:
        """The middles of so many parts of equal length."""
        count = min(FRAMES, most, footage.frames)
        step = footage.frames / count
        return tuple((step / 2 + np.arange(count) * step).astype(np.float32).astype(int).tolist())

    def looked(self, size: Size, frames: int) -> Size:
        """That of a tile."""
        del size, frames
        return self.family.tile, self.family.tile

    def fit(self, frame: Image.Image, frames: int) -> Image.Image:
        """Resized by the family's filter."""
        return self.family.resize(frame, self.looked(frame.size, frames))

    def words(self, times: Sequence[float], seconds: float) -> tuple[str, ...]:
        """Before each frame its number, from 1; the template ends each line."""
        del seconds
        return (*(f"Frame{index}: " for index in range(1, len(times) + 1)), "")

    def clock(self, frames: int, seconds: float) -> None:
        """Each stands by itself."""
        del frames, seconds


@cache
def arrangements(least: int, most: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) of `least` to `most` tiles, those of few tiles first."""
    sides = range(1, most + 1)
    fitting = ((cols, rows) for cols in sides for rows in sides if least <= cols * rows <= most)
    return tuple(sorted(fitting, key=lambda one: one[0] * one[1]))
