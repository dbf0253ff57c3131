"""Qwen2-VL: a tower without windows, in which every patch attends to the whole image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cutline.models.families.parts import Parts, TowerSizes
from cutline.models.families.qwen.qwenvl import QwenVL


class Qwen2VL(QwenVL, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="qwen2-vl"):
    """Nothing beside what all models of Qwen have."""

    kinds: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    answering: ClassVar[tuple[str, ...]] = ("Qwen2VLForConditionalGeneration",)
    parts: ClassVar[Parts] = Parts(
        image=("visual.patch_embed",), tower="visual.blocks", connector=("visual.merger",), decoder="language_model"
    )

    @classmethod
    def of(cls, config: Any, processor: Mapping[str, Any]) -> Qwen2VL:
        """See `Family.of`."""
        return cls._checked(**cls.read(config, processor))

    @classmethod
    def tower_sizes(cls, config: Any) -> TowerSizes:
        """Its tower's width is `embed_dim`; `hidden_size` is the decoder's."""
        vision = config.vision_config
        return TowerSizes(vision.depth, vision.embed_dim, vision.num_heads)
