"""What the vision-language models of Qwen share: images in their own proportions, positions on three axes.

The arithmetic is that of Qwen2-VL's image processor (transformers, PIL backend): resize both sides to a multiple of an
image token's side, keep the area between two limits, rescale, normalise, and group the patches that the connector
merges. In the tower all patches of an image attend to each other; Qwen2.5-VL has windows besides.
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

from cutline.errors import InputError
from cutline.models.families.checks import channels, check_whole_heads
from cutline.models.families.family import Arrays, Count, Family, Grid, Spread
from cutline.models.families.parts import Ops
from cutline.models.families.positions import Positions, frequencies
from cutline.models.families.qwen.settings import one_number, picture_area, read_sampling, rotary_sections
from cutline.models.families.qwen.video import USUAL, JoinedVideo, QwenSampling
from cutline.models.images import MAX_ASPECT, MAX_PIXELS, Pixels, Size, normalised, size_fault
from cutline.models.tools import HERMES, ToolSyntax
from cutline.models.video import VideoMode

IMAGE, START, END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

Area = Annotated[int, msgspec.Meta(ge=1, le=MAX_PIXELS)]  # pixels; larger images are refused anyway


class QwenVL(Family, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Patches of `patch` x `patch` pixels, repeated over `frames`; `merge` x `merge` patches are one image token.

    An image is resized to between `min_pixels` and `max_pixels`. The tower's rotary embedding has base `tower_theta`
    over heads of `tower_head`. The decoder's has base `theta`, with `sections` of the frequencies for time, height and
    width. A grid counts patches. With a `sampling` they look at videos.
    """

    patch: Count
    merge: Count
    frames: Count
    tower_head: Count
    tower_theta: Spread
    min_pixels: Area
    max_pixels: Area
    theta: Spread
    sections: tuple[Count, Count, Count]
    mean: tuple[float, float, float] = MEAN
    std: tuple[Spread, Spread, Spread] = STD
    sampling: QwenSampling | msgspec.UnsetType = msgspec.UNSET  # what is not set is not in a manifest

    image_marker: ClassVar[str] = IMAGE
    markers: ClassVar[tuple[str, ...]] = (IMAGE, START, END)
    named: ClassVar[Mapping[str, str]] = {"image_token": IMAGE}
    processors: ClassVar[tuple[str, ...]] = ("Qwen2VLImageProcessor",)
    resample: ClassVar[Image.Resampling] = Image.Resampling.BICUBIC
    tools: ClassVar[ToolSyntax | None] = HERMES
    scales: ClassVar[bool] = True
    apart: ClassVar[frozenset[str]] = frozenset({"tower_head", "tower_theta", "theta", "sections", "sampling"})
    axes: ClassVar[int] = 3
    layer_types: ClassVar[frozenset[str]] = frozenset({"full_attention"})
    whole_heads: ClassVar[bool] = True  # whether they are rotated as a whole
    video_processor: ClassVar[str] = "Qwen2VLVideoProcessor"  # transformers' one that equals `video`
    usual: ClassVar[QwenSampling | None] = USUAL  # the sampling of a folder that says nothing of videos

    @classmethod
    def read(cls, config: Any, processor: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that all these families have; tower and image processor must have the same patches.

        Raises ValueError as `of` does.
        """
        vision, text = config.vision_config, config.text_config
        if others := set(getattr(text, "layer_types", None) or ()) - cls.layer_types:
            taken = " and ".join(map(repr, sorted(cls.layer_types)))
            raise ValueError(f"layer_types {min(others)!r} (use_sliding_window), where {taken} is supported")
        if cls.whole_heads:
            check_whole_heads(text)
        sections = rotary_sections(text)  # which first looks at the kind of rotation
        sides = ("patch_size", "spatial_merge_size", "temporal_patch_size")
        patch, merge, frames = (one_number(vision, name) for name in sides)
        width = cls.tower_sizes(config).width
        head, rest = divmod(width, vision.num_heads)
        if rest or head % 4:
            raise ValueError(f"num_heads {vision.num_heads} in its vision_config, which do not divide {width}")
        for name, expected in {"patch_size": patch, "merge_size": merge, "temporal_patch_size": frames}.items():
            if processor[name] != expected:
                raise ValueError(f"{name} {processor[name]!r} in its image processor, and {expected} in its tower")
        least, most = picture_area(processor["size"])
        fields = {
            "patch": patch,
            "merge": merge,
            "frames": frames,
            "tower_head": head,
            "tower_theta": vision.rope_parameters["rope_theta"],
            "min_pixels": least,
            "max_pixels": most,
            "theta": text.rope_parameters["rope_theta"],
            "sections": sections,
            "mean": channels("image_mean", processor["image_mean"]),
            "std": channels("image_std", processor["image_std"]),
        }
        said = processor.get("video_processor")
        sampling = cls.usual if said is None else read_sampling(said, cls.video_processor, fields)
        return fields if sampling is None else fields | {"sampling": msgspec.to_builtins(sampling)}

    def preprocess(self, image: Image.Image) -> Pixels:
        """Patches (rows * cols, 3 * frames * patch * patch), grouped by image token."""
        fitted = self.resize(image, self.fitted(image.size))
        pixels = normalised(np.asarray(fitted).transpose(2, 0, 1)[None], self.mean, self.std)
        return self._patches(np.broadcast_to(pixels, (self.frames, *pixels.shape[1:])))

    @property
    def video(self) -> VideoMode | None:
        """All pieces between the marks of one image, where there is a `sampling`."""
        return JoinedVideo(self, self.sampling) if isinstance(self.sampling, QwenSampling) else None

    def piece_grid(self, size: Size) -> Grid | None:
        """Rows and columns of the patches of each of the strip's frames."""
        width, height = size
        if height % (self.frames * self.factor) or width % self.factor:
            return None
        grid = height // self.frames // self.patch, width // self.patch
        return grid if self.takes(grid) else None

    def piece_pixels(self, strip: Image.Image) -> Pixels:
        """As `preprocess`, with another frame each time where that has the same picture again."""
        frames = np.asarray(strip).reshape(self.frames, -1, strip.width, 3).transpose(0, 3, 1, 2)
        return self._patches(normalised(frames, self.mean, self.std))

    def _patches(self, frames: NDArray[np.float32]) -> Pixels:
        """The patches of `frames` (n, 3, height, width), each of which spans them all."""
        rows, cols = grid = frames.shape[2] // self.patch, frames.shape[3] // self.patch
        sides = (rows // self.merge, self.merge, self.patch, cols // self.merge, self.merge, self.patch)
        patches = frames.reshape(self.frames, 3, *sides).transpose(2, 5, 3, 6, 1, 0, 4, 7)
        return Pixels(patches.reshape(rows * cols, -1), grid)

    @property
    def factor(self) -> int:
        """Pixels along a side of an image token."""
        return self.patch * self.merge

    def grid(self, size: Size) -> Grid:
        """Rows and columns of patches."""
        width, height = self.fitted(size)
        return height // self.patch, width // self.patch

    def fitted(self, size: Size) -> Size:
        """`size` with both sides a multiple of `factor`, and the proportions nearly kept."""
        width, height = size
        across, down = (round(side / self.factor) * self.factor for side in size)
        if across * down > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            across, down = (max(self.factor, self._multiple(math.floor, side / shrink)) for side in size)
        elif across * down < self.min_pixels:
            stretch = math.sqrt(self.min_pixels / (height * width))
            across, down = (self._multiple(math.ceil, side * stretch) for side in size)
        return across, down

    def within(self, size: Size, tokens: int) -> Size | None:
        """See `Family.within`: whole image tokens, which fitting leaves as they are."""
        if self.tokens(self.grid(size)) <= tokens:
            return size
        wanted = size[0] / size[1]
        across = math.sqrt(tokens * wanted)  # of as many tokens as there may be, in the proportions of the image
        most = [side // self.factor for side in self.fitted(size)]
        # About as many along one side, and along the other as many as there is room for, and as proportions allow.
        rows, columns = (
            [
                (count, min(tokens // count, most[1 - axis], count * MAX_ASPECT))
                for count in counts
                if count <= most[axis]
            ]
            for axis, counts in enumerate(
                {max(1, math.floor(one)), math.ceil(one)} for one in (across, across / wanted)
            )
        )
        sizes = [(a * self.factor, b * self.factor) for a, b in [*rows, *((b, a) for a, b in columns)] if a and b]
        fitting = [one for one in sizes if self.fitted(one) == one and size_fault(one) is None]

        def worth(one: Size) -> tuple[float, Size]:
            """Its area, less what its proportions are off."""
            off = one[0] / one[1] / wanted
            return math.prod(one) * min(off, 1 / off), one

        return max(fitting, key=worth, default=None)

    def is_settled(self, size: Size) -> bool:
        """False only if the limits of the area are too close to each other, or too small for thin images."""
        return self.fitted(size) == size

    @property
    def largest(self) -> int:
        """An upper bound of the pixels after resizing. Rounding may exceed a small `max_pixels`."""
        least, factor = self.min_pixels, self.factor
        sides = math.sqrt(least) * (math.sqrt(MAX_ASPECT) + 1 / math.sqrt(MAX_ASPECT))  # both sides of the thinnest
        stretched = math.ceil(least + factor * sides + factor**2)
        thin = math.ceil(factor * max(factor, math.sqrt(MAX_ASPECT * self.max_pixels)))
        return max(self.max_pixels, stretched, thin)

    def takes(self, grid: Grid) -> bool:
        """Whether `grid` has whole image tokens and is within the limits of the area."""
        rows, cols = grid
        whole = rows % self.merge == cols % self.merge == 0 and min(rows, cols) >= self.merge
        return whole and rows * cols * self.patch**2 <= self.largest

    def tokens(self, grid: Grid) -> int:
        """One image token for each `merge` x `merge` patches."""
        return self.patches(grid) // self.merge**2

    def patches(self, grid: Grid) -> int:
        """The area of the grid."""
        return grid[0] * grid[1]

    def expand(self, grid: Grid, number: int) -> str:
        """The marker, repeated; the template itself puts start and end around it."""
        del number
        return IMAGE * self.tokens(grid)

    def positions(self, image_tokens: NDArray[np.bool_], grids: Sequence[Grid], times: Sequence[int] = ()) -> Positions:
        """Text counts up on all axes together; an image has one time, and counts its rows and columns.

        What stands right behind an image is a later piece of the same video: its rows and columns are the same again.
        """
        held, made = image_tokens.sum(), sum(map(self.tokens, grids))
        if held != made:
            raise InputError(f"the prompt holds {held} image tokens, its images have {made}; this model takes them all")
        parts, at, first, following = list[NDArray[np.int64]](), 0, 0, 0
        for grid, time in zip(grids, times or (0,) * len(grids), strict=True):
            begins = at + int(image_tokens[at:].argmax())
            rows, cols = grid[0] // self.merge, grid[1] // self.merge
            if not image_tokens[begins : begins + rows * cols].all():
                raise InputError("the image tokens of an image do not stand together")
            if begins > at or not parts:
                parts.append(_count(following, begins - at))
                first = following + begins - at
            places = np.indices((1, rows, cols)).reshape(3, -1)
            parts.append(first + places + np.array([[time], [0], [0]]))
            at = begins + rows * cols
            following = first + max(rows, cols)
        parts.append(_count(following, len(image_tokens) - at))
        return Positions(np.hstack(parts))

    @property
    def frequency_axes(self) -> NDArray[np.int64]:
        """The axis (n,) whose position turns each frequency: time's first, then height's, then width's."""
        return np.repeat(np.arange(3), self.sections)

    def rotations(self, positions: NDArray[np.int64]) -> Arrays:
        """`cos` and `sin` (n, half of what is rotated of a head), an axis for each section of the frequencies."""
        half = sum(self.sections)
        angles = positions[self.frequency_axes].T.astype(np.float32) * frequencies(self.theta, half)
        return {"cos": np.cos(angles), "sin": np.sin(angles)}

    def runs(self, rows: Any, grids: Sequence[Grid]) -> list[tuple[Any, Arrays]]:
        """One piece for each image, as images do not attend to each other."""
        counts = [self.patches(grid) for grid in grids]
        ends = list(accumulate(counts))
        pieces = (rows[end - count : end] for end, count in zip(ends, counts, strict=True))
        return [(piece, self.beside(grid)) for piece, grid in zip(pieces, grids, strict=True)]

    def beside(self, grid: Grid) -> Arrays:
        """The tower's other inputs for one image: `cos`, `sin` (n, tower_head) rotate each row.

        The first half of the sines is negated.
        """
        return self.turns(self.places(grid))

    def turns(self, places: NDArray[np.int64]) -> Arrays:
        """`cos` and `sin` (n, tower_head) of rows whose patches are in these `places` (n, 2)."""
        quarter = self.tower_head // 4
        angles = (places[:, :, None].astype(np.float32) * frequencies(self.tower_theta, quarter)).reshape(
            -1, 2 * quarter
        )
        sin = np.sin(angles)
        return {"cos": np.tile(np.cos(angles), 2), "sin": np.hstack([-sin, sin])}

    def places(self, grid: Grid) -> NDArray[np.int64]:
        """Row and column (n, 2) of each patch, in the order of `preprocess`."""
        rows, cols = grid
        sides = (2, rows // self.merge, self.merge, cols // self.merge, self.merge)
        return np.indices(grid).reshape(sides).transpose(1, 3, 2, 4, 0).reshape(-1, 2)

    def enter(self, modules: Sequence[Any], pixels: Any, beside: dict[str, Any]) -> Any:
        """The embedded patches."""
        del beside
        (embedding,) = modules
        return embedded(embedding, pixels)

    def step(self, module: Any, index: int, rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """As transformers' layer; all rows attend to each other."""
        del index
        query, key, value = self.attended(module.attn, module.norm1(rows), beside)
        attended = ops.attend(query[None], key[None], value[None], scale=module.attn.scaling)[0]
        rows = rows + module.attn.proj(attended.transpose(0, 1).flatten(1))
        return rows + module.mlp(module.norm2(rows))

    def leave(self, modules: Sequence[Any], rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """The patches merged into image tokens."""
        del beside, ops
        (merger,) = modules
        return merger(rows)

    def as_given(self, images: Sequence[Pixels]) -> Arrays:
        """All patches, and the grids with a time axis of 1."""
        if not images:
            return {}
        grids = np.array([(1, *image.grid) for image in images])
        return {"pixel_values": np.concatenate([image.values for image in images]), "image_grid_thw": grids}

    def token_types(self, image_tokens: NDArray[np.bool_], grids: Sequence[Grid]) -> Arrays:
        """1 for image tokens, of which the positions are worked out."""
        del grids
        return {"mm_token_type_ids": image_tokens.astype(np.int32)}

    def example(self, seed: int) -> Pixels:
        """Two by three image tokens."""
        return self.noise(seed, (2 * self.merge, 3 * self.merge))

    def noise(self, seed: int, grid: Grid) -> Pixels:
        """Noise as the pixels of an image with this `grid`."""
        values = np.random.default_rng(seed).uniform(-1, 1, (math.prod(grid), 3 * self.frames * self.patch**2))
        return Pixels(values.astype(np.float32), grid)

    def attended(self, attention: Any, rows: Any, beside: dict[str, Any]) -> Any:
        """Queries, keys and values (3, heads, n, tower_head) of `rows`, the first two rotated."""
        split = attention.qkv(rows).unflatten(1, (3, attention.num_heads, self.tower_head))
        query, key, value = split.transpose(0, 2).unbind(1)
        query, key = (self._turned(of, beside).type_as(of) for of in (query, key))
        return query, key, value

    def _turned(self, heads: Any, beside: dict[str, Any]) -> Any:
        """The `heads` (n, tower_head) rotated, in float32 as transformers does it."""
        full = heads.float()
        return full * beside["cos"] + full.roll(self.tower_head // 2, -1) * beside["sin"]

    def _multiple(self, rounded: Any, side: float) -> int:
        return int(rounded(side / self.factor)) * self.factor


def embedded(embedding: Any, pixels: Any) -> Any:
    """The patches `pixels` by transformers' `embedding`, a convolution over exactly one patch."""
    weight, bias = embedding.proj.weight.flatten(1), embedding.proj.bias
    rows = pixels @ weight.transpose(0, 1)
    return rows if bias is None else rows + bias


def _count(first: int, length: int) -> NDArray[np.int64]:
    """Positions (3, length) of text."""
    return np.tile(np.arange(first, first + length), (3, 1))
