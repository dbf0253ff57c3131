"""SmolVLM, and Idefics3 before it: square tiles, pixel shuffle, a Llama decoder.

The arithmetic is that of SmolVLM's image processor (transformers, PIL backend): fit the longest edge, stretch to whole
tiles, rescale, normalise. The number of tiles depends on an image's shape, not on its size in pixels; it is at most
`grid_limit` squared plus one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
from PIL import Image

from cutline.models.families.checks import channels, check_decoder
from cutline.models.families.family import Arrays, Count, Grid, Spread
from cutline.models.families.parts import Ops, Parts
from cutline.models.families.tiles import TileFamily
from cutline.models.images import Pixels, Size
from cutline.models.video import Footage, VideoMode

IMAGE, FAKE, GLOBAL = "<image>", "<fake_token_around_image>", "<global-img>"
MAX_LONGEST_EDGE = 4096  # transformers scales a larger one down to it, and rounds the other edge differently


SKIPPED = 1.0  # seconds at each end of a long video
_ONES = (
    *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen"),
    *("fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


class SmolSampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of a video so many frames a second (`rate`), `most` at most, with their longest edge first at `longest_edge`."""

    rate: Spread
    most: Annotated[int, msgspec.Meta(ge=1, le=99)]
    longest_edge: Annotated[int, msgspec.Meta(ge=1, le=MAX_LONGEST_EDGE)]


class SmolVLM(TileFamily, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="smolvlm"):
    """An image's longest edge is first resized to `longest_edge`, at most 4096 as in every published SmolVLM.

    `split` says whether it is then cut into tiles. Models that learnt to look at videos have a `sampling` of them.
    """

    longest_edge: Count
    split: bool
    sampling: SmolSampling | msgspec.UnsetType = msgspec.UNSET  # what is not set is not in a manifest

    apart: ClassVar[frozenset[str]] = TileFamily.apart | {"sampling"}

    kinds: ClassVar[tuple[str, ...]] = ("smolvlm", "idefics3")  # the second is the older name
    parts: ClassVar[Parts] = Parts(
        image=("vision_model.embeddings",),
        tower="vision_model.encoder.layers",
        connector=("vision_model.post_layernorm", "connector"),
        decoder="text_model",
    )
    image_marker: ClassVar[str] = IMAGE
    markers: ClassVar[tuple[str, ...]] = (IMAGE, FAKE)  # GLOBAL is plain text in larger and older models
    named: ClassVar[Mapping[str, str]] = {"image_token": IMAGE, "fake_image_token": FAKE, "global_image_token": GLOBAL}
    answering: ClassVar[tuple[str, ...]] = ("SmolVLMForConditionalGeneration", "Idefics3ForConditionalGeneration")
    processors: ClassVar[tuple[str, ...]] = ("SmolVLMImageProcessor", "Idefics3ImageProcessor")
    resample: ClassVar[Image.Resampling] = Image.Resampling.LANCZOS

    @classmethod
    def of(cls, config: Any, processor: Mapping[str, Any]) -> SmolVLM:
        """See `Family.of`; tower and image processor must have the same tiles."""
        vision, text = config.vision_config, config.text_config
        check_decoder(text, ("llama",))
        # The tower ignores pixels after the last whole patch: of 384 pixels, 27 patches of 14 leave 6.
        tile, patch, shuffled = vision.image_size, vision.patch_size, config.scale_factor
        if not isinstance(tile, int) or not isinstance(patch, int) or tile // patch % shuffled:
            raise ValueError(
                f"image_size {tile!r}, patch_size {patch!r} and scale_factor {shuffled!r}, not one of another"
            )
        if (largest := processor["max_image_size"].get("longest_edge")) != tile:
            raise ValueError(f"max_image_size {largest!r} in its image processor, and a tower whose tiles are {tile}")
        tokens = (tile // patch // shuffled) ** 2
        if (said := processor.get("image_seq_len", tokens)) != tokens:
            raise ValueError(f"image_seq_len {said!r} in its processor, and a tower that gives {tokens} a tile")
        longest = processor["size"].get("longest_edge")
        if not isinstance(longest, int) or not 1 <= longest <= MAX_LONGEST_EDGE:
            raise ValueError(
                f"size {dict(processor['size'])!r}, where a longest_edge of 1 to {MAX_LONGEST_EDGE} is supported"
            )
        return cls._checked(
            tile=tile,
            patch=patch,
            tile_tokens=tokens,
            longest_edge=longest,
            split=processor["do_image_splitting"],
            **_sampling(processor.get("video_sampling")),
            mean=channels("image_mean", processor["image_mean"]),
            std=channels("image_std", processor["image_std"]),
        )

    def preprocess(self, image: Image.Image) -> Pixels:
        """Tiles (n, 3, tile, tile), row by row; after several tiles the whole image comes last."""
        first, second = self._sizes(image.size)
        stretched = self.resize(self.resize(image, first), second)
        if second == (self.tile, self.tile):
            return Pixels(self.normalised(self.cut(stretched)), (0, 0))
        whole = self.resize(stretched, (self.tile, self.tile))
        tiles = np.concatenate([self.cut(stretched), self.cut(whole)])
        return Pixels(self.normalised(tiles), self.grid(image.size))

    def grid(self, size: Size) -> Grid:
        """Rows and columns of tiles; (0, 0) for an image that is not cut."""
        _, (width, height) = self._sizes(size)
        rows, cols = height // self.tile, width // self.tile
        return (0, 0) if rows == cols == 1 else (rows, cols)

    @property
    def grid_limit(self) -> int:
        """The most rows, and the most columns, of tiles; 0 if images are never cut."""
        return math.ceil(_even(self.longest_edge) / self.tile) if self.split else 0

    def fitted(self, size: Size) -> Size:
        """`size` with its longest edge at `longest_edge`, and the other one in proportion and even."""
        width, height = size
        ratio = width / height  # the divisions and products are those of the original, as their rounding matters
        if width >= height:
            return self.longest_edge, max(_even(int(self.longest_edge / ratio)), 1)
        return max(_even(int(self.longest_edge * ratio)), 1), self.longest_edge

    def is_settled(self, size: Size) -> bool:
        """False for a square image and an odd `longest_edge`, which a second fitting makes even."""
        return self.fitted(size) == size

    def takes(self, grid: Grid) -> bool:
        """Whether `grid` is within the limit on both sides."""
        return grid == (0, 0) or all(1 <= side <= self.grid_limit for side in grid)

    def expand(self, grid: Grid, number: int) -> str:
        """One line for each row of tiles, an empty line, then the whole image; only the latter for (0, 0)."""
        del number
        rows, cols = grid
        tile = IMAGE * self.tile_tokens
        whole = f"{FAKE}{GLOBAL}{tile}{FAKE}"
        if rows == cols == 0:
            return whole
        lines = (
            "".join(f"{FAKE}<row_{row}_col_{col}>{tile}" for col in range(1, cols + 1)) for row in range(1, rows + 1)
        )
        return "".join(f"{line}\n" for line in lines) + "\n" + whole

    @property
    def video(self) -> VideoMode | None:
        """Frames as single tiles, with the time of each, where the model has a `sampling`."""
        return SmolVideo(self, self.sampling) if isinstance(self.sampling, SmolSampling) else None

    def enter(self, modules: Sequence[Any], pixels: Any, beside: dict[str, Any]) -> Any:
        """Rows of whole tiles (n, 3, tile, tile), which need no padding mask: patch positions are fixed."""
        del beside
        (embeddings,) = modules
        patches = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        return (patches + embeddings.position_embedding.weight).flatten(0, 1)

    def leave(self, modules: Sequence[Any], rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """The last norm of the tower, then pixel shuffle and projection."""
        del beside, ops
        norm, connector = modules
        return connector(norm(self.by_tile(rows))).flatten(0, 1)

    def as_given(self, images: Sequence[Pixels]) -> Arrays:
        """All tiles of a batch of one."""
        return {name: array[None] for name, array in super().as_given(images).items()}

    def _sizes(self, size: Size) -> tuple[Size, Size]:
        """The two sizes to which `preprocess` resizes: the fitted one, then one of whole tiles."""
        first = self.fitted(size)
        return first, _whole_tiles(first, self.tile) if self.split else (self.tile, self.tile)


@dataclass(frozen=True, slots=True)
class SmolVideo:
    """How SmolVLM2 looks at videos, as its own processor has it: each frame in one tile, after its time in words."""

    family: SmolVLM
    sampling: SmolSampling
    together: int = 1

    def sample(self, footage: Footage, most: int) -> tuple[int, ...]:
        """So many a second, evenly spread; of a long video without its first and its last second."""
        most = min(most, self.sampling.most)
        count = max(1, min(round(self.sampling.rate * footage.seconds), most))
        first, last = 0, footage.frames - 1
        if footage.seconds - 2 * SKIPPED > most * self.sampling.rate:
            first = int(SKIPPED * footage.rate)
            last = min(int(footage.frames - SKIPPED * footage.rate), last)
        if first >= last:
            first, last = 0, footage.frames - 1
        return tuple(np.unique(np.linspace(first, last, count, dtype=int)).tolist())

    def looked(self, size: Size, frames: int) -> Size:
        """That of a tile."""
        del size, frames
        return self.family.tile, self.family.tile

    def fit(self, frame: Image.Image, frames: int) -> Image.Image:
        """As a picture that is not cut, from a size of its own."""
        unsplit = msgspec.structs.replace(self.family, split=False, longest_edge=self.sampling.longest_edge)
        return unsplit.resize(unsplit.resize(frame, unsplit.fitted(frame.size)), self.looked(frame.size, frames))

    def clock(self, frames: int, seconds: float) -> None:
        """Each stands by itself."""
        del frames, seconds

    def words(self, times: Sequence[float], seconds: float) -> tuple[str, ...]:
        """What there is, and before each frame when that was."""
        minutes, rest = divmod(int(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        told = f"{_worded(len(times))} frames from a {hours}:{minutes:02}:{rest:02} [H:MM:SS] video.\n"
        marks = [f"\nFrame from {int(at // 60):02}:{int(at % 60):02}:" for at in times]
        marks[0] = f"You are provided the following series of {told}{marks[0]}"
        return (*marks, "\n\n")


def _worded(number: int) -> str:
    """A number from 1 to 99 in words."""
    tens, ones = divmod(number, 10)
    if number < 20:
        return _ONES[number - 1]
    return _TENS[tens - 2] + (f"-{_ONES[ones - 1]}" if ones else "")


def _sampling(said: Any) -> dict[str, Any]:
    """The field of a `video_sampling` of an image processor; none where it has none. Raises ValueError."""
    if said is None:
        return {}
    try:
        fields = {"rate": said["fps"], "most": said["max_frames"], "longest_edge": said["video_size"]["longest_edge"]}
        return {"sampling": msgspec.to_builtins(msgspec.convert(fields, SmolSampling))}
    except (KeyError, TypeError, msgspec.ValidationError):
        raise ValueError(
            f"video_sampling {said!r} in its image processor; supported: fps, max_frames and video_size.longest_edge"
        ) from None


def _whole_tiles(size: Size, tile: int) -> Size:
    """`size` with each edge raised to a multiple of `tile`; the shorter edge follows from the longer one."""
    width, height = size
    ratio = width / height
    if width >= height:
        width = _multiple(width, tile)
        return width, _multiple(int(width / ratio), tile)
    height = _multiple(height, tile)
    return _multiple(int(height * ratio), tile), height


def _even(number: int) -> int:
    return number + number % 2


def _multiple(number: int, of: int) -> int:
    return math.ceil(number / of) * of
