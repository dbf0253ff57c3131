"""Qwen3-VL: rows of some of the tower's layers go into the decoder's first layers too (DeepStack)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from cutline.models.families.family import Index
from cutline.models.families.parts import Ops, Parts
from cutline.models.families.qwen.placed import PlacedQwenVL


class Qwen3VL(PlacedQwenVL, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="qwen3-vl"):
    """The tower's layers `deepstack`, in ascending order, are its taps."""

    deepstack: tuple[Index, ...]

    kinds: ClassVar[tuple[str, ...]] = ("qwen3_vl",)
    apart: ClassVar[frozenset[str]] = PlacedQwenVL.apart | {"deepstack"}
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
        return cls._checked(**cls.read(config, processor), deepstack=taps)

    @property
    def taps(self) -> tuple[int, ...]:
        """The layers of `deepstack`."""
        return self.deepstack

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
