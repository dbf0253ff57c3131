"""Attention of many sessions in few calls: each row sees what it would see alone, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from cutline.cloud.model import attention
from cutline.cloud.model.attention import FEW, Layout, _attend, cost, gather, sort_key
from cutline.cloud.model.batch import Stretch
from cutline.cloud.model.state.slot_cache import SlotCache
from cutline.models.families.layer_state import KEYS_VALUES
from cutline.models.sight import CAUSAL, Block, Sight

SLOTS, HEADS, SHARED, CONTEXT, WIDTH = 12, 6, 2, 64, 8
MODULE = SimpleNamespace(layer_idx=3, scaling=0.3)


def stretches_of(
    sessions: dict[int, tuple[int, int]], blocks: dict[int, tuple[Block, ...]] | None = None
) -> list[Stretch]:
    """Of `sessions`, (start, count) by slot, as a pass lays them out, with the `blocks` of some."""
    stretches: list[Stretch] = []
    for slot in sorted(sessions, key=lambda slot: sort_key(sessions[slot][1], slot)):
        first, (start, count) = (stretches[-1].last if stretches else 0), sessions[slot]
        stretches.append(Stretch(first, first + count, slot, start, (blocks or {}).get(slot, ())))
    return stretches


def random_cache(dtype: torch.dtype) -> SlotCache:
    cache = SlotCache((SLOTS, SHARED, CONTEXT, WIDTH), [KEYS_VALUES], first=3, like=torch.empty(0, dtype=dtype))
    for held in (*cache.keys, *cache.values):
        held.normal_()
    return cache


def attended(
    cache: SlotCache,
    stretches: list[Stretch],
    *given: torch.Tensor,
    sight: Sight = CAUSAL,
    softcap: float | None = None,
) -> torch.Tensor:
    layout = Layout(stretches, cache, sights=[(sight, HEADS // SHARED)])
    query, key, value = given
    made = _attend(MODULE, query, key, value, None, layout=layout, slot_cache=cache, softcap=softcap)
    return made[0][0].transpose(0, 1)


def rows_of(total: int, heads: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(1, heads, total, WIDTH, dtype=dtype)


def sees(sight: Sight, blocks: tuple[Block, ...], row: int, place: int) -> bool:
    """Whether the row at one position sees another, by the words of `Sight`."""
    together = sight.blocks != "shut" and any(begin <= row < end and begin <= place < end for begin, end in blocks)
    near = sight.window == 0 or place > row - sight.window
    if together and sight.blocks == "whole":
        return True
    return near and (place <= row or together)


def by_hand(
    cache: SlotCache,
    stretch: Stretch,
    query: torch.Tensor,
    *,
    sight: Sight = CAUSAL,
    softcap: float | None = None,
) -> torch.Tensor:
    """Softmax written out, one row and one head at a time, of what stands in the cache."""
    made = torch.empty(HEADS, stretch.count, WIDTH, dtype=torch.float64)
    for row in range(stretch.count):
        at = stretch.start + row
        seen = torch.tensor([place for place in range(stretch.end) if sees(sight, stretch.blocks, at, place)])
        for head in range(HEADS):
            keys, values = (
                held[0][stretch.slot, head // (HEADS // SHARED), seen].double() for held in (cache.keys, cache.values)
            )
            scores = keys @ query[0, head, stretch.first + row].double() * MODULE.scaling
            if softcap is not None:
                scores = softcap * (scores / softcap).tanh()
            made[head, row] = scores.softmax(0) @ values
    return made


SESSIONS = st.dictionaries(
    st.integers(0, SLOTS - 1), st.tuples(st.integers(0, 30), st.integers(1, FEW + 8)), min_size=1, max_size=SLOTS
)


@settings(max_examples=60, deadline=None)
@given(SESSIONS)
def test_every_row_attends_as_it_would_alone(sessions: dict[int, tuple[int, int]]) -> None:
    torch.manual_seed(0)
    cache, stretches = random_cache(torch.float32), stretches_of(sessions)
    total = stretches[-1].last
    query, key, value = (rows_of(total, heads, torch.float32) for heads in (HEADS, SHARED, SHARED))
    got = attended(cache, stretches, query, key, value)
    for stretch in stretches:
        rows, written = slice(stretch.first, stretch.last), slice(stretch.start, stretch.end)
        assert torch.equal(cache.keys[0][stretch.slot, :, written], key[0, :, rows])
        assert torch.equal(cache.values[0][stretch.slot, :, written], value[0, :, rows])
        torch.testing.assert_close(got[:, rows].double(), by_hand(cache, stretch, query), atol=1e-5, rtol=0)


SIGHTS = [Sight(window, blocks) for window in (0, 1, 5) for blocks in ("shut", "ahead", "whole")]


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("softcap", [None, 0.7])
@settings(max_examples=12, deadline=None)
@given(sessions=SESSIONS, lengths=st.lists(st.integers(1, 20), min_size=3, max_size=3))
def test_every_row_sees_what_layers_of_its_kind_see(
    sight: Sight, softcap: float | None, sessions: dict[int, tuple[int, int]], lengths: list[int]
) -> None:
    """A session's rows begin and end at seams of its prompt, as the scheduler has it."""
    torch.manual_seed(0)
    attention._CAPPED_ROWS = 5  # so that scores are written out in several parts
    blocks = {}
    for slot, (start, count) in sessions.items():
        edges = [start // 2, start, start + min(count, lengths[slot % 3]), start + count]
        pairs = ((0, edges[0]), (edges[0], edges[1]), (edges[1], edges[2]), (edges[2], edges[3]))
        blocks[slot] = tuple((begin, end) for begin, end in pairs[slot % 2 :: 2] if begin < end)
    cache, stretches = random_cache(torch.float32), stretches_of(sessions, blocks)
    given_rows = [rows_of(stretches[-1].last, heads, torch.float32) for heads in (HEADS, SHARED, SHARED)]
    got = attended(cache, stretches, *given_rows, sight=sight, softcap=softcap)
    for stretch in stretches:
        right = by_hand(cache, stretch, given_rows[0], sight=sight, softcap=softcap)
        torch.testing.assert_close(got[:, stretch.first : stretch.last].double(), right, atol=1e-5, rtol=0)


def test_a_neighbours_broken_numbers_stay_its_own() -> None:
    """Also those of a slot between, of nobody here."""
    torch.manual_seed(0)
    cache = random_cache(torch.float32)
    cache.keys[0][1] = cache.values[0][1] = torch.nan
    cache.keys[0][3, :, :20] = torch.inf
    stretches = stretches_of({0: (9, 1), 2: (12, 1), 3: (20, 1)})
    query, key, value = (rows_of(3, heads, torch.float32) for heads in (HEADS, SHARED, SHARED))
    got = attended(cache, stretches, query, key, value)
    assert len(gather(stretches)) == 1
    for stretch in stretches[:2]:
        rows = slice(stretch.first, stretch.last)
        torch.testing.assert_close(got[:, rows].double(), by_hand(cache, stretch, query), atol=1e-5, rtol=0)


def test_what_another_session_left_in_a_slot_is_gone() -> None:
    cache = SlotCache((2, SHARED, CONTEXT, WIDTH), [KEYS_VALUES], first=3, like=torch.empty(0))
    cache.note([Stretch(0, 30, 1, 0)])
    cache.keys[0][1, :, :30] = cache.values[0][1, :, :30] = torch.nan
    cache.note([Stretch(0, 5, 1, 0)])
    assert not cache.keys[0].isnan().any()
    assert not cache.values[0].isnan().any()


@given(SESSIONS)
def test_calls_have_each_session_once_and_read_no_more_than_they_save(sessions: dict[int, tuple[int, int]]) -> None:
    stretches = stretches_of(sessions)
    groups = gather(stretches)
    assert [stretch for group in groups for stretch in group] == stretches
    assert sum(map(cost, groups)) <= sum(cost([stretch]) for stretch in stretches)
    for group in groups:
        assert len(group) == 1 or max(stretch.count for stretch in group) < FEW


def test_sessions_of_one_new_row_attend_in_one_call() -> None:
    assert len(gather(stretches_of({slot: (20 + 3 * slot, 1) for slot in range(SLOTS)}))) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_multiply_as_unpacked_ones(dtype: torch.dtype) -> None:
    from cutline.cloud.model.packing import PackedLinear, pack

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(48, 80), torch.nn.Sequential(torch.nn.Linear(80, 7, bias=False)))
    model.to(dtype).requires_grad_(False)
    first: Any = model[0]
    rows = {shape: torch.randn(*shape, 48).to(dtype) for shape in ((1,), (3, 5), (40,), (1, 2, 3))}
    expected = {shape: functional.linear(given, first.weight, first.bias) for shape, given in rows.items()}
    whole = {shape: model(given) for shape, given in rows.items()}
    pack(model, dtype)
    if dtype is torch.float32:
        assert isinstance(model[0], PackedLinear)
    with torch.inference_mode():
        for shape, given in rows.items():
            tolerance = 1e-5 if dtype is torch.float32 else 0.05
            torch.testing.assert_close(model[0](given), expected[shape], atol=tolerance, rtol=tolerance)
            torch.testing.assert_close(model(given), whole[shape], atol=tolerance, rtol=tolerance)
