"""Attention of ragged rows: every session has its own keys and values, held in preallocated slots.

Rows of all sessions stand behind each other in one sequence of batch size 1. Everything but attention treats a row
alone; attention, registered with transformers here, keeps the sessions apart. Sessions of few rows in slots near each
other attend in one call, each behind a mask of its own; a `Layout` says which, once a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import AttentionInterface

from cutline.cloud.model.batch import Stretch
from cutline.cloud.model.state.slot_cache import SlotCache
from cutline.models.families.parts import Decoding, rotate
from cutline.models.sight import CAUSAL, Sight

ATTENTION = "cutline_slots"

FEW = 16  # rows of a session below which it may attend together with others
# Measured: a row more for a position's keys and values costs a fifth of reading them, a call as much as 256 positions.
READ_ROWS = 5
CALL_COST = 256 * READ_ROWS
_CAPPED_ROWS = 256  # whose scores are written out at a time where they stay below a cap
_STEP = 8  # lengths are multiples of it where there is room: kernels of a GPU want their masks so


def sort_key(count: int, slot: int) -> tuple[int, int]:
    """In this order sessions that may attend together stand behind each other: those of few rows, by slot."""
    return int(count >= FEW), slot


def gather(stretches: Sequence[Stretch]) -> list[list[Stretch]]:
    """Who attends in one call, of stretches in order of `sort_key`: a call reads all slots between its first and last,
    each as far as its longest, for as many rows as it has most of.

    One more joins while that costs no more than a call of its own.
    """
    groups: list[list[Stretch]] = []
    for stretch in stretches:
        if groups and _may_join(groups[-1][-1], stretch):
            joined = [*groups[-1], stretch]
            if cost(joined) <= cost(groups[-1]) + cost([stretch]):
                groups[-1] = joined
                continue
        groups.append([stretch])
    return groups


def _may_join(last: Stretch, other: Stretch) -> bool:
    return max(last.count, other.count) < FEW and last.slot < other.slot


def cost(group: Sequence[Stretch]) -> int:
    """What the call of a group costs, in rows for a position."""
    positions = (group[-1].slot - group[0].slot + 1) * max(stretch.end for stretch in group)
    return positions * (READ_ROWS + max(stretch.count for stretch in group)) + CALL_COST


class _Call:
    """The rows `first` to `last` of a pass: `each` rows, at most, of every slot from `slots.start` to `slots.stop`."""

    def __init__(self, group: Sequence[Stretch], context: int, heads: int, like: Tensor, sight: Sight) -> None:
        """`heads` of a query share a head of the keys."""
        self.first, self.last = group[0].first, group[-1].last
        self.slots = slice(group[0].slot, group[-1].slot + 1)
        self.each = max(stretch.count for stretch in group)
        self.length = min(context, -(-max(stretch.end for stretch in group) // _STEP) * _STEP)
        count = self.slots.stop - self.slots.start
        # What stands in no stretch repeats a row of it, or is for a slot of nobody here: never read.
        rows, lasts, back = [[0] * self.each for _ in range(count)], [[0] * self.each for _ in range(count)], []
        firsts = np.zeros((count, self.each), np.int64)
        for stretch in group:
            at = stretch.slot - self.slots.start
            for index in range(stretch.count):
                rows[at][index] = stretch.first - self.first + index
                lasts[at][index] = stretch.start + index
                back.append(at * self.each + index)
            if sight is not CAUSAL:
                first, last = sight.interval(stretch.blocks, stretch.start, stretch.end)
                firsts[at, : stretch.count], lasts[at][: stretch.count] = first, last.tolist()
        whole = len(back) == count * self.each
        device = like.device
        self.rows = None if whole else torch.tensor(rows, device=device).flatten()
        self.back = None if whole else torch.tensor(back, device=device)
        places = torch.arange(self.length, device=device)
        seen = places <= torch.tensor(lasts, device=device)[..., None]
        if sight is not CAUSAL:
            seen &= torch.from_numpy(firsts).to(device)[..., None] <= places
        seen = seen[:, None].expand(-1, heads, -1, -1).reshape(count, 1, heads * self.each, self.length)
        self.mask = torch.zeros(seen.shape, dtype=like.dtype, device=device).masked_fill_(~seen, -torch.inf)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scale: float, softcap: float) -> Tensor:
        """(last - first, heads, width) of `query` alike; keys and values (slots, kv_heads, context, width).

        Heads that share their keys become rows of one head: a kernel reads the keys once for all of them.
        """
        count, (_, heads, width), shared = self.slots.stop - self.slots.start, query.shape, keys.shape[1]
        query = query if self.rows is None else query[self.rows]
        query = query.view(count, self.each, shared, heads // shared, width).permute(0, 2, 3, 1, 4)
        attended = _attention(
            query.reshape(count, shared, -1, width),
            keys[self.slots, :, : self.length],
            values[self.slots, :, : self.length],
            mask=self.mask,
            scale=scale,
            softcap=softcap,
        )
        attended = attended.view(count, shared, heads // shared, self.each, width).permute(0, 3, 1, 2, 4)
        attended = attended.reshape(-1, heads, width)
        return attended if self.back is None else attended[self.back]


class _Alone:
    """A session of many rows: a call of its own, where the kernel can leave out what is not seen."""

    def __init__(self, stretch: Stretch, device: torch.device, sight: Sight) -> None:
        self.first, self.last = stretch.first, stretch.last
        self.slot, self.end = stretch.slot, stretch.end
        causal = sight.is_causal(stretch.blocks, stretch.start, stretch.end)
        self.causal = causal and stretch.start == 0
        self.mask: Tensor | None = None  # where the kernel makes its own
        if not self.causal and causal:
            self.mask = torch.ones(stretch.count, self.end, dtype=torch.bool, device=device).tril(stretch.start)
        elif not self.causal:
            interval = np.stack(sight.interval(stretch.blocks, stretch.start, stretch.end))[..., None]
            first, last = torch.from_numpy(interval).to(device)
            places = torch.arange(self.end, device=device)
            self.mask = (first <= places) & (places <= last)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scale: float, softcap: float) -> Tensor:
        """As `_Call.attend`."""
        attended = _attention(
            query.transpose(0, 1)[None],
            keys[None, self.slot, :, : self.end],
            values[None, self.slot, :, : self.end],
            mask=self.mask,
            causal=self.causal,
            scale=scale,
            softcap=softcap,
        )
        return attended[0].transpose(0, 1)


def _attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    mask: Tensor | None,
    causal: bool = False,
    scale: float,
    softcap: float,
) -> Tensor:
    """Attention (n, heads, rows, width); keys may have fewer heads. Scores stay below `softcap`, unless that is 0."""
    if not softcap:
        fewer = query.shape[1] != keys.shape[1]
        made: Tensor = functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=fewer
        )
        return made
    # Scores are written out, of some rows at a time: of a long prompt they would take more memory than all else.
    heads, shared, length = query.shape[1], keys.shape[1], keys.shape[2]
    places = torch.arange(length, device=query.device)
    parts = []
    for first in range(0, query.shape[2], _CAPPED_ROWS):
        rows = query[:, :, first : first + _CAPPED_ROWS].unflatten(1, (shared, heads // shared))
        scores = softcap * torch.tanh(rows @ keys[:, :, None].transpose(-1, -2) * scale / softcap)
        if causal:
            seen = places <= torch.arange(first, first + rows.shape[3], device=query.device)[:, None]
            scores = scores.masked_fill(~seen, -torch.inf)
        elif mask is not None:
            part = mask[..., first : first + _CAPPED_ROWS, :]
            # (rows, length) of what is seen, or (n, 1, rows, length) of what is added.
            scores = scores.masked_fill(~part, -torch.inf) if part.dtype is torch.bool else scores + part[:, :, None]
        parts.append((scores.softmax(-1, dtype=torch.float32).to(values.dtype) @ values[:, :, None]).flatten(1, 2))
    return torch.cat(parts, 2)


class Layout:
    """Where the rows of a pass are written and what they see: made once, and the same in all layers of one sight.

    `sights` are those of the layers with keys, by their places in the cache, and how many heads of a query share a head
    of the keys there. What each layer is `given` beside its rows (m, layers, width) stands by its number; of m rows the
    first ones are these.
    """

    def __init__(
        self,
        stretches: Sequence[Stretch],
        cache: SlotCache,
        *,
        sights: Sequence[tuple[Sight, int]],
        given: Tensor | None = None,
    ) -> None:
        like = cache.like
        self.stretches, self.given = stretches, given
        slots = [stretch.slot for stretch in stretches for _ in range(stretch.count)]
        positions = [at for stretch in stretches for at in range(stretch.start, stretch.end)]
        self.slots = torch.tensor(slots, device=like.device)
        self.positions = torch.tensor(positions, device=like.device)
        self._groups, self._sights = gather(stretches), sights
        self._cache = cache
        self._calls: dict[tuple[Sight, int], list[_Alone | _Call]] = {}

    def calls(self, place: int) -> list[_Alone | _Call]:
        """Who attends together in the layer at `place` of the cache."""
        sight, heads = kind = self._sights[place]
        if kind not in self._calls:
            like, context = self._cache.like, self._cache.context
            self._calls[kind] = [
                _Alone(group[0], like.device, sight)
                if group[0].count >= FEW
                else _Call(group, context, heads, like, sight)
                for group in self._groups
            ]
        return self._calls[kind]


# What `cutline::attend` is given beside tensors: a compiler takes no other objects.
PASSING: ContextVar[tuple[Layout, SlotCache]] = ContextVar("PASSING")


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: None,
    *,
    layout: Layout,
    slot_cache: SlotCache,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention of ragged rows: `query` (1, heads, rows, width), `key` and `value` alike; transformers' signature.

    The cache is not named `cache`: layers of transformers 5.24 take their own by that name, and pass none on.
    """
    del mask
    softcap = more.get("softcap") or 0.0  # of Gemma 2
    if torch.compiler.is_compiling():
        made: Tensor = torch.ops.cutline.attend(query, key, value, module.place, module.scaling, softcap)
        return made, None
    place = slot_cache.place(module.layer_idx)
    made = _attended(query, (key, value), place, (module.scaling, softcap), layout, slot_cache)
    return made, None


def _attended(
    query: Tensor,
    new: tuple[Tensor, Tensor] | None,
    place: int,
    scores: tuple[float, float],
    layout: Layout,
    cache: SlotCache,
) -> Tensor:
    """Rows (1, rows, heads, width) in the layer at `place` of the cache, which first gets what is `new` there.

    `scores` are multiplied by the first and stay below the second, unless that is 0.
    """
    keys, values = cache.keys[place], cache.values[place]
    if new is not None:
        for held, coming in zip((keys, values), new, strict=True):
            held[layout.slots, :, layout.positions] = coming[0].transpose(0, 1)
    rows = query[0].transpose(0, 1)
    made = [call.attend(rows[call.first : call.last], keys, values, *scores) for call in layout.calls(place)]
    return (made[0] if len(made) == 1 else torch.cat(made))[None]


Seen = tuple[Tensor, Tensor]  # rows, and whether each counts
Rotary = tuple[Tensor, Tensor]  # cosines and sines (1, rows, width)


class FamilyLayer(nn.Module):
    """A layer of the decoder that its family runs, by its `decoding`: called as transformers' own are here."""

    def __init__(self, module: nn.Module, decoding: Decoding, index: int) -> None:
        super().__init__()
        self._module, self._decoding, self._index = module, decoding, index

    def forward(
        self, hidden: Tensor, *, position_embeddings: Rotary | None, layout: Layout, slot_cache: SlotCache
    ) -> Tensor:
        """Rows `hidden` (1, n, width) after the layer."""
        attention = PassAttention(self._index, layout, slot_cache, position_embeddings)
        made: Tensor = self._decoding(self._module, hidden[0], attention)[None]
        return made


class PassAttention:
    """What the layer of an `index` attends with in a pass: an `Attention`."""

    def __init__(self, index: int, layout: Layout, cache: SlotCache, rotary: Rotary | None) -> None:
        self._index, self._layout, self._cache, self._rotary = index, layout, cache, rotary

    def own(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `Attention.own`."""
        query, key, value = (rows.transpose(0, 1)[None] for rows in (query, key, value))
        return self._attended(query, (key, value), scale)

    def shared(self, query: Tensor, scale: float) -> Tensor:
        """See `Attention.shared`."""
        return self._attended(query.transpose(0, 1)[None], None, scale)

    def _attended(self, query: Tensor, new: tuple[Tensor, Tensor] | None, scale: float) -> Tensor:
        place = self._cache.place(self._index)
        return _attended(query, new, place, (scale, 0.0), self._layout, self._cache)[0]

    def turned(self, rows: Tensor) -> Tensor:
        """See `Attention.turned`."""
        assert self._rotary is not None
        cos, sin = (part[0, :, None] for part in self._rotary)
        made: Tensor = rotate(rows, cos, sin, torch.cat)
        return made

    @property
    def given(self) -> Tensor:
        """See `Attention.given`."""
        assert self._layout.given is not None
        return self._layout.given[: len(self._layout.slots), self._index]

    def across(self, query: Tensor, scale: float, made: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Seen:
        """See `Attention.across`."""
        cache, seen, counts = self._cache, torch.zeros_like(query), query.new_zeros(len(query), 1)
        for stretch in self._layout.stretches:
            if stretch.sides is None:
                continue
            kept = [held[stretch.slot] for held in cache.sides[self._index]]  # (heads, rows, width)
            if (arriving := cache.arriving.get(stretch.slot)) is not None:
                for held, new in zip(kept, made(arriving), strict=True):
                    held[:, : len(arriving)] = new.transpose(0, 1)
            count = cache.beside[stretch.slot] if arriving is None else len(arriving)
            rows = slice(stretch.first, stretch.last)
            first, last, counted = torch.from_numpy(stretch.sides).to(query.device).T[..., None]
            places = torch.arange(count, device=query.device)
            attended = functional.scaled_dot_product_attention(
                query[rows].transpose(0, 1)[None],
                kept[0][None, :, :count],
                kept[1][None, :, :count],
                attn_mask=(first <= places) & (places < last),
                scale=scale,
                enable_gqa=query.shape[1] != kept[0].shape[0],
            )
            seen[rows], counts[rows] = attended[0].transpose(0, 1), counted.to(query)
        return seen, counts


# A compiler does not look into it. That it writes into the cache need not be said: in a pass nothing else reads that.
torch.library.define(
    "cutline::attend", "(Tensor query, Tensor key, Tensor value, Tensor place, float scale, float softcap) -> Tensor"
)


@torch.library.impl("cutline::attend", "default")
def _attend_compiled(query: Tensor, key: Tensor, value: Tensor, place: Tensor, scale: float, softcap: float) -> Tensor:
    return _attended(query, (key, value), int(place), (scale, softcap), *PASSING.get()).contiguous()


@torch.library.register_fake("cutline::attend")  # type: ignore[untyped-decorator]
def _attend_shape(query: Tensor, key: Tensor, value: Tensor, place: Tensor, scale: float, softcap: float) -> Tensor:
    del key, value, place, scale, softcap
    return query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])


AttentionInterface.register(ATTENTION, _attend)
