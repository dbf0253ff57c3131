"""What the models of Qwen share from Qwen3-VL on: a tower that learnt its places, and videos with times.

The tower learnt its places on a square of `table` x `table`; for an image they are interpolated between the nearest
four. The decoder's frequencies take turns among the three axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cutline.models.families.family import Arrays, Count, Grid, Spread
from cutline.models.families.qwen.qwenvl import QwenVL, embedded
from cutline.models.images import Pixels, Size, normalised
from cutline.models.video import Footage, VideoMode


class QwenSampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of a video so many frames a second (`rate`), from `least` to `most`, with so many pixels in all of them."""

    least_pixels: Count
    most_pixels: Annotated[int, msgspec.Meta(ge=1, le=10**9)]
    rate: Spread = 2.0
    least: Count = 4
    most: Count = 768


class PlacedQwenVL(QwenVL, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The tower learnt `table` x `table` places. With a `sampling` they look at videos."""

    table: Count
    sampling: QwenSampling | msgspec.UnsetType = msgspec.UNSET  # what is not set is not in a manifest

    apart: ClassVar[frozenset[str]] = QwenVL.apart | {"table", "sampling"}

    @classmethod
    def read(cls, config: Any, processor: Mapping[str, Any]) -> dict[str, Any]:
        """See `QwenVL.read`."""
        vision = config.vision_config
        side = math.isqrt(vision.num_position_embeddings)
        if side**2 != vision.num_position_embeddings:
            raise ValueError(
                f"num_position_embeddings {vision.num_position_embeddings} in its vision_config; supported: a square"
            )
        fields = {**super().read(config, processor), "table": side}
        return fields | _sampling(processor.get("video_processor"), fields)

    @property
    def video(self) -> VideoMode | None:
        """As many frames together as a patch spans, each such piece after its time, where there is a `sampling`."""
        return QwenVideo(self, self.sampling) if isinstance(self.sampling, QwenSampling) else None

    def piece_grid(self, size: Size) -> Grid | None:
        """Rows and columns of the patches of each of the strip's frames."""
        width, height = size
        if height % (self.frames * self.factor) or width % self.factor:
            return None
        grid = height // self.frames // self.patch, width // self.patch
        return grid if self.takes(grid) else None

    def piece_pixels(self, strip: Image.Image) -> Pixels:
        """As `preprocess`, with another frame each time where that has the same picture again."""
        grid = self.piece_grid(strip.size)
        assert grid is not None
        rows, cols = (side // self.merge for side in grid)
        frames = np.asarray(strip).reshape(self.frames, -1, strip.width, 3).transpose(0, 3, 1, 2)
        pixels = normalised(frames, self.mean, self.std)
        sides = rows, self.merge, self.patch, cols, self.merge, self.patch
        patches = pixels.reshape(self.frames, 3, *sides).transpose(2, 5, 3, 6, 1, 0, 4, 7)
        return Pixels(patches.reshape(math.prod(grid), -1), grid)

    @property
    def frequency_axes(self) -> NDArray[np.int64]:
        """The axes take turns as long as height and width have frequencies left; time has the others."""
        axes = np.zeros(sum(self.sections), np.int64)
        for axis in (1, 2):
            axes[axis : 3 * self.sections[axis] : 3] = axis
        return axes

    def beside(self, grid: Grid) -> Arrays:
        """`near` (n, 4) are the learnt places about each patch, and `weights` (n, 4) their shares."""
        places = self.places(grid)
        rows, cols = (self._between(places[:, axis], grid[axis]) for axis in (0, 1))
        near = rows[0][:, :, None] * self.table + cols[0][:, None, :]
        weights = rows[1][:, :, None] * cols[1][:, None, :]
        return {**self.turns(places), "near": near.reshape(-1, 4), "weights": weights.reshape(-1, 4)}

    def _between(self, index: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The two learnt places (n, 2) about each `index` of `size`, and their shares; the ends are the table's."""
        at = index.astype(np.float32) * np.float32(self.table - 1) / np.float32(max(size - 1, 1))
        below = np.floor(at)
        share = np.stack([1 - (at - below), at - below], axis=1)
        places = below.astype(np.int64)[:, None] + np.arange(2)
        return places.clip(max=self.table - 1), share.astype(np.float32)

    def enter(self, modules: Sequence[Any], pixels: Any, beside: dict[str, Any]) -> Any:
        """The embedded patches, with their places added."""
        embedding, places = modules
        learnt = (places.weight[beside["near"]] * beside["weights"][:, :, None]).sum(1)
        rows = embedded(embedding, pixels)
        return rows + learnt.type_as(rows)


@dataclass(frozen=True, slots=True)
class QwenVideo:
    """How they look at videos, as its own processor has it: frames in pairs, each after its time in seconds."""

    family: PlacedQwenVL
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


def _sampling(said: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The field of a folder's video processor, where it is the family's and sees patches as its image processor does.

    None where it is not: then frames are looked at as images.
    """
    if not isinstance(said, Mapping) or said.get("video_processor_type") != "Qwen3VLVideoProcessor":
        return {}
    sizes = {"patch_size": "patch", "merge_size": "merge", "temporal_patch_size": "frames"}
    alike = all(said.get(name, fields[ours]) == fields[ours] for name, ours in sizes.items())
    for name, ours in (("image_mean", "mean"), ("image_std", "std")):
        alike &= tuple(said.get(name) or fields[ours]) == tuple(fields[ours])
    size = said.get("size") or {}
    given = {"rate": said.get("fps"), "least": said.get("min_frames"), "most": said.get("max_frames")}
    given |= {"least_pixels": size.get("shortest_edge"), "most_pixels": size.get("longest_edge")}
    if not alike or said.get("cap_pixels_per_frame"):
        return {}
    try:
        found = msgspec.convert({name: value for name, value in given.items() if value is not None}, QwenSampling)
    except msgspec.ValidationError:
        return {}
    return {"sampling": msgspec.to_builtins(found)}
