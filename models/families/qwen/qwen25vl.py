"""Qwen2.5-VL: a tower with window attention.

Within the tower rows are in window order; before and after it they are in the order of the image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from cutline.models.families.family import Arrays, Count, Grid, Index, Spread
from cutline.models.families.parts import Ops, Parts
from cutline.models.families.qwen.qwenvl import QwenVL, embedded
from cutline.models.families.qwen.settings import one_number
from cutline.models.families.qwen.video import JoinedVideo, QwenSampling
from cutline.models.images import Pixels
from cutline.models.video import VideoMode


class Qwen25VL(QwenVL, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="qwen2.5-vl"):
    """The tower's layers attend within windows of `window` pixels a side, except those in `full`.

    A video's time counts `pace` positions a second.
    """

    window: Count
    full: tuple[Index, ...]
    pace: Spread | msgspec.UnsetType = msgspec.UNSET

    kinds: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)
    apart: ClassVar[frozenset[str]] = QwenVL.apart | {"window", "full", "pace"}
    answering: ClassVar[tuple[str, ...]] = ("Qwen2_5_VLForConditionalGeneration",)
    parts: ClassVar[Parts] = Parts(
        image=("visual.patch_embed",), tower="visual.blocks", connector=("visual.merger",), decoder="language_model"
    )

    @classmethod
    def of(cls, config: Any, processor: Mapping[str, Any]) -> Qwen25VL:
        """See `Family.of`."""
        fields, window = cls.read(config, processor), one_number(config.vision_config, "window_size")
        if window % (side := fields["patch"] * fields["merge"]):
            raise ValueError(f"window_size {window} in its vision_config, where a multiple of {side} is supported")
        full, pace = tuple(config.vision_config.fullatt_block_indexes), config.vision_config.tokens_per_second
        return cls._checked(**fields, window=window, full=full, pace=float(pace))

    @property
    def video(self) -> VideoMode | None:
        """As with Qwen2-VL, at the models' `pace`."""
        if not isinstance(self.sampling, QwenSampling) or not isinstance(self.pace, float):
            return None
        return JoinedVideo(self, self.sampling, self.pace)

    def beside(self, grid: Grid) -> Arrays:
        """The tower's other inputs for one image. Rows are in window order.

        `order` (m,) has the image token, in image order, for each index in window order; `back` (m,) is its inverse.
        `cos`, `sin` are as in `QwenVL.turns`. `slots` (windows, s) has the row in each slot of each window, -1 in empty
        ones; `places` (n,) has the slot of each row, counted through all windows.
        """
        order, lengths = self.windows(grid)
        by_token = self.places(grid).reshape(len(order), -1, 2)[order].reshape(-1, 2)
        size = (self.window // self.patch) ** 2
        inside = np.arange(size) < lengths[:, None]
        slots = np.full(inside.shape, -1)
        slots[inside] = np.arange(lengths.sum())
        return {
            "order": order,
            "back": np.argsort(order),
            **self.turns(by_token),
            "slots": slots,
            "places": np.flatnonzero(inside),
        }

    def windows(self, grid: Grid) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The image tokens (m,) of a grid in window order, and the number of patches (windows,) in each window."""
        rows, cols = grid[0] // self.merge, grid[1] // self.merge
        side = self.window // self.factor
        row, col = np.divmod(np.arange(rows * cols), cols)
        window = row // side * math.ceil(cols / side) + col // side
        return np.argsort(window, kind="stable"), np.bincount(window) * self.merge**2

    def enter(self, modules: Sequence[Any], pixels: Any, beside: dict[str, Any]) -> Any:
        """The embedded patches, in window order."""
        (embedding,) = modules
        return self._by_token(embedded(embedding, pixels))[beside["order"]].flatten(0, 1)

    def step(self, module: Any, index: int, rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """As transformers' layer, with attention over all windows as one batch, padded to the same length."""
        if index in self.full:
            return super().step(module, index, rows, beside, ops)
        query, key, value = self.attended(module.attn, module.norm1(rows), beside)
        slots = beside["slots"]
        filled = slots.clamp(min=0)
        windows = [each[:, filled].transpose(0, 1) for each in (query, key, value)]  # (windows, heads, s, ...)
        seen = (slots >= 0)[:, None, None].expand(-1, -1, slots.shape[1], -1)  # ONNX Runtime does not broadcast it
        attended = ops.attend(*windows, attn_mask=seen, scale=module.attn.scaling)
        attended = attended.transpose(0, 1).flatten(1, 2)[:, beside["places"]]
        rows = rows + module.attn.proj(attended.transpose(0, 1).flatten(1))
        return rows + module.mlp(module.norm2(rows))

    def leave(self, modules: Sequence[Any], rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """The patches merged into image tokens, in image order."""
        return super().leave(modules, rows, beside, ops)[beside["back"]]

    def example(self, seed: int) -> Pixels:
        """Two by two windows, of which only the first is full."""
        side = self.window // self.patch + self.merge
        return self.noise(seed, (side, side))

    def _by_token(self, rows: Any) -> Any:
        return rows.unflatten(0, (-1, self.merge**2))
