"""The fields of a request: those that change nothing are left out, those that are unknown or not served are named."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import msgspec

from cutline.core.json_errors import UNREADABLE
from cutline.edge.api.errors import Fault, Refused, unreadable
from cutline.errors import InputError

T = TypeVar("T")

MAX_NAMED = 20  # fields that one refusal names
MAX_VALUES = 200_000  # in a request: more words than any model here takes, and what reads in a moment
MAX_PARTS = 1000  # messages, and parts of one

_LENIENT = msgspec.json.Decoder(float_hook=float)  # 1e999 is infinite, and what has no such field says so
_INDEX = re.compile(r"\[[0-9]+\]")


@dataclass(frozen=True)
class Rules:
    """Which fields of an object are left out before it is read.

    One of `ignored` may have any value of its types. One that is not served is refused, unless it has a value of
    `neutral`, which asks for nothing; null never asks for anything. `inner` are the rules of fields that hold objects,
    or lists of them.
    """

    ignored: Mapping[str, tuple[type, ...]] = field(default_factory=dict)
    neutral: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    inner: Mapping[str, Rules] = field(default_factory=dict)

    def wanted(self, raw: Any) -> Any:
        """What is left of an object, or of each in a list."""
        if isinstance(raw, list):
            return [self.wanted(one) for one in raw]
        if not isinstance(raw, dict):
            return raw
        left = {name: value for name, value in raw.items() if not self._asks_nothing(name, value)}
        return left | {name: rules.wanted(left[name]) for name, rules in self.inner.items() if name in left}

    def names(self, path: str) -> bool:
        """Whether the field at `path` is known, and not served."""
        name, dot, rest = path.partition(".")
        if not dot:
            return name in self.neutral
        rules = self.inner.get(_INDEX.sub("", name))
        return rules is not None and rules.names(rest)

    def _asks_nothing(self, name: str, value: Any) -> bool:
        if name in self.ignored:
            return value is None or type(value) in self.ignored[name]
        return name in self.neutral and (value is None or any(_same(value, one) for one in self.neutral[name]))


def read_body(body: bytes, kind: type[T], rules: Rules, *, turns: str = "messages") -> T:
    """A body of JSON as a struct, whose turns of a conversation stand in `turns`.

    Raises Refused, which names every field that is unknown or not served.
    """
    # Counted before any is read: a body of nothing but commas would take a hundred times its size.
    if sum(body.count(one) for one in (b"{", b"[", b",")) > MAX_VALUES:
        raise unfit(f"the request has over {MAX_VALUES} values; send less")
    try:
        raw = _LENIENT.decode(body)
    except UNREADABLE as error:
        raise unreadable(error) from None
    _check_counts(raw, turns)
    wanted = rules.wanted(raw)
    try:
        return msgspec.convert(wanted, kind)
    except msgspec.ValidationError as error:
        unknown = _unknown(msgspec.inspect.type_info(kind), wanted, "")
        if names := list(islice(unknown, MAX_NAMED + 1)):
            raise _unwelcome(names, rules) from None
        raise unreadable(error) from None


def unfit(message: str, param: str | None = None) -> Refused:
    """The refusal of a request that cannot be answered so."""
    return Refused(400, Fault(message, InputError.__name__, param))


def _check_counts(raw: Any, turns: str) -> None:
    """That a request has no more messages, nor any of them more parts, than a request may. Raises Refused."""
    messages = raw.get(turns) if isinstance(raw, dict) else None
    if not isinstance(messages, list):
        return
    if len(messages) > MAX_PARTS:
        raise unfit(f"{len(messages)} messages are too many; send {MAX_PARTS} at most", turns)
    for index, one in enumerate(messages):
        content = one.get("content") if isinstance(one, dict) else None
        if isinstance(content, list) and len(content) > MAX_PARTS:
            raise unfit(f"{len(content)} parts are too many; send {MAX_PARTS} at most", f"{turns}[{index}].content")


def _unknown(kind: msgspec.inspect.Type, value: Any, place: str) -> Iterator[str]:
    """The paths of the fields in `value` that its type does not have."""
    match kind:
        case msgspec.inspect.UnionType(types):
            for one in types:
                if not isinstance(one, msgspec.inspect.StructType) or one.tag_field is None or _tag(one, value):
                    yield from _unknown(one, value, place)
        case msgspec.inspect.ListType(item) if isinstance(value, list):
            for index, one in enumerate(value[:MAX_PARTS]):
                yield from _unknown(item, one, f"{place}[{index}]")
        case msgspec.inspect.StructType() if isinstance(value, dict):
            fields = {field.encode_name: field.type for field in kind.fields}
            for name, one in value.items():
                path = f"{place}.{name}" if place else name
                if name in fields:
                    yield from _unknown(fields[name], one, path)
                elif name != kind.tag_field:
                    yield path


def _tag(kind: msgspec.inspect.StructType, value: Any) -> bool:
    """Whether `value` says that it is of this type, one of several."""
    return isinstance(value, dict) and kind.tag_field is not None and value.get(kind.tag_field) == kind.tag


def _unwelcome(names: list[str], rules: Rules) -> Refused:
    known = [name for name in names[:MAX_NAMED] if rules.names(name)]
    unknown = [name for name in names[:MAX_NAMED] if not rules.names(name)]
    said = [
        f"{label} {', '.join(_printable(name) for name in some)}"
        for label, some in (("what is not served here:", known), ("unknown fields:", unknown))
        if some
    ]
    message = f"the request has {', and '.join(said)}{', ...' if names[MAX_NAMED:] else ''}; leave these out"
    return Refused(400, Fault(message, InputError.__name__, _printable(names[0]), "unsupported_parameter"))


def _printable(name: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in name[:60])


def _same(value: Any, neutral: object) -> bool:
    """Whether a value is that of a field that asks for nothing: true is no 1, though it equals it."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)
