"""What a worker keeps of sessions, each in a slot: keys and values, rows of short convolutions, states."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from cutline.cloud.model.batch import Stretch
from cutline.cloud.model.state.recurrences import Recurrences
from cutline.models.families.layer_state import (
    CrossKeys,
    KeysValues,
    LayerState,
    RecentRows,
    Recurrence,
    SharedKeys,
    layer_with_keys,
)


class SlotCache:
    """What every slot keeps of the decoder's layers from `first` on: of each what `keeps` says.

    Keys and values are (slots, kv_heads, context, head_dim), of each layer that has its own; rows by position, of a
    layer each, are (slots, context, width).
    """

    def __init__(
        self, shape: tuple[int, int, int, int], keeps: Sequence[LayerState], *, first: int, like: Tensor
    ) -> None:
        """For `shape` (slots, kv_heads, context, head_dim), where a layer has no sizes of its own."""
        self.first, self.like = first, like
        layers = dict(enumerate(keeps, first))
        slots, kv_heads, self.context, head_dim = shape
        sizes = {
            layer: kept.sizes(kv_heads, head_dim) for layer, kept in layers.items() if isinstance(kept, KeysValues)
        }
        places = {layer: place for place, layer in enumerate(sizes)}
        self._places = {
            layer: places[layer_with_keys(kept, layer)]
            for layer, kept in layers.items()
            if isinstance(kept, KeysValues | SharedKeys)
        }
        self.keys, self.values = (
            [_zeros((slots, heads, self.context, width), like) for heads, width in sizes.values()] for _ in range(2)
        )
        self.rows = {
            layer: _zeros((slots, self.context, kept.width), like)
            for layer, kept in layers.items()
            if isinstance(kept, RecentRows)
        }
        self.sides = {
            layer: tuple(_zeros((slots, kv_heads, kept.rows, head_dim), like) for _ in range(2))
            for layer, kept in layers.items()
            if isinstance(kept, CrossKeys)
        }
        self.beside = [0] * slots  # rows beside the prompt of each, whose keys are there
        self.arriving: dict[int, Tensor] = {}  # by slot, rows whose keys are made in this pass
        states = {layer: kept for layer, kept in layers.items() if isinstance(kept, Recurrence)}
        self.recurrences = Recurrences(states, slots, like) if states else None
        self._written = [0] * slots

    def place(self, layer: int) -> int:
        """Where among the layers with keys that one is to whose keys a layer of the decoder attends."""
        return self._places[layer]

    def note(self, stretches: Sequence[Stretch]) -> None:
        """What is about to be written; a slot that begins anew is emptied first.

        What another session left there would be masked, but a mask leaves a number that is none as it is.
        """
        for stretch in stretches:
            if stretch.start == 0:
                for held in (*self.keys, *self.values):
                    held[stretch.slot, :, : self._written[stretch.slot]] = 0
                self._written[stretch.slot] = self.beside[stretch.slot] = 0
            self._written[stretch.slot] = max(self._written[stretch.slot], stretch.end)
        if self.recurrences is not None:
            self.recurrences.begin(stretches)

    def arrived(self) -> None:
        """The keys of all that was arriving are there."""
        for slot, rows in self.arriving.items():
            self.beside[slot] = len(rows)
        self.arriving = {}

    def kept(self, slot: int, count: int) -> int:
        """How many of the first `count` positions of `slot`, which all stand, a session can begin after."""
        return count if self.recurrences is None else self.recurrences.kept(slot, count)

    def resume(self, slot: int, source: int, count: int) -> None:
        """Have `slot` begin with the first `count` positions of `source`; what stood behind them is emptied."""
        for held in (*self.keys, *self.values):
            if source != slot:
                held[slot, :, :count] = held[source, :, :count]
            held[slot, :, count : self._written[slot]] = 0
        for rows in self.rows.values() if source != slot else ():
            rows[slot, :count] = rows[source, :count]
        for held_beside in self.sides.values() if source != slot else ():
            for held in held_beside:
                held[slot, :, : self.beside[source]] = held[source, :, : self.beside[source]]
        self.beside[slot] = self.beside[source]
        if self.recurrences is not None:
            self.recurrences.resume(slot, source, count)
        self._written[slot] = count


def _zeros(shape: Sequence[int], like: Tensor) -> Tensor:
    """Zeros as torch makes them; on a processor of pages that take memory once they are written, and not before."""
    size = math.prod(shape) * like.itemsize
    if like.device.type != "cpu" or size == 0:
        return torch.zeros(*shape, dtype=like.dtype, device=like.device)
    return torch.frombuffer(mmap.mmap(-1, size), dtype=like.dtype).view(*shape)
