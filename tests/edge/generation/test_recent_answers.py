"""Answers of late: what is found in them, for whom, and for how long."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.edge.generation.recent_answers import (
    ANSWERS,
    GRAM,
    LEAST,
    LONGEST,
    SECONDS,
    TENANTS,
    TOKENS,
    TRIAL,
    Proposal,
    RecentAnswers,
)

answers = st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 3), max_size=12)), max_size=6)


def alike(one: Sequence[int], other: Sequence[int]) -> int:
    count = 0
    while count < min(len(one), len(other), LONGEST) and one[-1 - count] == other[-1 - count]:
        count += 1
    return count


@given(said=answers, answer=st.lists(st.integers(0, 3), max_size=8), question=st.integers(0, 2))
def test_what_is_found_followed_the_longest_end_that_was_said(
    said: list[tuple[int, list[int]]], answer: list[int], question: int
) -> None:
    recent = RecentAnswers(clock=lambda: 0.0)
    for about, tokens in said:
        recent.keep("t", about, tokens)
    found = recent.following("t", question, answer)
    places = [(tokens[:at], tokens[at:]) for _, tokens in said for at in range(GRAM, len(tokens))]
    matches = [(alike(before, answer), after) for before, after in places if alike(before, answer) >= GRAM]
    if not matches:
        assert found is None
    else:
        assert found is not None
        best = max(count for count, _ in matches)
        assert found.matched == best
        assert list(found.tokens) in [after for count, after in matches if count == best]


def test_the_same_question_comes_first_and_the_latest_of_it() -> None:
    recent = RecentAnswers()
    for question, tokens in (("it", [1, 2, 3]), ("it", [1, 2, 4]), ("other", [1, 2, 5])):
        recent.keep("t", question, tokens)
    assert recent.following("t", "it", [1, 2]) == Proposal((4,), 2)
    assert recent.following("t", "new", [1, 2]) == Proposal((5,), 2)
    assert recent.whole("t", "it") == (1, 2, 4)
    assert recent.whole("t", "new") == ()


def test_nobody_sees_what_another_was_answered() -> None:
    recent = RecentAnswers()
    recent.keep("one", "it", [1, 2, 3])
    assert recent.following("other", "it", [1, 2]) is None
    assert recent.whole("other", "it") == ()


def test_an_answer_is_forgotten_after_a_while() -> None:
    now = 0.0
    recent = RecentAnswers(clock=lambda: now)
    recent.keep("t", "it", [1, 2, 3])
    now = SECONDS
    assert recent.whole("t", "it")
    now = SECONDS + 1
    assert recent.whole("t", "it") == ()
    assert recent.following("t", "it", [1, 2]) is None


def test_no_more_is_kept_than_so_much() -> None:
    recent = RecentAnswers()
    for number in range(ANSWERS + 1):
        recent.keep("t", number, [number] * (TOKENS + 1))
    assert recent.whole("t", 0) == ()
    assert len(recent.whole("t", 1)) == TOKENS
    for number in range(TENANTS):
        recent.keep(str(number), 0, [1])
    assert recent.whole("t", 1) == ()


def test_what_was_worth_nothing_is_proposed_now_and_then() -> None:
    recent = RecentAnswers()
    recent.keep("t", "it", [1, 2, 3], right=0.0)
    proposed = [bool(recent.whole("t", "it")) for _ in range(2 * TRIAL)]
    assert proposed.index(True) == TRIAL - 1
    recent.keep("t", "it", [1, 2, 3], right=1.0)
    assert all(recent.whole("t", "it") for _ in range(TRIAL))
    assert pytest.approx(0.1) == LEAST
