"""Qwen3-VL: rows of some of the tower's layers go into the decoder's first layers too (DeepStack).

The tower learnt its places on a square of `table` x `table`; for an image they are interpolated between the nearest
four. The decoder's frequencies take turns among the three axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cutline.models.families.family import Arrays, Count, Grid, Index, Ops, Parts
from cutline.models.families.qwen import QwenVL, embedded


class Qwen3VL(QwenVL, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="qwen3-vl"):
    """The tower's layers `deepstack`, in ascending order, are its taps."""

    table: Count
    deepstack: tuple[Index, ...]

    kinds: ClassVar[tuple[str, ...]] = ("qwen3_vl",)
    apart: ClassVar[frozenset[str]] = QwenVL.apart | {"table", "deepstack"}
    answering: ClassVar[tuple[str, ...]] = ("Qwen3VLForConditionalGeneration",)
    parts: ClassVar[Parts] = Parts(
        image=("visual.patch_embed", "visual.pos_embed"),
        tower="visual.blocks",
        connector=("visual.merger", "visual.deepstack_merger_list"),
        decoder="language_model",
    )

    @classmethod
    def of(cls, config: Any, processor: Mapping[str, Any]) -> Qwen3VL:
        """See `Family.of`."""
        vision, text = config.vision_config, config.text_config
        taps = tuple(vision.deepstack_visual_indexes)
        if list(taps) != sorted(set(taps)) or not all(0 <= tap < vision.depth for tap in taps):
            raise ValueError(f"deepstack_visual_indexes {taps!r} in its vision_config; supported: layers, in order")
        if len(taps) > text.num_hidden_layers:
            raise ValueError(
                f"deepstack_visual_indexes {taps!r} in its vision_config, for {text.num_hidden_layers} layers to take"
            )
        side = math.isqrt(vision.num_position_embeddings)
        if side**2 != vision.num_position_embeddings:
            raise ValueError(
                f"num_position_embeddings {vision.num_position_embeddings} in its vision_config; supported: a square"
            )
        return cls._checked(**cls.read(config, processor), table=side, deepstack=taps)

    @property
    def taps(self) -> tuple[int, ...]:
        """The layers of `deepstack`."""
        return self.deepstack

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

    def step(self, module: Any, index: int, rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """As transformers' layer; what a tap made is kept behind the others."""
        width = module.norm1.weight.shape[0]
        made = super().step(module, index, rows[:, :width], beside, ops)
        streams = [made, rows[:, width:], *([made] if index in self.deepstack else [])]
        return ops.join(streams, 1)

    def leave(self, modules: Sequence[Any], rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """The patches merged into image tokens, and so those of each tap by a merger of its own."""
        del beside
        merger, others = modules
        # Mergers view several rows as one.
        own, *taps = (stream.contiguous() for stream in rows.unflatten(1, (1 + len(self.deepstack), -1)).unbind(1))
        return ops.join([merger(own), *(other(tap) for other, tap in zip(others, taps, strict=True))], 1)
