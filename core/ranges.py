"""Ranges of fields, said once: in a struct's types, where whatever is made from JSON is held to them already."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec.inspect import FloatType, IntType, StructType, Type, UnionType

from cutline.errors import InputError

Bounded = IntType | FloatType  # by `ge`, `gt` and `le`


def check_ranges(struct: msgspec.Struct) -> None:
    """That every number of a struct is within the range of its type. Raises InputError, which says the range."""
    for name, kind in _bounded(type(struct)):
        value = getattr(struct, name)
        if value is not None and not _holds(kind, value):
            raise InputError(f"{name.replace('_', '-')} is {value}; give {_words(kind)}")


@functools.cache
def _bounded(struct: type[msgspec.Struct]) -> tuple[tuple[str, Bounded], ...]:
    described = msgspec.inspect.type_info(struct)
    assert isinstance(described, StructType)
    return tuple((field.name, kind) for field in described.fields for kind in _numbers(field.type))


def _numbers(kind: Type) -> Iterator[Bounded]:
    match kind:
        case msgspec.inspect.Metadata(inner):
            yield from _numbers(inner)
        case UnionType(kinds):
            for one in kinds:
                yield from _numbers(one)
        case IntType() | FloatType():
            yield kind


def _holds(kind: Bounded, value: Any) -> bool:
    low = -math.inf if kind.ge is None else kind.ge
    high = math.inf if kind.le is None else kind.le
    return bool(low <= value <= high and (kind.gt is None or value > kind.gt))  # no range has NaN in it


def _words(kind: Bounded) -> str:
    """A range for people."""
    low = f"more than {kind.gt:g}" if kind.gt is not None else f"{kind.ge or 0:g}"
    if kind.le is None:
        return low if kind.gt is not None else f"{low} or more"
    if isinstance(kind, IntType) and kind.le > 10**6 and math.log2(kind.le + 1).is_integer():
        return f"{low} or more, below 2**{math.log2(kind.le + 1):.0f}"
    return f"{low} to {kind.le:g}" if kind.gt is None else f"{low}, and {kind.le:g} at most"
