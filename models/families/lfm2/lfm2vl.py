"""LFM2-VL: SigLIP 2's tower on pictures in their own proportions, and short convolutions in most of the decoder.

The tower learnt its places on a square of `table` x `table`, of which each patch has its share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cutline.models.families.checks import ROTATIONS, check_whole_heads
from cutline.models.families.family import Arrays, Count, Index
from cutline.models.families.layer_state import KEYS_VALUES, LayerMemory, LayerState, RecentRows
from cutline.models.families.lfm2.pictures import Lfm2Pictures
from cutline.models.families.parts import Ops, Parts
from cutline.models.families.pieces import Sides, by_token


class Lfm2VL(Lfm2Pictures, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="lfm2-vl"):
    """The tower learnt `table` x `table` places. The decoder's layers `short`, `width` wide, see `kernel` rows."""

    table: Count
    short: tuple[Index, ...]
    width: Count
    kernel: Count

    kinds: ClassVar[tuple[str, ...]] = ("lfm2_vl",)
    answering: ClassVar[tuple[str, ...]] = ("Lfm2VlForConditionalGeneration",)
    apart: ClassVar[frozenset[str]] = frozenset({"table", "short", "width", "kernel"})
    parts: ClassVar[Parts] = Parts(
        image=("vision_tower.embeddings",),
        tower="vision_tower.encoder.layers",
        connector=("vision_tower.post_layernorm", "multi_modal_projector"),
        decoder="language_model",
        norm="embedding_norm",
        mixer="conv",
    )

    @classmethod
    def of(cls, config: Any, processor: Mapping[str, Any]) -> Lfm2VL:
        """See `Family.of`."""
        text, vision = config.text_config, config.vision_config
        if (text.model_type, vision.model_type) != ("lfm2", "siglip2_vision_model"):
            raise ValueError(
                f"a decoder of the kind {text.model_type} and a tower of the kind {vision.model_type}; supported: lfm2 "
                "and siglip2_vision_model"
            )
        if (turns := text.rope_parameters["rope_type"]) not in ROTATIONS:
            raise ValueError(f"rope_type {turns!r} in its text_config; supported: {', '.join(ROTATIONS)}")
        check_whole_heads(text)
        if others := set(text.layer_types) - {"conv", "full_attention"}:
            raise ValueError(f"layer_types {min(others)!r}; supported: 'conv' and 'full_attention'")
        side = math.isqrt(vision.num_patches)
        if side**2 != vision.num_patches:
            raise ValueError(f"num_patches {vision.num_patches} in its vision_config; supported: a square")
        return cls._checked(
            **cls.read(config, processor),
            table=side,
            short=tuple(at for at, kind in enumerate(text.layer_types) if kind == "conv"),
            width=text.hidden_size,
            kernel=text.conv_L_cache,
        )

    def keeps(self, layer: int) -> LayerState:
        """Of a short convolution the rows that it sees."""
        return RecentRows(self.width, self.kernel - 1) if layer in self.short else KEYS_VALUES

    def mix(self, module: Any, rows: Any, memory: LayerMemory, ops: Ops) -> Any:
        """As transformers' short convolution."""
        del ops
        gate, out, into = module.in_proj(rows).chunk(3, -1)
        made = (memory.recent(gate * into) * module.conv.weight[:, 0].transpose(0, 1)).sum(1)
        return module.out_proj(out * (made if module.conv.bias is None else made + module.conv.bias))

    def beside(self, piece: Sides) -> Arrays:
        """`places` (n, table * table) are a patch's shares of the learnt places, `order` (n,) the patches by token."""
        down, across = (_shares(self.table, side) for side in piece)
        places = (down[:, None, :, None] * across[None, :, None, :]).reshape(math.prod(piece), -1)
        return {"places": places, "order": by_token(piece, self.merge).reshape(-1)}

    def enter(self, modules: Sequence[Any], pixels: Any, beside: dict[str, Any]) -> Any:
        """The embedded patches, with their places added."""
        (embeddings,) = modules
        learnt = embeddings.position_embedding.weight
        return embeddings.patch_embedding(pixels) + (beside["places"] @ learnt.float()).type_as(learnt)

    def step(self, module: Any, index: int, rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """transformers' own layer, which takes a mask of nothing."""
        del index, beside, ops
        return module(rows[None], None)[0]

    def leave(self, modules: Sequence[Any], rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """The tower's last norm, then the projection of the patches of a token side by side."""
        del ops
        norm, projector = modules
        made = norm(rows)[beside["order"]].reshape(-1, self.merge**2 * rows.shape[1])
        made = made if projector.layer_norm is None else projector.layer_norm(made)
        return projector.linear_2(projector.act(projector.linear_1(made)))


def _shares(learnt: int, made: int) -> NDArray[np.float32]:
    """The shares (made, learnt) that each of `made` places along a side has of those learnt, as torch interpolates."""
    scale = np.float32(learnt) / np.float32(made)
    middles = (np.arange(made, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    off = np.abs(np.arange(learnt, dtype=np.float32) - middles[:, None]) / max(scale, np.float32(1))
    shares = np.clip(1 - off, 0, None)
    return np.asarray(shares / shares.sum(1, keepdims=True), np.float32)
