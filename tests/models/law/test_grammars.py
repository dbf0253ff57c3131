"""Constraints over a bundle's own tokens: what they allow is what another library says keeps to them."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutline.core.constraint import Constraint
from cutline.demo.bundles import TARGET
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.models.law.grammars import Grammars
from cutline.models.vocabulary import Vocabulary

BUNDLE = Bundle.open(TARGET)
WORDS = Vocabulary.open(BUNDLE)
STOP = BUNDLE.manifest.stop_tokens[0]
GRAMMARS = Grammars(lambda: WORDS, BUNDLE.manifest)


def written(constraint: Constraint, seed: int, most: int = 400) -> str | None:
    """An answer by a model that takes any of the allowed tokens, the stop token where it may; None if it has no end."""
    chance, matcher, tokens = np.random.default_rng(seed), GRAMMARS.compiled(constraint).matcher(), list[int]()
    while len(tokens) < most:
        allowed = np.flatnonzero(matcher.allowed()).tolist()
        assert allowed, "something may always come"
        token = STOP if STOP in allowed else int(chance.choice(allowed))
        if token == STOP:
            return WORDS.decode(tokens)
        tokens.append(token)
        matcher.consume([token])
    return None


leaves = st.sampled_from(
    [
        {"type": "integer", "minimum": -9, "maximum": 99},
        {"type": "string", "maxLength": 6},
        {"type": "boolean"},
        {"type": "null"},
        {"enum": ["red", 7, None, {"a": [1]}]},
        {"const": "<end_of_utterance>"},
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "string", "pattern": "^[a-c]{2,3}$"},
    ]
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    properties = st.dictionaries(st.sampled_from(["a", "b", "digits", "é"]), inner, min_size=1, max_size=3)
    return (
        st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 3))
        | st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=2))
        | st.builds(
            lambda some: {"type": "object", "properties": some, "required": list(some), "additionalProperties": False},
            properties,
        )
    )


@settings(max_examples=60)
@given(schema=st.recursive(leaves, containers, max_leaves=5), seed=st.integers(0, 99))
def test_whatever_is_written_keeps_to_the_schema(schema: dict[str, Any], seed: int) -> None:
    text = written(Constraint.json_schema(schema), seed)
    if text is not None:
        compiled = GRAMMARS.compiled(Constraint.json_schema(schema))
        jsonschema.validate(json.loads(text), schema)
        assert compiled.accepts(text, WORDS)
        assert compiled.accepts(json.dumps(json.loads(text), indent=2), WORDS)
        assert not compiled.accepts(text + "]", WORDS)


@pytest.mark.parametrize("pattern", ["[0-9]{1,3}", "(red|blue) card", "a?b?c", "[^\\s<]{2}"])
@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_written_matches_the_pattern(pattern: str, seed: int) -> None:
    text = written(Constraint.regex(pattern), seed)
    assert text is None or re.fullmatch(pattern, text) is not None


def test_a_choice_is_one_of_its_texts() -> None:
    choices = ["yes", "no", 'it says "no"', "yes, twice\n", "<image>", "7"]
    found = {written(Constraint.choice(choices), seed) for seed in range(200)}
    assert found <= set(choices)
    assert len(found) > 3


def test_a_grammar_of_its_own() -> None:
    lark = 'start: COLOUR (", " COLOUR)* "."\nCOLOUR: "red" | "blue"'
    for seed in range(20):
        text = written(Constraint.lark(lark), seed)
        assert text is None or re.fullmatch(r"(red|blue)(, (red|blue))*\.", text)


def test_no_text_of_a_constraint_becomes_a_special_token() -> None:
    matcher = GRAMMARS.compiled(Constraint.choice(["<end_of_utterance>", "<image>"])).matcher()
    assert not set(np.flatnonzero(matcher.allowed())) & set(WORDS.added.values())


def test_an_answer_that_does_not_keep_to_it_is_bad_input() -> None:
    compiled = GRAMMARS.compiled(Constraint.regex("[0-9] [0-9]"))
    begun = WORDS.encode("3")
    assert compiled.matcher(begun).allowed().any()
    for wrong in (WORDS.encode("x"), (*begun, STOP), (*WORDS.encode("3 4"), STOP, STOP), (STOP,)):
        with pytest.raises(InputError, match="does not keep"):
            compiled.matcher(wrong)


def test_matchers_of_one_constraint_do_not_share_their_state() -> None:
    compiled = GRAMMARS.compiled(Constraint.regex("[0-9]{2}"))
    first, second = compiled.matcher(), compiled.matcher()
    before = second.allowed()
    first.consume(WORDS.encode("47"))
    assert np.flatnonzero(first.allowed()).tolist() == list(BUNDLE.manifest.stop_tokens)
    assert (second.allowed() == before).all()


def test_a_complete_answer_can_only_end() -> None:
    matcher = GRAMMARS.compiled(Constraint.choice(["7"])).matcher((*WORDS.encode("7"), STOP))
    assert np.flatnonzero(matcher.allowed()).tolist() == list(BUNDLE.manifest.stop_tokens)


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint.regex("(a(b"),
        Constraint.regex("(((((a{1,99}){1,99}){1,99}){1,99}){1,99}){1,99}"),
        Constraint.lark("start: missing"),
        Constraint.lark('start: start start | "a"'),
        Constraint.json_schema({"$ref": "#/$defs/missing"}),
        Constraint.json_schema({"$ref": "http://example.org/schema"}),
        Constraint.json_schema({"type": "nothing"}),
        Constraint.json_schema({"type": "string", "format": "idn-email"}),
        Constraint.json_schema({"type": "object", "properties": {str(n): {"pattern": ".*a.{99}"} for n in range(99)}}),
    ],
)
def test_what_does_not_compile_within_bounds_is_refused_in_a_line(constraint: Constraint) -> None:
    try:
        matcher = GRAMMARS.compiled(constraint).matcher()
        for token in WORDS.encode("aaaa"):
            matcher.allowed()
            matcher.consume([token])
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017 (some do compile)
        assert len(str(error)) < 400  # noqa: PT017
