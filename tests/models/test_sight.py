"""Seams of prompts: pieces end at them, and no more of a prompt is shared than saw the same in both."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cutline.models.sight import Block, Sight, piece_end, shared_seam

LENGTH = 40


@st.composite
def prompts(draw: st.DrawFn) -> tuple[Block, ...]:
    """Blocks of a prompt of LENGTH tokens, in order and apart."""
    edges = sorted(draw(st.sets(st.integers(0, LENGTH), max_size=8)))
    kept = draw(st.lists(st.booleans(), min_size=9, max_size=9))
    return tuple(pair for pair, keep in zip(pairwise(edges), kept, strict=False) if keep)


def seen(blocks: tuple[Block, ...]) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Which rows see which, in a layer where a block is whole."""
    first, last = Sight(0, "whole").interval(blocks, 0, LENGTH)
    places = np.arange(LENGTH)
    return np.asarray((first[:, None] <= places) & (places <= last[:, None]))


@given(prompts(), st.integers(1, 17))
def test_pieces_make_up_a_prompt_and_end_where_no_row_sees_one_behind(blocks: tuple[Block, ...], most: int) -> None:
    visible, ends = seen(blocks), [0]
    while ends[-1] < LENGTH:
        ends.append(min(piece_end(blocks, ends[-1], most), LENGTH))
        assert ends[-1] > ends[-2]
        assert not visible[: ends[-1], ends[-1] :].any()
    longest = max([most, *(end - begin for begin, end in blocks)])
    assert all(end - start <= longest for start, end in pairwise(ends))


@given(prompts(), prompts(), st.integers(0, LENGTH))
def test_shared_rows_saw_the_same_in_both(blocks: tuple[Block, ...], others: tuple[Block, ...], count: int) -> None:
    shared = shared_seam(blocks, others, count)
    assert 0 <= shared <= count
    mine, theirs = seen(blocks), seen(others)
    assert (mine[:shared] == theirs[:shared]).all()
    assert not mine[:shared, shared:].any()
    assert not theirs[:shared, shared:].any()


@given(prompts(), st.integers(0, LENGTH))
def test_all_is_shared_up_to_a_seam_of_prompts_with_the_same_blocks(blocks: tuple[Block, ...], count: int) -> None:
    inside = any(begin < count < end for begin, end in blocks)
    assert (shared_seam(blocks, blocks, count) == count) == (not inside)
