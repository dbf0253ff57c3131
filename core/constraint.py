"""What an answer has to keep to: a JSON schema, a regular expression, one of some texts, or a grammar.

A constraint changes which tokens may come next, as a function of the tokens before, so it is a part of the law: an
answer that keeps to one is the same in every mode. What a client may send is bounded here, before anybody compiles it.
"""

from __future__ import annotations

import enum
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cutline.errors import InputError

MAX_BYTES = 64 << 10  # of a constraint
MAX_DEPTH = 32  # of a schema's nesting
MAX_CHOICES = 1000  # texts of a choice, or values of an `enum`, in all of a schema
MAX_COUNT = 1000  # that `minItems`, `maxLength` and the like may ask for, and a regular expression's repetitions

# Keywords of JSON Schema that no mask of next tokens is made for, and those that say how to compile it.
_REFUSED = frozenset(
    {
        "$dynamicRef",
        "contains",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "if",
        "maxContains",
        "minContains",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
        "x-guidance",
    }
)
# What JSON Schema itself says of strings, of which some are never made a mask for: then they are refused. Any other
# format is a note to people, and so is left out: clients have their own, as `entity_id`.
_FORMATS = frozenset(
    {
        "date",
        "date-time",
        "duration",
        "email",
        "hostname",
        "idn-email",
        "idn-hostname",
        "ipv4",
        "ipv6",
        "iri",
        "iri-reference",
        "json-pointer",
        "regex",
        "relative-json-pointer",
        "time",
        "uri",
        "uri-reference",
        "uri-template",
        "uuid",
    }
)
_COUNTS = frozenset({"maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties"})
_OPEN = frozenset({"additionalProperties", "minProperties", "patternProperties"})  # which say that there may be others
_COMBINED = frozenset({"$ref", "allOf", "anyOf", "oneOf"})
_NAMED = frozenset({"$defs", "definitions", "patternProperties", "properties"})  # whose keys are names, not keywords
_VALUES = frozenset({"const", "default", "enum", "examples"})  # which hold values, not schemas


class Grammar(enum.StrEnum):
    """The language that a constraint is written in."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"  # the whole answer matches it
    CHOICE = "choice"  # a JSON list of texts, of which the answer is one
    LARK = "lark"
    TOOL_CALLS = "tool_calls"  # JSON: the schemas of tools' arguments by name, of which one is called, or several


class Constraint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an answer keeps to: `text` in the language `grammar`. Raises InputError on what is too large or unknown.

    JSON is written without spaces, and with the keys of its objects as they came: that is the order in which an answer
    has them.
    """

    grammar: Grammar
    text: Annotated[str, Meta(max_length=MAX_BYTES)]

    def __post_init__(self) -> None:
        if (size := len(self.text.encode())) > MAX_BYTES:
            raise InputError(f"the {self.grammar} has {size} bytes; give {MAX_BYTES} at most")
        if not self.text.strip():
            raise InputError(f"the {self.grammar} is empty")
        match self.grammar:
            case Grammar.JSON_SCHEMA:
                _check_schema(_read(self.text))
            case Grammar.CHOICE:
                _check_choices(_read(self.text))
            case Grammar.REGEX:
                _check_regex(self.text)
            case Grammar.TOOL_CALLS:
                _check_calls(_read(self.text))
            case Grammar.LARK:
                if "%json" in self.text or "%llguidance" in self.text:
                    raise InputError("a lark grammar has no %json or %llguidance here; give a JSON schema by itself")

    @classmethod
    def of(cls, grammar: str, text: str) -> Constraint:
        """One in a grammar of this name."""
        if grammar not in tuple(Grammar):
            raise InputError(f"there is no grammar {grammar[:40]!r}; there are {', '.join(Grammar)}")
        return cls(grammar=Grammar(grammar), text=text)

    @classmethod
    def json_schema(cls, schema: Any) -> Constraint:
        """A JSON value that keeps to this schema: an object, or true.

        Its objects have no other properties than they name, unless `additionalProperties` says otherwise.
        """
        return cls(grammar=Grammar.JSON_SCHEMA, text=_written(_kept(schema)))

    @classmethod
    def json_object(cls) -> Constraint:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """A text that matches `pattern` from its beginning to its end."""
        return cls(grammar=Grammar.REGEX, text=pattern)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Constraint:
        """One of these texts."""
        return cls(grammar=Grammar.CHOICE, text=_written(list(texts)))

    @classmethod
    def lark(cls, grammar: str) -> Constraint:
        """A text of this grammar, whose first rule is `start`."""
        return cls(grammar=Grammar.LARK, text=grammar)

    @classmethod
    def tool_calls(cls, parameters: Mapping[str, Any], *, parallel: bool) -> Constraint:
        """A call of a tool, or of several, whose arguments keep to these schemas, by the tools' names."""
        plain = {name: _kept(schema) for name, schema in parameters.items()}
        return cls(grammar=Grammar.TOOL_CALLS, text=_written({"parameters": plain, "parallel": parallel}))

    @property
    def value(self) -> Any:
        """The schema, the list of texts, or the tools, as JSON has it."""
        return json.loads(self.text)


@functools.cache
def dialect() -> str:
    """What decides, beside a constraint's text, which tokens it allows: the compiler, its version and our options."""
    from importlib.metadata import version  # takes longer to load than all else here, and few ask for it

    return f"llguidance-{version('llguidance')}-2"


def _kept(schema: Any) -> Any:
    """The schema that an answer keeps to: without formats that JSON Schema lacks, and with objects that are closed.

    An object has the properties that are named and no others, as servers of grammars and OpenAI's strict schemas have
    it: a small model would go on with keys of its own. So it is a part of what the client's schema allows.
    """
    return _plain(schema, closed=not _mixed(schema))


def _plain(schema: Any, *, closed: bool, depth: int = 1) -> Any:
    """One nested too deep stays as it is."""
    if depth > MAX_DEPTH:
        return schema
    if isinstance(schema, list):
        return [_plain(inner, closed=closed, depth=depth + 1) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    plain = dict[str, Any]()
    for key, inner in schema.items():
        if key in _NAMED and isinstance(inner, dict):
            plain[key] = {name: _plain(named, closed=closed, depth=depth + 2) for name, named in inner.items()}
        elif key != "format" or not isinstance(inner, str) or inner in _FORMATS:
            plain[key] = inner if key in _VALUES else _plain(inner, closed=closed, depth=depth + 1)
    if closed and _closable(schema):
        plain["additionalProperties"] = False
    return plain


def _closable(schema: dict[str, Any]) -> bool:
    """Whether an object says which properties it has, and nothing of others."""
    named, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(named, dict) or not isinstance(required, list) or _OPEN & schema.keys():
        return False
    return all(isinstance(one, str) and one in named for one in required)


def _mixed(schema: Any, depth: int = 1) -> bool:
    """Whether any object's properties stand in several schemas: to close one would forbid those of the others."""
    if depth > MAX_DEPTH:
        return True
    if isinstance(schema, list):
        return any(_mixed(inner, depth + 1) for inner in schema)
    if not isinstance(schema, dict):
        return False
    every = schema.get("allOf")
    if (isinstance(every, list) and len(every) > 1) or ("properties" in schema and _COMBINED & schema.keys()):
        return True
    for key, inner in schema.items():
        left = inner.values() if key in _NAMED and isinstance(inner, dict) else (inner,)
        if key not in _VALUES and any(_mixed(one, depth + 1) for one in left):
            return True
    return False


def _written(value: Any) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise InputError("the constraint is no JSON; give an object of JSON Schema, or a list of texts") from None


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the constraint's JSON does not read: {str(error)[:100]}") from None


def _check_choices(choices: Any) -> None:
    if not isinstance(choices, list) or not choices or not all(isinstance(one, str) and one for one in choices):
        raise InputError("a choice is a list of texts, none of them empty")
    if len(choices) > MAX_CHOICES:
        raise InputError(f"a choice of {len(choices)} texts is too large; give {MAX_CHOICES} at most")


def _check_calls(calls: Any) -> None:
    parameters = calls.get("parameters") if isinstance(calls, dict) else None
    if not isinstance(parameters, dict) or not parameters or not isinstance(calls.get("parallel"), bool):
        raise InputError("calls of tools have parameters by name, and parallel, true or false")
    for name, schema in parameters.items():
        if not isinstance(schema, dict):
            raise InputError(f"the parameters of the tool {name[:80]} are no JSON schema of an object")
        _check_schema(schema)


def _check_regex(pattern: str) -> None:
    """The rest is the compiler's to refuse; repetitions it would unfold are refused before that."""
    for count in _repetitions(pattern):
        if count > MAX_COUNT:
            raise InputError(f"the regex repeats something {count} times; give {MAX_COUNT} at most")
    for look in ("(?=", "(?!", "(?<=", "(?<!"):
        if look in pattern:
            raise InputError(f"the regex looks around itself, by {look}; no mask of next tokens is made for that")


def _repetitions(pattern: str) -> Iterator[int]:
    """Every number that stands in braces."""
    for piece in pattern.split("{")[1:]:
        for number in piece.partition("}")[0].split(","):
            if number.strip().isdecimal():
                yield int(number) if len(number) < 10 else 10**9


def _check_schema(schema: Any) -> None:
    """That a schema is one, without keywords that are not served, and small. Raises InputError."""
    if not isinstance(schema, dict | bool) or schema is False:
        raise InputError("a JSON schema is an object, or true")
    values = 0
    left: list[tuple[Any, int]] = [(schema, 1)]
    while left:
        one, depth = left.pop()
        if depth > MAX_DEPTH:
            raise InputError(f"the JSON schema is nested more than {MAX_DEPTH} deep")
        if isinstance(one, list):
            left += ((inner, depth + 1) for inner in one)
        if not isinstance(one, dict):
            continue
        if unserved := sorted(_REFUSED & one.keys()):
            raise InputError(f"JSON schemas with {', '.join(unserved)} are not served; say it in another way")
        for key, inner in one.items():
            if key in _COUNTS and isinstance(inner, int) and inner > MAX_COUNT:
                raise InputError(f"the JSON schema's {key} is {inner}; give {MAX_COUNT} at most")
            if key == "pattern" and isinstance(inner, str):
                _check_regex(inner)
            if key == "enum" and isinstance(inner, list):
                values += len(inner)
            if key in _NAMED and isinstance(inner, dict):
                if key == "patternProperties":
                    for pattern in inner:
                        _check_regex(pattern)
                left += ((named, depth + 2) for named in inner.values())
            elif key not in _VALUES:
                left.append((inner, depth + 1))
    if values > MAX_CHOICES:
        raise InputError(f"the JSON schema's enums have {values} values; give {MAX_CHOICES} at most")
