"""What an answer is asked to keep to: OpenAI's response formats, and those that it has no words for."""

from __future__ import annotations

from typing import Any

import msgspec

from cutline.core.constraint import Constraint, Grammar


class JsonSchema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A schema with a name. It is always kept to, whatever `strict` says."""

    schema: dict[str, Any]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None

    @property
    def constraint(self) -> Constraint:
        return Constraint.json_schema(self.schema)


class JsonObjectFormat(msgspec.Struct, tag_field="type", tag="json_object", frozen=True, forbid_unknown_fields=True):
    """Any JSON object."""

    @property
    def constraint(self) -> Constraint:
        return Constraint.json_object()


class JsonSchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema", frozen=True, forbid_unknown_fields=True):
    """JSON that keeps to a schema."""

    json_schema: JsonSchema

    @property
    def constraint(self) -> Constraint:
        return self.json_schema.constraint


class RegexFormat(msgspec.Struct, tag_field="type", tag="regex", frozen=True, forbid_unknown_fields=True):
    """A text that matches a regular expression from its beginning to its end."""

    regex: str

    @property
    def constraint(self) -> Constraint:
        return Constraint.regex(self.regex)


class ChoiceFormat(msgspec.Struct, tag_field="type", tag="choice", frozen=True, forbid_unknown_fields=True):
    """One of some texts."""

    choice: list[str]

    @property
    def constraint(self) -> Constraint:
        return Constraint.choice(self.choice)


class LarkFormat(msgspec.Struct, tag_field="type", tag="lark", frozen=True, forbid_unknown_fields=True):
    """A text of a grammar, whose first rule is `start`."""

    lark: str

    @property
    def constraint(self) -> Constraint:
        return Constraint.lark(self.lark)


class NamedSchema(JsonSchema, tag_field="type", tag="json_schema", frozen=True, forbid_unknown_fields=True):
    """JSON that keeps to a schema, as the Responses API asks for it."""


ResponseFormat = JsonObjectFormat | JsonSchemaFormat | RegexFormat | ChoiceFormat | LarkFormat


def format_of(constraint: Constraint | None) -> ResponseFormat | None:
    """The response format that asks for a constraint."""
    match constraint:
        case None:
            return None
        case Constraint(grammar=Grammar.JSON_SCHEMA):
            return JsonSchemaFormat(JsonSchema(constraint.value))
        case Constraint(grammar=Grammar.REGEX):
            return RegexFormat(constraint.text)
        case Constraint(grammar=Grammar.CHOICE):
            return ChoiceFormat(constraint.value)
        case Constraint(grammar=Grammar.TOOL_CALLS):
            return None  # which `tool_choice` asks for
        case _:
            return LarkFormat(constraint.text)
