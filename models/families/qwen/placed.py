"""What the models of Qwen share from Qwen3-VL on: a tower that learnt its places, and videos with times.

The tower learnt its places on a square of `table` x `table`; for an image they are interpolated between the nearest
four. The decoder's frequencies take turns among the three axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cutline.models.families.family import Arrays, Count, Grid
from cutline.models.families.qwen.qwenvl import QwenVL, embedded
from cutline.models.families.qwen.video import QwenSampling, TimedVideo
from cutline.models.video import VideoMode


class PlacedQwenVL(QwenVL, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The tower learnt `table` x `table` places."""

    table: Count

    apart: ClassVar[frozenset[str]] = QwenVL.apart | {"table"}
    video_processor: ClassVar[str] = "Qwen3VLVideoProcessor"
    usual: ClassVar[QwenSampling | None] = None

    @classmethod
    def read(cls, config: Any, processor: Mapping[str, Any]) -> dict[str, Any]:
        """See `QwenVL.read`."""
        vision = config.vision_config
        side = math.isqrt(vision.num_position_embeddings)
        if side**2 != vision.num_position_embeddings:
            raise ValueError(
                f"num_position_embeddings {vision.num_position_embeddings} in its vision_config; supported: a square"
            )
        return {**super().read(config, processor), "table": side}

    @property
    def video(self) -> VideoMode | None:
        """Each piece after its time, where there is a `sampling`."""
        return TimedVideo(self, self.sampling) if isinstance(self.sampling, QwenSampling) else None

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
