"""What a client may ask an answer to keep to: bounded, and refused by name, before anything is compiled."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.core.constraint import MAX_BYTES, MAX_CHOICES, MAX_COUNT, MAX_DEPTH, Constraint, Grammar
from cutline.errors import InputError


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"not": {}}, "with not are not served"),
        ({"properties": {"a": {"uniqueItems": True, "contains": {}}}}, "with contains, uniqueItems"),
        ({"allOf": [{"if": {}, "then": {}}]}, "with if, then"),
        ({"$defs": {"a": {"x-guidance": {}}}, "$ref": "#/$defs/a"}, "with x-guidance"),
        ({"type": "array", "maxItems": MAX_COUNT + 1}, "maxItems is 1001; give 1000 at most"),
        ({"type": "string", "pattern": "a{5000}"}, "repeats something 5000 times"),
        ({"type": "string", "pattern": "(?=a)b"}, "looks around itself"),
        ({"patternProperties": {"a{9999999999}": {}}}, "repeats something"),
        ({"enum": list(range(MAX_CHOICES + 1))}, "enums have 1001 values"),
        (nested(MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} deep"),
        ({"const": "x" * MAX_BYTES}, "give 65536 at most"),
        ("text", "is an object, or true"),
        ([], "is an object, or true"),
        (False, "is an object, or true"),
        ({"const": float("nan")}, "is no JSON"),
        ({"const": object()}, "is no JSON"),
    ],
)
def test_a_schema_that_is_not_served_is_refused_by_name(schema: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Constraint.json_schema(schema)


def test_formats_of_the_clients_own_are_notes_to_people() -> None:
    """Not so those that JSON Schema has, nor what only looks like one: a property's name, or a value."""
    note, time = {"type": "string", "format": "entity_id"}, {"type": "string", "format": "time"}
    schema = {
        "properties": {"format": note, "at": time, "many": {"anyOf": [note, {"items": note}]}},
        "const": {"format": "x"},
    }
    plain = {"type": "string"}
    kept = {
        "properties": {"format": plain, "at": time, "many": {"anyOf": [plain, {"items": plain}]}},
        "const": {"format": "x"},
        "additionalProperties": False,
    }
    assert Constraint.json_schema(schema).value == kept
    assert Constraint.tool_calls({"f": schema}, parallel=False).value["parameters"] == {"f": kept}
    assert schema["properties"] == {"format": note, "at": time, "many": {"anyOf": [note, {"items": note}]}}


def closed(schema: Any) -> Any:
    return Constraint.json_schema(schema).value.get("additionalProperties")


def test_an_object_has_the_properties_that_it_names_and_no_others() -> None:
    """Unless it says something of others, or that would leave nothing of what the schema allows."""
    named: Any = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}, "required": ["a"]}
    kept = Constraint.json_schema(named).value
    assert kept["additionalProperties"] is kept["properties"]["a"]["additionalProperties"] is False
    assert Constraint.json_schema(kept).value == kept, "as it is sent on"
    assert closed(named | {"additionalProperties": True}) is True
    assert closed(named | {"additionalProperties": {"type": "null"}}) == {"type": "null"}
    for open_ in (
        {"type": "object"},
        named | {"required": ["b"]},
        named | {"minProperties": 2},
        named | {"patternProperties": {"^x": {}}},
        named | {"anyOf": [{"required": ["a"]}]},
        named | {"$ref": "#/$defs/a", "$defs": {"a": {}}},
    ):
        assert closed(open_) is None, open_
    parts: Any = [{"properties": {"a": {}}}, {"properties": {"b": {}}}]
    assert Constraint.json_schema({"allOf": parts}).value == {"allOf": parts}
    assert all(one["additionalProperties"] is False for one in Constraint.json_schema({"anyOf": parts}).value["anyOf"])


@pytest.mark.parametrize(
    ("make", "given_", "said"),
    [
        (Constraint.regex, "", "is empty"),
        (Constraint.regex, "(?!x)", "looks around"),
        (Constraint.regex, "(a{2,1001})", "repeats"),
        (Constraint.choice, [], "list of texts"),
        (Constraint.choice, ["a", ""], "none of them empty"),
        (Constraint.choice, ["a"] * (MAX_CHOICES + 1), "too large"),
        (Constraint.lark, "start: %json {}", "%json"),
        (Constraint.lark, "x" * (MAX_BYTES + 1), "give 65536 at most"),
    ],
)
def test_what_is_no_constraint_is_refused(make: Any, given_: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make(given_)


def test_a_grammar_that_nobody_knows_is_refused() -> None:
    with pytest.raises(InputError, match="no grammar 'ebnf'"):
        Constraint.of("ebnf", "x")
    for text in ("{", "[1", "nul"):
        with pytest.raises(InputError, match="does not read"):
            Constraint.of(Grammar.JSON_SCHEMA, text)
    with pytest.raises(InputError, match=r"does not read|nested"):
        Constraint.of(Grammar.JSON_SCHEMA, "[" * 30_000)


names = st.text(st.characters(codec="utf-8"), max_size=5)


@given(st.lists(names, unique=True, max_size=5))
def test_a_schema_comes_back_with_its_keys_in_their_order(keys: list[str]) -> None:
    schema = {"type": "object", "properties": {"p" + key: {} for key in keys}}
    constraint = Constraint.json_schema(schema)
    assert json.dumps(constraint.value) == json.dumps(schema | {"additionalProperties": False})
    assert Constraint.of(constraint.grammar, constraint.text) == constraint


@given(st.binary(max_size=200))
def test_any_text_is_a_constraint_or_bad_input(text: bytes) -> None:
    for grammar in Grammar:
        try:
            Constraint.of(grammar, text.decode(errors="replace"))
        except InputError as error:
            assert len(str(error)) < 300  # noqa: PT017 (most texts are none)
