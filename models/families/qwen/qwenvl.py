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
from cutline.models.families.family import Arrays, Count, Family, Grid, Spread, channels, check_whole_heads
from cutline.models.families.parts import Ops
from cutline.models.families.positions import Positions
from cutline.models.images import MAX_ASPECT, MAX_PIXELS, Pixels, Size, normalised, size_fault
from cutline.models.tools import HERMES, ToolSyntax

IMAGE, START, END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

Area = Annotated[int, msgspec.Meta(ge=1, le=MAX_PIXELS)]  # pixels; larger images are refused anyway


class QwenVL(Family, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Patches of `patch` x `patch` pixels, repeated over `frames`; `merge` x `merge` patches are one image token.

    An image is resized to between `min_pixels` and `max_pixels`. The tower's rotary embedding has base `tower_theta`
    over heads of `tower_head`. The decoder's has base `theta`, with `sections` of the frequencies for time, height and
    width. A grid counts patches.
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

    image_marker: ClassVar[str] = IMAGE
    markers: ClassVar[tuple[str, ...]] = (IMAGE, START, END)
    named: ClassVar[Mapping[str, str]] = {"image_token": IMAGE}
    processors: ClassVar[tuple[str, ...]] = ("Qwen2VLImageProcessor",)
    resample: ClassVar[Image.Resampling] = Image.Resampling.BICUBIC
    tools: ClassVar[ToolSyntax | None] = HERMES
    scales: ClassVar[bool] = True
    apart: ClassVar[frozenset[str]] = frozenset({"tower_head", "tower_theta", "theta", "sections"})
    axes: ClassVar[int] = 3
    layer_types: ClassVar[frozenset[str]] = frozenset({"full_attention"})
    whole_heads: ClassVar[bool] = True  # whether they are rotated as a whole

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
        sections = _sections(text)  # which first looks at the kind of rotation
        sides = ("patch_size", "spatial_merge_size", "temporal_patch_size")
        patch, merge, frames = (one_number(vision, name) for name in sides)
        width = cls.tower_sizes(config).width
        head, rest = divmod(width, vision.num_heads)
        if rest or head % 4:
            raise ValueError(f"num_heads {vision.num_heads} in its vision_config, which do not divide {width}")
        for name, expected in {"patch_size": patch, "merge_size": merge, "temporal_patch_size": frames}.items():
            if processor[name] != expected:
                raise ValueError(f"{name} {processor[name]!r} in its image processor, and {expected} in its tower")
        size = processor["size"]
        least, most = size.get("shortest_edge"), size.get("longest_edge")
        if not (isinstance(least, int) and isinstance(most, int) and 1 <= least <= most <= MAX_PIXELS):
            raise ValueError(f"size {dict(size)!r} (min_pixels, max_pixels), where up to {MAX_PIXELS} are supported")
        return {
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

    def preprocess(self, image: Image.Image) -> Pixels:
        """Patches (rows * cols, 3 * frames * patch * patch), grouped by image token."""
        fitted = self.resize(image, self.fitted(image.size))
        pixels = normalised(np.asarray(fitted).transpose(2, 0, 1)[None], self.mean, self.std)[0]
        rows, cols = grid = self.grid(image.size)
        sides = (rows // self.merge, self.merge, self.patch, cols // self.merge, self.merge, self.patch)
        patches = pixels.reshape(3, *sides).transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
        repeated = np.repeat(patches, self.frames, axis=5)
        return Pixels(repeated.reshape(rows * cols, -1), grid)

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

    def expand(self, grid: Grid) -> str:
        """The marker, repeated; the template itself puts start and end around it."""
        return IMAGE * self.tokens(grid)

    def positions(self, image_tokens: NDArray[np.bool_], grids: Sequence[Grid]) -> Positions:
        """Text counts up on all axes together; an image has one time, and counts its rows and columns."""
        held, made = image_tokens.sum(), sum(map(self.tokens, grids))
        if held != made:
            raise InputError(f"the prompt holds {held} image tokens, its images have {made}; this model takes them all")
        parts, at, following = [], 0, 0
        for grid in grids:
            begins = at + int(image_tokens[at:].argmax())
            rows, cols = grid[0] // self.merge, grid[1] // self.merge
            if not image_tokens[begins : begins + rows * cols].all():
                raise InputError("the image tokens of an image do not stand together")
            parts.append(_count(following, begins - at))
            following += begins - at
            parts.append(following + np.indices((1, rows, cols)).reshape(3, -1))
            at = begins + rows * cols
            following += max(rows, cols)
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

    def token_types(self, image_tokens: NDArray[np.bool_]) -> Arrays:
        """1 for image tokens, of which the positions are worked out."""
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


def one_number(config: Any, name: str) -> int:
    """The setting `name` of a tower's `config`. Raises ValueError unless it is one number."""
    value = getattr(config, name)
    if not isinstance(value, int):
        raise ValueError(f"{name} {value!r} in its vision_config, where one number is supported")
    return value


def _sections(text: Any) -> tuple[int, ...]:
    """How many frequencies belong to each axis. Raises ValueError."""
    rope = text.rope_parameters
    if (kind := rope["rope_type"]) != "default":
        raise ValueError(f"rope_type {kind!r} in its rope_scaling, where 'default' or 'mrope' is supported")
    sections = rope.get("mrope_section")
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    half = int(head * rope.get("partial_rotary_factor", 1.0)) // 2
    if not isinstance(sections, list | tuple) or len(sections) != 3 or sum(sections) != half:
        raise ValueError(
            f"mrope_section {sections!r} in its rope_scaling, where three numbers, {half} in all, are supported"
        )
    return tuple(sections)


def _count(first: int, length: int) -> NDArray[np.int64]:
    """Positions (3, length) of text."""
    return np.tile(np.arange(first, first + length), (3, 1))


def frequencies(theta: float, count: int) -> NDArray[np.float32]:
    """Frequencies of a rotary embedding, rounded in the same order as in transformers."""
    exponents = np.arange(count, dtype=np.float32) / np.float32(count)
    return np.asarray(1 / np.power(np.float32(theta), exponents), np.float32)
