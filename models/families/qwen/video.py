"""How the models of Qwen look at videos: frames in pairs, which a patch spans, by the rules of their own processors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
from PIL import Image

from cutline.models.families.family import Count, Spread
from cutline.models.images import Size
from cutline.models.video import Footage

if TYPE_CHECKING:
    from cutline.models.families.qwen.qwenvl import QwenVL


class QwenSampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of a video so many frames a second (`rate`), from `least` to `most`.

    The limits of pixels are those of each frame; of all frames together with Qwen3-VL.
    """

    least_pixels: Count
    most_pixels: Annotated[int, msgspec.Meta(ge=1, le=10**9)]
    rate: Spread = 2.0
    least: Count = 4
    most: Count = 768


# Of folders that say nothing of videos: those of transformers' Qwen2VLVideoProcessor.
USUAL = QwenSampling(least_pixels=128 * 28 * 28, most_pixels=768 * 28 * 28)


@dataclass(frozen=True, slots=True)
class JoinedVideo:
    """How Qwen2-VL and Qwen2.5-VL look at videos: all pairs of frames between the marks of one image.

    Time counts a position for each pair, or `pace` positions a second.
    """

    family: QwenVL
    sampling: QwenSampling
    pace: float | None = None

    @property
    def together(self) -> int:
        """As many as a patch spans."""
        return self.family.frames

    def sample(self, footage: Footage, most: int) -> tuple[int, ...]:
        """So many a second, within the limits and a multiple of `together`, evenly spread from the first on."""
        together, total = self.together, footage.frames
        highest = min(self.sampling.most, most, total) // together * together
        asked = min(max(total / footage.rate * self.sampling.rate, self.sampling.least), highest)
        count = int(asked // together * together)
        if count == 0:  # of one frame, or where there is room for one alone, a pair is made
            return (0,)
        places = (np.arange(count) * (total / count)).astype(np.float32)
        return tuple(places.astype(int).tolist())

    def looked(self, size: Size, frames: int) -> Size:
        """As a picture, with limits of its own."""
        del frames
        limits = {"min_pixels": self.sampling.least_pixels, "max_pixels": self.sampling.most_pixels}
        return msgspec.structs.replace(self.family, **limits).fitted(size)

    def fit(self, frame: Image.Image, frames: int) -> Image.Image:
        """Resized by the family's filter."""
        return self.family.resize(frame, self.looked(frame.size, frames))

    def words(self, times: Sequence[float], seconds: float) -> tuple[str, ...]:
        """None."""
        del seconds
        return ("",) * (math.ceil(len(times) / self.together) + 1)

    def clock(self, frames: int, seconds: float) -> tuple[int, ...]:
        """Positions, in whole ones; with a `pace` multiplied and cut in float32 as there."""
        pieces = math.ceil(frames / self.together)
        if self.pace is None:
            return tuple(range(pieces))
        interval = np.float32(self.pace) * np.float32(self.together / (frames / seconds) if seconds else 0.0)
        return tuple((np.arange(pieces, dtype=np.float32) * interval).astype(int).tolist())


@dataclass(frozen=True, slots=True)
class TimedVideo:
    """How Qwen3-VL looks at videos: each pair of frames as an image of its own, after its time in seconds."""

    family: QwenVL
    sampling: QwenSampling

    @property
    def together(self) -> int:
        """As many as a patch spans."""
        return self.family.frames

    def sample(self, footage: Footage, most: int) -> tuple[int, ...]:
        """So many a second, within the limits, evenly spread from the first to the last."""
        asked = int(footage.frames / footage.rate * self.sampling.rate)
        count = min(max(asked, self.sampling.least), self.sampling.most, most, footage.frames)
        return tuple(np.linspace(0, footage.frames - 1, count).round().astype(int).tolist())

    def looked(self, size: Size, frames: int) -> Size:
        """Both sides multiples of an image token's, with the pixels of all frames within the limits."""
        width, height = size
        factor, together = self.family.factor, self.together
        frames = max(frames, together)
        if min(size) < factor:
            scale = max(factor / height, factor / width)
            height, width = int(height * scale), int(width * scale)
        across, down = (round(side / factor) * factor for side in (width, height))
        whole = round(frames / together) * together * across * down
        if whole > self.sampling.most_pixels:
            shrink = math.sqrt(frames * height * width / self.sampling.most_pixels)
            across, down = (max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height))
        elif whole < self.sampling.least_pixels:
            stretch = math.sqrt(self.sampling.least_pixels / (frames * height * width))
            across, down = (math.ceil(side * stretch / factor) * factor for side in (width, height))
        return across, down

    def fit(self, frame: Image.Image, frames: int) -> Image.Image:
        """Resized by the family's filter."""
        return self.family.resize(frame, self.looked(frame.size, frames))

    def words(self, times: Sequence[float], seconds: float) -> tuple[str, ...]:
        """Before each piece the middle of its times."""
        del seconds
        filled = [*times, *[times[-1]] * (-len(times) % self.together)]
        ends = zip(filled[:: self.together], filled[self.together - 1 :: self.together], strict=True)
        return (*(f"<{(first + last) / 2:.1f} seconds>" for first, last in ends), "")

    def clock(self, frames: int, seconds: float) -> None:
        """Each stands by itself."""
        del frames, seconds
