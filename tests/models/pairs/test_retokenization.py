"""What one vocabulary says in the tokens of another, over texts of any script and tokenizers of four kinds."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutline.models.pairs.retokenization import TokenizedText
from cutline.testing.models.drafters import ODDS, PROSE, SCRIPTS, Says, accepted, drafting, mixed, sayable
from cutline.testing.models.tokenizers import END, KINDS, vocabulary

PAIRS = list(permutations(KINDS, 2))
TEXTS = st.lists(st.sampled_from(SCRIPTS).flatmap(lambda script: st.text(script, max_size=8)), max_size=12).map("".join)


@pytest.mark.parametrize(("own", "target"), PAIRS)
@given(text=TEXTS)
@settings(max_examples=25)
def test_an_answer_of_the_drafter_alone_is_its_text(own: str, target: str, text: str) -> None:
    says = Says(vocabulary(own), text)
    drafted = list(drafting(vocabulary(own), vocabulary(target), says).draft((), 10_000))
    words = vocabulary(target)
    assert words.decode([one.token for one in drafted]) == words.decode(words.encode_plain(says.text))
    assert drafted[-1].token == words.added[END]
    odds = math.prod(one.probability for one in drafted)
    assert odds == pytest.approx(ODDS ** (len(says.tokens) + 1)), "it has the probability of what was said"


@pytest.mark.parametrize(("own", "target"), PAIRS)
@given(text=TEXTS, data=st.data())
@settings(max_examples=25)
def test_a_draft_is_what_the_drafter_says_behind_any_beginning(
    own: str, target: str, text: str, data: st.DataObject
) -> None:
    text = sayable(vocabulary(own), vocabulary(target), text)
    words, says = vocabulary(target), Says(vocabulary(own), text)
    truth = words.encode_plain(text)
    conversation = drafting(vocabulary(own), vocabulary(target), says)
    for _ in range(4):  # forwards and backwards
        place = data.draw(st.integers(0, len(truth)))
        drafted = conversation.draft(truth[:place], data.draw(st.integers(1, 12)))
        tokens = [*truth[:place], *(one.token for one in drafted)]
        assert text.startswith(TokenizedText(words, tokens).text)


@pytest.mark.parametrize(("own", "target"), PAIRS)
@given(text=TEXTS, other=TEXTS, wrong=st.sampled_from([0.1, 0.4]), data=st.data())
@settings(max_examples=10)
def test_whatever_the_drafter_says_it_goes_on_from_the_answer(
    own: str, target: str, text: str, other: str, wrong: float, data: st.DataObject
) -> None:
    """Also from one that has nothing to do with its own, and in the middle of a character."""
    words = vocabulary(target)
    conversation = drafting(vocabulary(own), vocabulary(target), Says(vocabulary(own), text, wrong=wrong))
    for answer in (words.encode_plain(text), words.encode_plain(other), words.encode_plain(text + other)):
        given = answer[: data.draw(st.integers(0, len(answer)))]
        drafted = [one.token for one in conversation.draft(given, 6)]
        assert len(drafted) <= 6
        assert all(token >= 0 for token in drafted)
        assert all(0.0 <= one.probability <= 1.0 for one in conversation.draft(given, 3))


@pytest.mark.parametrize(("own", "target"), PAIRS)
def test_what_is_offered_is_mostly_right(own: str, target: str) -> None:
    """A bar on what retokenizing alone costs: a token given too soon is a wrong one."""
    rng, words = np.random.default_rng(7), (vocabulary(own), vocabulary(target))
    assert accepted(*words, rng.choice(PROSE, 12, replace=False).tolist(), rng) >= 0.96
    assert accepted(*words, [mixed(rng, 60) for _ in range(6)], rng) >= 0.9
