"""States that do not rewind: whatever is drafted, dropped, broken or gone on from, they are those of what stands."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cutline.cloud.model.batch import Stretch
from cutline.cloud.model.state.recurrences import Recurrences
from cutline.models.families.layer_state import Recurrence, States

LAYERS = (2, 5)
WIDTH = 3


def step(rows: Tensor, states: States) -> tuple[Tensor, States]:
    """What was kept fades, and a row sees it with its own added: so all before it count, in order."""
    (held,), seen = states, []
    for row in rows:
        held = 0.5 * held + row
        seen.append(held)
    return torch.stack(seen) if seen else rows, (held,)


def rows_of(tokens: Sequence[int], layer: int) -> Tensor:
    return torch.tensor([[token, token * layer, 1.0] for token in tokens]).view(-1, WIDTH)


def by_hand(tokens: Sequence[int], layer: int) -> Tensor:
    return step(rows_of(tokens, layer), (torch.zeros(WIDTH),))[0]


class Slot:
    """A session: the `tokens` that stand, and new ones."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.tokens: list[int] = []

    def stretch(self, first: int, sure: list[int], drafted: list[int]) -> Stretch:
        count = len(sure) + len(drafted)
        return Stretch(first, first + count, self.number, len(self.tokens), drafted=len(drafted))


def made() -> Recurrences:
    return Recurrences(dict.fromkeys(LAYERS, Recurrence(WIDTH, {"held": (WIDTH,)})), 3, torch.empty(0))


def run(states: Recurrences, passing: list[tuple[Slot, list[int], list[int]]], layers: Sequence[int] = LAYERS) -> None:
    """A pass through `layers`, whose rows must see all that stands before them."""
    stretches, first = [], 0
    for slot, sure, drafted in passing:
        stretches.append(slot.stretch(first, sure, drafted))
        first = stretches[-1].last
    states.begin(stretches)
    for layer in layers:
        rows = torch.cat([rows_of([*sure, *drafted], layer) for _, sure, drafted in passing])
        seen = states.through(layer, stretches, rows, step)
        for stretch, (slot, sure, drafted) in zip(stretches, passing, strict=True):
            expected = by_hand([*slot.tokens, *sure, *drafted], layer)[len(slot.tokens) :]
            torch.testing.assert_close(seen[stretch.first : stretch.last], expected)


Passing = tuple[list[int], list[int], int, int]  # sure tokens and drafted ones, how many are right, and breaks
TOKENS = st.lists(st.integers(1, 9), max_size=5)
PASSES = st.lists(st.tuples(TOKENS.filter(bool), TOKENS, st.integers(0, 5), st.sampled_from((0, 0, 1, 2))), max_size=6)


@settings(deadline=None)
@given(PASSES, PASSES)
def test_rows_see_what_stands_and_nothing_else(one: list[Passing], other: list[Passing]) -> None:
    """Two sessions in a pass, each with drafts of which some are right; some passes break, early or at their end."""
    states, slots = made(), (Slot(0), Slot(2))
    for both in zip(one, other, strict=False):
        passing = [(slot, sure, drafted) for slot, (sure, drafted, _, _) in zip(slots, both, strict=True)]
        for broken in range(both[0][3]):  # nothing of it counts, and it is run again, each alone
            run(states, passing, LAYERS[: 1 + broken])
            for alone in passing:
                run(states, [alone])
        run(states, passing)
        for (slot, sure, drafted), (_, _, right, _) in zip(passing, both, strict=True):
            slot.tokens += [*sure, *drafted[:right]]


@given(TOKENS.filter(bool), TOKENS, st.data())
def test_who_goes_on_from_another_sees_what_that_one_saw(
    sure: list[int], drafted: list[int], data: st.DataObject
) -> None:
    states, slot = made(), Slot(0)
    run(states, [(slot, sure, drafted)])
    slot.tokens = [*sure, *drafted]
    asked = data.draw(st.integers(0, len(slot.tokens)))
    count = states.kept(0, asked)
    assert count == (asked if asked >= len(sure) else 0)
    for number in (1, 0):  # in another slot, and in the same
        other = Slot(number)
        states.resume(number, 0, count)
        other.tokens = slot.tokens[:count]
        run(states, [(other, [7, 8], [9])])


def test_rows_that_were_dropped_are_not_gone_on_from() -> None:
    states, slot = made(), Slot(0)
    run(states, [(slot, [1, 2], [3, 4, 5])])
    slot.tokens = [1, 2, 3]
    run(states, [(slot, [6], [7])])
    slot.tokens += [6]
    assert states.kept(0, 4) == 4
    assert states.kept(0, 3) == 3, "as it stood before the last pass"
    assert states.kept(0, 1) == 0


def test_states_that_nobody_has_are_an_error() -> None:
    states, slot = made(), Slot(0)
    run(states, [(slot, [1, 2, 3], [])])
    for position in (1, 2, 4):
        with pytest.raises(LookupError, match=f"position {position}"):
            states.begin([Stretch(0, 1, 0, position)])
