"""Attention of ragged rows: every session has its own keys and values, held in preallocated slots.

Rows of all sessions stand behind each other in one sequence of batch size 1. Everything but attention treats a row
alone; attention, registered with transformers here, keeps the sessions apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.modeling_utils import AttentionInterface

ATTENTION = "cutline_slots"


@dataclass(frozen=True, slots=True)
class Stretch:
    """Where one session's rows stand: `first` to `last` in the pass, from position `start` on in slot `slot`."""

    first: int
    last: int
    slot: int
    start: int


class SlotCache:
    """Keys and values of every slot, in the decoder layers `[first, first + layers)`.

    (layers, slots, kv_heads, context, head_dim)
    """

    def __init__(self, shape: tuple[int, int, int, int, int], *, first: int, like: Tensor) -> None:
        self.first = first
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros(shape, dtype=like.dtype, device=like.device)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: None,
    *,
    stretches: Sequence[Stretch],
    slots: SlotCache,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of ragged rows: `query` (1, heads, rows, width), `key` and `value` alike; transformers' signature."""
    del mask
    attended = torch.empty_like(query)
    layer = module.layer_idx - slots.first
    for stretch in stretches:
        end = stretch.start + stretch.last - stretch.first
        rows = slice(stretch.first, stretch.last)
        keys, values = slots.keys[layer, stretch.slot], slots.values[layer, stretch.slot]
        keys[:, stretch.start : end] = key[0, :, rows]
        values[:, stretch.start : end] = value[0, :, rows]
        attended[:, :, rows] = functional.scaled_dot_product_attention(
            query[:, :, rows],
            keys[None, :, :end],
            values[None, :, :end],
            attn_mask=_causal(stretch, end, query.device),
            is_causal=stretch.start == 0,
            scale=module.scaling,
            enable_gqa=True,
        )
    return attended.transpose(1, 2), None


def _causal(stretch: Stretch, end: int, device: torch.device) -> Tensor | None:
    """The mask (rows, end) where rows join a longer past; None where none is needed or the kernel makes its own."""
    if stretch.start == 0 or end - stretch.start == 1:
        return None
    return torch.ones(end - stretch.start, end, dtype=torch.bool, device=device).tril(stretch.start)


AttentionInterface.register(ATTENTION, _attend)
