"""Qwen3.5: most layers of the decoder have a gated delta rule in place of attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cutline.models.families.layer_state import LayerMemory, LayerState
from cutline.models.families.parts import Ops, Parts
from cutline.models.families.qwen.delta import LAYER_TYPES, DeltaLayers
from cutline.models.families.qwen.placed import PlacedQwenVL


class Qwen35(PlacedQwenVL, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="qwen3.5"):
    """The decoder's layers without attention are `delta`."""

    delta: DeltaLayers

    kinds: ClassVar[tuple[str, ...]] = ("qwen3_5",)
    apart: ClassVar[frozenset[str]] = PlacedQwenVL.apart | {"delta"}
    answering: ClassVar[tuple[str, ...]] = ("Qwen3_5ForConditionalGeneration",)
    layer_types: ClassVar[frozenset[str]] = LAYER_TYPES
    whole_heads: ClassVar[bool] = False
    parts: ClassVar[Parts] = Parts(
        image=("visual.patch_embed", "visual.pos_embed"),
        tower="visual.blocks",
        connector=("visual.merger",),
        decoder="language_model",
        mixer="linear_attn",
    )

    @classmethod
    def of(cls, config: Any, processor: Mapping[str, Any]) -> Qwen35:
        """See `Family.of`."""
        return cls._checked(**cls.read(config, processor), delta=DeltaLayers.read(config.text_config))

    def keeps(self, layer: int) -> LayerState:
        """See `DeltaLayers.keeps`."""
        return self.delta.keeps(layer)

    def mix(self, module: Any, rows: Any, memory: LayerMemory, ops: Ops) -> Any:
        """See `DeltaLayers.mix`."""
        return self.delta.mix(module, rows, memory, ops)
