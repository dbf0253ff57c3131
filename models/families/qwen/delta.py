"""The gated delta rule of Qwen3.5's decoder, which most of its layers have in place of attention.

Such a layer has a state for each head, a matrix that answers a query and that every row corrects by what it missed;
what goes in has first been through a short convolution along the rows.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from cutline.models.families.family import Count, Index
from cutline.models.families.layer_state import KEYS_VALUES, LayerMemory, LayerState, Recurrence, States
from cutline.models.families.parts import Ops

LAYER_TYPES = frozenset({"full_attention", "linear_attention"})
_SIZES = {
    "key_heads": "linear_num_key_heads",
    "value_heads": "linear_num_value_heads",
    "key_width": "linear_key_head_dim",
    "value_width": "linear_value_head_dim",
    "kernel": "linear_conv_kernel_dim",
}


class DeltaLayers(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The `layers` without attention: their heads, how wide these are, and how many rows the convolution spans."""

    layers: tuple[Index, ...]
    key_heads: Count
    value_heads: Count
    key_width: Count
    value_width: Count
    kernel: Count

    @staticmethod
    def read(text: Any) -> dict[str, Any]:
        """The fields of the decoder of `text`, a text_config. Raises ValueError."""
        if text.hidden_act != "silu":
            raise ValueError(f"hidden_act {text.hidden_act!r} in its text_config, where 'silu' is supported")
        layers = tuple(at for at, kind in enumerate(text.layer_types) if kind == "linear_attention")
        return {"layers": layers, **{name: getattr(text, theirs) for name, theirs in _SIZES.items()}}

    @property
    def sections(self) -> tuple[int, int, int]:
        """How wide the queries, keys and values of a row are."""
        keys = self.key_heads * self.key_width
        return keys, keys, self.value_heads * self.value_width

    def keeps(self, layer: int) -> LayerState:
        """Of a layer without attention the convolution's last rows, and each head's matrix."""
        if layer not in self.layers:
            return KEYS_VALUES
        width = sum(self.sections)
        matrices = (self.value_heads, self.key_width, self.value_width)
        return Recurrence(width + 2 * self.value_heads, {"conv": (width, self.kernel - 1), "recurrent": matrices})

    def mix(self, module: Any, rows: Any, memory: LayerMemory, ops: Ops) -> Any:
        """As transformers' gated delta net."""
        into = ops.join([module.in_proj_qkv(rows), module.in_proj_b(rows), module.in_proj_a(rows)], 1)
        seen = memory.through(into, partial(self._moved, module, ops)).flatten(0, 1)
        return module.out_proj(module.norm(seen, module.in_proj_z(rows).view_as(seen)).view(len(rows), -1))

    def _moved(self, module: Any, ops: Ops, into: Any, states: States) -> tuple[Any, States]:
        """What rows `into` (n, width) see (n, value heads, value width), and the states after them."""
        sections = self.sections
        taken, weights, decays = into.split([sum(sections), self.value_heads, self.value_heads], 1)
        past, matrices = states
        taken = ops.join([past.type_as(taken), taken.transpose(0, 1)], 1)
        convolved = module.conv1d(taken)[:, self.kernel - 1 : taken.shape[1]].transpose(0, 1)
        query, key, value = (convolved * convolved.sigmoid()).split(sections, 1)
        decays = decays.float() + module.dt_bias
        soft = decays.clamp(min=0) + (-decays.abs()).exp().log1p()  # softplus
        assert ops.delta_rule is not None
        seen, matrices = ops.delta_rule(
            query.unflatten(1, (self.key_heads, -1)),
            key.unflatten(1, (self.key_heads, -1)),
            value.unflatten(1, (self.value_heads, -1)),
            decay=-module.A_log.float().exp() * soft,
            weight=weights.sigmoid(),
            state=matrices,
        )
        return seen, (taken[:, taken.shape[1] - self.kernel + 1 :].clone(), matrices)
