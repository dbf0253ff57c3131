"""A decoder whose states do not rewind goes back all the same: to any token, and on from there as if it had not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutline.edge.inference.decoder import Decoder, DecoderState
from cutline.edge.inference.kv_cache import Rows
from cutline.edge.inference.layer_states import FEW, PIECE
from cutline.models.bundle import Bundle

WORDS = 200


@pytest.fixture(scope="module")
def prefix(targets: Callable[[str], Bundle]) -> Decoder:
    """Three layers without attention, and one with it."""
    return Decoder.open_prefix(targets("qwen3.5"), "decoder.4", threads=1)


def fresh(decoder: Decoder, tokens: list[int]) -> Rows:
    """What a state that never went back makes of them."""
    return decoder.new_state().extend(decoder.embed(tokens))


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1)), min_size=1, max_size=6))
def test_going_back_leaves_no_trace(prefix: Decoder, steps: list[tuple[int, float]]) -> None:
    """Some tokens more, and back to a share of all that there are; at times twice without a token between."""
    state, tokens = prefix.new_state(), list[int]()
    dice = np.random.default_rng(len(steps))
    for count, share in steps:
        new = dice.integers(0, WORDS, count).tolist()
        made = state.extend(prefix.embed(new))
        tokens += new
        np.testing.assert_allclose(made, fresh(prefix, tokens)[-count:], atol=1e-4)
        state.rollback(int(len(tokens) * (1 + share) / 2))
        state.rollback(int(len(tokens) * share))
        tokens = tokens[: state.position]


def test_few_rows_are_run_again_with_new_ones_and_many_before_them(
    prefix: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, runs, dice = prefix.new_state(), list[int](), np.random.default_rng(0)
    run = DecoderState._run

    def noted(self: DecoderState, rows: Rows, first: int, wanted: int) -> Rows:
        runs.append(len(rows))
        return run(self, rows, first, wanted)

    monkeypatch.setattr(DecoderState, "_run", noted)
    state.extend(prefix.embed(dice.integers(0, WORDS, 2 * PIECE).tolist()))
    for drafted in range(4):
        state.extend(prefix.embed([drafted]))
    state.rollback(2 * PIECE + 3)
    state.extend(prefix.embed([7]))
    assert runs == [2 * PIECE, 1, 1, 1, 1, 3 + 1]
    state.rollback(PIECE + FEW)  # before all that is kept but the empty conversation
    state.extend(prefix.embed([8]))
    assert runs[6:] == [PIECE, FEW + 1]
    state.rollback(PIECE + 1)  # which is kept now
    state.extend(prefix.embed([9]))
    assert runs[8:] == [1 + 1]
