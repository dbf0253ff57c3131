"""Random JSON schemas of which every answer ends, and a judge of answers that knows nothing of masks."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import jsonschema

MAX_TOKENS = 160  # of an answer to one
WORDS = ("digits", "colour", "count", "label", "seen", "where", "notes", "size")
Schema = dict[str, Any]


def schema(draw: random.Random, depth: int = 3) -> Schema:
    """A random schema of which every answer ends: its strings, lists and numbers have a most."""
    kinds: list[Callable[[], Schema]] = [
        lambda: {"type": "boolean"},
        lambda: {"enum": draw.sample([*WORDS, 7, True, None, "a b"], draw.randint(1, 4))},
        lambda: {"type": "integer", "minimum": draw.randint(-20, 0), "maximum": draw.randint(1, 999)},
        lambda: {"type": "string", "maxLength": draw.randint(1, 8)},
        lambda: {"type": "string", "pattern": draw.choice(["^[a-z]{1,5}$", "^[0-9]{2}-[0-9]{2}$", "^(yes|no)$"])},
        lambda: {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
    ]
    if depth > 0:
        kinds += [lambda: _object(draw, depth), lambda: _list(draw, depth)] * 3
        kinds.append(lambda: {"anyOf": [schema(draw, depth - 1), {"type": "null"}]})
    return draw.choice(kinds)() if depth < 3 else _object(draw, depth)


def _object(draw: random.Random, depth: int) -> Schema:
    names = draw.sample(WORDS, draw.randint(1, 3))
    wanted = [name for name in names if draw.random() < 0.8]
    parts = {name: schema(draw, depth - 1) for name in names}
    return {"type": "object", "properties": parts, "required": wanted, "additionalProperties": False}


def _list(draw: random.Random, depth: int) -> Schema:
    least = draw.randint(0, 1)
    return {"type": "array", "items": schema(draw, depth - 1), "minItems": least, "maxItems": draw.randint(least, 3)}


def valid(text: str, wanted: Schema) -> bool:
    """Whether a validator that knows nothing of masks takes an answer."""
    try:
        jsonschema.validate(json.loads(text), wanted)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True
