from __future__ import annotations

import json
from decimal import Decimal
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.core.agreement.measures import Wording, anls, is_own, measure_named
from cutline.core.agreement.texts import choice_in, distance, normalized, numbers_in, same_json, similarity
from cutline.errors import InputError

TEXTS = st.text("abc ", max_size=9)


def agree(name: str, ours: str, theirs: str) -> bool:
    return measure_named(name).agrees(Wording(ours), Wording(theirs))


def by_definition(one: str, other: str) -> int:
    """The Levenshtein distance as its recursive definition has it."""

    @cache
    def of(i: int, j: int) -> int:
        if min(i, j) == 0:
            return max(i, j)
        return min(of(i - 1, j) + 1, of(i, j - 1) + 1, of(i - 1, j - 1) + (one[i - 1] != other[j - 1]))

    return of(len(one), len(other))


@given(one=TEXTS, other=TEXTS)
def test_the_distance_is_that_of_its_definition(one: str, other: str) -> None:
    assert distance(one, other) == by_definition(one, other)


@pytest.mark.parametrize(
    ("one", "other", "apart"), [("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2), ("straße", "strasse", 2)]
)
def test_known_distances(one: str, other: str, apart: int) -> None:
    assert distance(one, other) == apart


def test_anls_counts_nothing_below_one_half() -> None:
    assert anls(" Hello ", "hello") == 1.0
    assert anls("abcd", "abxy") == 0.5
    assert similarity("abcd", "axyz") == 0.25
    assert anls("abcd", "axyz") == 0.0
    assert anls("", "") == 1.0


def test_anls_agrees_from_its_bar_on() -> None:
    ours, theirs = "the red ballon", "the red balloon"  # one of 15
    assert agree("anls", ours, theirs)
    assert agree("anls:0.93", ours, theirs)
    assert not agree("anls:0.94", ours, theirs)
    assert not agree("anls:0.5", "abcd", "axyz")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("A red car.", "a RED car"),
        ("  two\n cars ", "two cars"),
        ("“Yes”, she said!", "yes she said"),
        ("**7**", "7"),
        ("ＯＫ", "ok"),  # noqa: RUF001 (a wide form, which is the same word)
        ("Straße", "STRASSE"),
    ],
)
def test_texts_that_say_the_same(ours: str, theirs: str) -> None:
    assert agree("text", ours, theirs)
    assert agree("text", theirs, ours)


@pytest.mark.parametrize(("ours", "theirs"), [("-5", "5"), ("3.5", "35"), ("a car", "car"), ("no", "yes"), ("", "a")])
def test_texts_that_do_not(ours: str, theirs: str) -> None:
    assert not agree("text", ours, theirs)


@given(st.text())
def test_a_normalized_text_stays_as_it_is(text: str) -> None:
    once = normalized(text)
    assert normalized(once) == once


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("There are 3 cars and 12.50 left.", ["3", "12.50"]),
        ("1,234,567 of 1,2 or 1,2345", ["1234567", "1", "2", "1", "2345"]),
        ("between -5 and \u22127", ["-5", "-7"]),
        ("2020-05", ["2020", "5"]),
        ("1,234, and 5", ["1234", "5"]),
        ("\u0663", ["3"]),  # an Arabic digit
        ("none", []),
    ],
)
def test_numbers_in_a_text(text: str, numbers: list[str]) -> None:
    assert numbers_in(text) == tuple(map(Decimal, numbers))


@given(st.integers(-(10**9), 10**9))
def test_a_number_is_found_however_it_is_written(number: int) -> None:
    assert agree("number", f"It is {number:,}.", f"{number}.0 metres")


def test_what_has_no_number_agrees_with_nothing() -> None:
    assert not agree("number", "many", "many")
    assert not agree("number", "3 cars", "3 of 4 cars")


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("Yes, it is.", "yes"),
        ("No!", "no"),
        ("not sure", "not sure"),
        ("nothing", None),
        ("yes and no", None),
        ("", None),
        ("no, no, no", "no"),
    ],
)
def test_the_choice_in_a_text(text: str, choice: str | None) -> None:
    assert choice_in(text, ("yes", "no", "not sure", "sure")) == choice


def test_choices_agree_by_their_names() -> None:
    assert agree("choice:Yes,No", "yes, certainly", "Yes.")
    assert not agree("choice:yes,no", "maybe", "maybe")
    assert measure_named("choice:Yes, No").name == "choice:yes,no"


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(one=values, other=values)
def test_json_is_the_same_where_its_canonical_texts_are(one: object, other: object) -> None:
    canonical = [json.dumps(value, sort_keys=True) for value in (one, other)]
    assert same_json(json.dumps(one), json.dumps(other, indent=2)) == (canonical[0] == canonical[1])


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ("1", "1.0", True),
        ("1", "true", False),
        ("[0]", "[false]", False),
        ("{", "{", False),
        ("NaN", "NaN", False),
        ("[" * 5000, "[" * 5000, False),
    ],
)
def test_json_of_a_kind(ours: str, theirs: str, same: bool) -> None:
    assert agree("json", ours, theirs) == same


def test_tokens_are_compared_one_by_one_and_unknown_ones_never_agree() -> None:
    tokens = measure_named("tokens")
    assert tokens.agrees(Wording("a", (1, 2)), Wording("b", (1, 2)))
    assert not tokens.agrees(Wording("a", (1, 2)), Wording("a", (1, 2, 3)))
    assert not tokens.agrees(Wording("a"), Wording("a"))
    assert tokens.of_tokens


@pytest.mark.parametrize("name", ["tokens", "text", "number", "choice:yes,no", "json", "anls:0.8"])
def test_a_measures_name_says_all_of_it(name: str) -> None:
    assert measure_named(name).name == name
    assert measure_named(measure_named(name).name).name == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("meaning", "give tokens, text"),
        ("", "give tokens, text"),
        ("text:0.5", "nothing behind"),
        ("choice", "two choices or more"),
        ("choice:yes", "two choices or more"),
        ("choice:yes,", "two choices or more"),
        ("anls:0.4", "0.5 to 1"),
        ("anls:nan", "0.5 to 1"),
        ("anls:much", "0.5 to 1"),
        ("judge.py:same", "is not here"),
    ],
)
def test_what_is_no_measure_is_said_in_a_line(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        measure_named(name)
    assert "\n" not in str(raised.value)


def test_a_function_of_somebodys_is_known_by_its_name() -> None:
    assert is_own("folder/judge.py:same")
    assert not is_own("choice:a.py,b")
