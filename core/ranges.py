"""Checks a struct's numbers against the ranges in its types. msgspec checks them in JSON only."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec.inspect import FloatType, IntType, StructType, Type, UnionType

from cutline.errors import InputError

Number = IntType | FloatType  # with bounds `ge`, `gt` and `le`


def check_ranges(struct: msgspec.Struct) -> None:
    """Check that every number of a struct is in the range of its type. Raises InputError, which names the range."""
    for name, number in _number_fields(type(struct)):
        value = getattr(struct, name)
        if value is not None and not _contains(number, value):
            raise InputError(f"{name.replace('_', '-')} is {value}; give {_range_text(number)}")


@functools.cache
def _number_fields(struct: type[msgspec.Struct]) -> tuple[tuple[str, Number], ...]:
    described = msgspec.inspect.type_info(struct)
    assert isinstance(described, StructType)
    return tuple((field.name, number) for field in described.fields for number in _numbers(field.type))


def _numbers(described: Type) -> Iterator[Number]:
    match described:
        case msgspec.inspect.Metadata(inner):
            yield from _numbers(inner)
        case UnionType(members):
            for member in members:
                yield from _numbers(member)
        case IntType() | FloatType():
            yield described


def _contains(number: Number, value: Any) -> bool:
    low = -math.inf if number.ge is None else number.ge
    high = math.inf if number.le is None else number.le
    return bool(low <= value <= high and (number.gt is None or value > number.gt))  # False for NaN


def _range_text(number: Number) -> str:
    low = f"more than {number.gt:g}" if number.gt is not None else f"{number.ge or 0:g}"
    if number.le is None:
        return low if number.gt is not None else f"{low} or more"
    if isinstance(number, IntType) and number.le > 10**6 and math.log2(number.le + 1).is_integer():
        return f"{low} or more, below 2**{math.log2(number.le + 1):.0f}"
    return f"{low} to {number.le:g}" if number.gt is None else f"{low}, and {number.le:g} at most"
