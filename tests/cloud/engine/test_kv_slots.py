"""Which slot a session gets: held against brute force over what every row depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.cloud.engine.image_cache import Picture
from cutline.cloud.engine.kv_slots import LEAST_COPIED, Content, SlotPlace, Slots, shared
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.core.sampling import Sampling
from cutline.models.families import COUNTED, Positions

IMAGE = 9  # the image token; each image has two of them, with a 7 between
SIZE = 3


def request(parts: Sequence[int | bytes | None], answer: Sequence[int] = (), tenant: str = "") -> SessionRequest:
    """Parts are tokens of text and keys of images; None is an image that nobody knows."""
    tokens: list[int] = []
    pictures = []
    for part in parts:
        if isinstance(part, int):
            tokens.append(part)
            continue
        pictures.append(Picture(part, (0, 0), len(tokens), len(tokens) + SIZE - 1))
        tokens += [IMAGE, 7, IMAGE]
    return SessionRequest(
        tokens=(*tokens, *answer),
        prompt_length=len(tokens),
        max_tokens=5,
        sampling=Sampling(),
        effort=1.0,
        pictures=tuple(pictures),
        tenant=tenant,
    )


def meanings(asked: SessionRequest) -> list[object]:
    """What each row depends on beside those before it; one of an unknown image is like no other."""
    made: list[object] = list(asked.tokens)
    for picture in asked.pictures:
        for at in range(picture.first, picture.last + 1):
            if asked.tokens[at] == IMAGE:
                made[at] = object() if picture.key is None else (picture.key, at - picture.first)
    return made


def content(asked: SessionRequest) -> Content:
    found = Content.of(asked)
    assert found is not None
    return found


def test_rows_at_other_positions_are_not_shared() -> None:
    """Pieces of a video are the same where their times are not."""
    asked = request([1, b"cat", 2])
    other = np.arange(len(asked.tokens))[None].repeat(3, 0)
    here, there = (
        content(dataclasses.replace(asked, positions=Positions(made)))
        for made in (other, other + np.where(other < 3, 0, [[5], [0], [0]]))
    )
    assert shared(here, here) == len(asked.tokens)
    assert shared(here, there) == 3


parts = st.lists(st.sampled_from([1, 2, 2, 2, b"cat", b"dog", None]), min_size=1, max_size=6)
answers = st.lists(st.sampled_from([2, 7, IMAGE]), max_size=4)


@pytest.mark.threat("caches")
@given(parts, answers, parts, answers, st.booleans(), st.sampled_from(["", "x"]))
def test_what_is_shared_is_what_rows_depend_on(
    first: list[int | bytes | None],
    answer: list[int],
    second: list[int | bytes | None],
    other: list[int],
    longer: bool,
    tenant: str,
) -> None:
    """An image token in an answer is a token like any other, and no image."""
    one = request(first, answer)
    two = request([*first, *second] if longer else second, other, tenant)
    same = [a == b for a, b in zip(meanings(one), meanings(two), strict=False)]
    expected = same.index(False) if False in same else len(same)
    assert shared(content(one), content(two)) == (0 if tenant else expected)


def test_a_conversation_goes_on_in_its_slot_and_a_branch_in_a_copy() -> None:
    slots = Slots(4)
    system = list(range(20, 20 + LEAST_COPIED))
    told = request([*system, b"cat", *range(50, 60)])
    assert slots.take(content(told), {}) == SlotPlace(0, 0, 0)
    left = [*told.tokens, *range(60, 80)]
    slots.give(0, left)
    more = request([*system, b"cat", *range(50, 60), *range(60, 80), 3])
    assert slots.take(content(more), {}) == SlotPlace(0, 0, len(left))
    # The same image while that session runs, of which so far one row less stands.
    branch = request([*system, b"cat", *range(50, 60), 99])
    assert slots.take(content(branch), {0: len(told.tokens) - 1}) == SlotPlace(1, 0, len(told.tokens) - 1)
    slots.give(0, left)
    slots.give(1, branch.tokens)
    # Little in common with either: what they hold is worth more than a place.
    other = request([*system, b"dog", 1])
    assert slots.take(content(other), {}) == SlotPlace(2, 0, LEAST_COPIED)
    assert slots.take(content(request([*system, b"dog", 1], tenant="x")), {}) == SlotPlace(3, 3, 0)


def test_what_a_running_session_has_decoded_is_nobodys_yet() -> None:
    slots = Slots(4)
    long, short = request(range(40)), request(range(32))
    slots.take(content(long), {})
    slots.take(content(short), {0: 40})
    again = slots.take(content(request([*range(36), 99])), {0: 50, 1: 45})
    assert again is not None
    assert (again.source, again.reused) == (0, 36)


def test_what_was_used_longest_ago_goes_first_and_the_lowest_of_those() -> None:
    slots = Slots(6)
    for number in range(6):
        assert slots.take(content(request([1, 2, number + 10])), {}) is not None
    assert slots.take(None, {}) is None
    for number in (5, 2, 4, 1, 0, 3):
        slots.give(number, (number + 10, 2, 1))
    assert [slots.take(None, {}) for _ in range(3)] == [SlotPlace(2, 2, 0), SlotPlace(1, 1, 0), SlotPlace(4, 4, 0)]
    slots.give(1, ())  # it broke: nothing is left there
    assert slots.take(content(request([1, 2, 3])), {}) == SlotPlace(1, 1, 0)


def test_rows_at_other_positions_are_not_the_same() -> None:
    slots = Slots(1)
    asked = request([1, 2, 3, 4, 5, 6])
    slots.take(content(asked), {})
    slots.give(0, asked.tokens)
    turned = Positions(np.array([[0, 1, 2, 9, 10, 11]] * 3))
    straight = Positions(np.tile(np.arange(6), (3, 1)))
    slots = Slots(1)
    slots.take(content(dataclasses.replace(asked, positions=straight)), {})
    slots.give(0, asked.tokens)
    assert slots.take(content(dataclasses.replace(asked, positions=turned)), {}) == SlotPlace(0, 0, 3)


def test_sessions_whose_rows_nobody_can_compare_leave_nothing() -> None:
    rows = np.zeros((3, 2), np.float32)
    assert Content.of(dataclasses.replace(request([1, 2, 3]), deep=True, boundary=rows)) is None
    assert Content.of(dataclasses.replace(request([1, 2, 3]), boundary=rows)) is None
    assert request([1]).positions is COUNTED
