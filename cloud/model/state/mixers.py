"""Layers of the decoder without attention: the family's arithmetic in place of transformers' own module.

That one knows sequences of one session; the rows of a pass are of many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule, torch_recurrent_gated_delta_rule

from cutline.cloud.model.attention import Layout
from cutline.cloud.model.state.slot_cache import SlotCache
from cutline.models.families import Family, Ops
from cutline.models.families.layer_state import RecentRows, Recurrence, Step

_ONE_BY_ONE = 16  # rows up to which a step a row is quicker than a chunk, which is padded to 64


def delta_rule(
    query: Tensor, key: Tensor, value: Tensor, *, decay: Tensor, weight: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The gated delta rule; see `Ops`. Queries and keys are made as long as 1 first."""
    rule = torch_recurrent_gated_delta_rule if len(query) <= _ONE_BY_ONE else torch_chunk_gated_delta_rule
    seen, after = rule(
        query[None],
        key[None],
        value[None],
        g=decay[None],
        beta=weight[None],
        initial_state=state[None],
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    return seen[0], after[0]


OPS = Ops(attend=functional.scaled_dot_product_attention, join=torch.cat, delta_rule=delta_rule)


class SlotMemory:
    """What slots keep of a `layer` for the sessions of a pass: a `LayerMemory`."""

    def __init__(self, layer: int, layout: Layout, cache: SlotCache, kept: object) -> None:
        self._layer, self._layout, self._cache, self._kept = layer, layout, cache, kept

    def recent(self, rows: Tensor) -> Tensor:
        """See `LayerMemory.recent`."""
        assert isinstance(self._kept, RecentRows)
        held, slots, positions = self._cache.rows[self._layer], self._layout.slots, self._layout.positions
        held[slots, positions] = rows
        places = positions[:, None] + torch.arange(-self._kept.before, 1, device=rows.device)
        return held[slots[:, None], places.clamp(min=0)].masked_fill((places < 0)[..., None], 0)

    def through(self, rows: Tensor, step: Step) -> Tensor:
        """See `LayerMemory.through`."""
        assert self._cache.recurrences is not None
        return self._cache.recurrences.through(self._layer, self._layout.stretches, rows, step)


class Mixer(nn.Module):
    """In place of a layer's module `own`, as transformers' layer calls that."""

    def __init__(self, own: nn.Module, family: Family, layer: int) -> None:
        super().__init__()
        self.own = own
        self._family, self._layer = family, layer

    def forward(self, hidden_states: Tensor, *, layout: Layout, slot_cache: SlotCache, **more: Any) -> Tensor:
        """Rows (1, n, width)."""
        del more
        memory = SlotMemory(self._layer, layout, slot_cache, self._family.keeps(self._layer))
        made: Tensor = self._family.mix(self.own, hidden_states[0], memory, OPS)
        return made[None]


def put_mixers(modules: Sequence[Any], family: Family, layers: range) -> None:
    """Have those `layers` of a decoder that do not attend take what slots keep; `modules` are transformers' own."""
    name = family.parts.mixer
    for index in layers:
        if isinstance(family.keeps(index), RecentRows | Recurrence):
            assert name is not None
            setattr(modules[index], name, Mixer(getattr(modules[index], name), family, index))
