"""Writes TOML, which Python's tomllib does not, and reads untrusted TOML."""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_MUST_ESCAPE = re.compile(r'[\\"\x00-\x1f\x7f]')

MAX_BYTES = 1 << 20  # of a file; a measured profile has about 20 KB


def read_text(file: Path) -> str:
    """The text of a file. Raises OSError, and ValueError if it is too long or not UTF-8."""
    with file.open("rb") as opened:
        content = opened.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
    return content.decode("utf-8")


def from_toml(text: str) -> dict[str, Any]:
    """The table in a TOML document. Raises ValueError."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None


def to_toml(table: Mapping[str, Any]) -> str:
    """A TOML document of `table`, without its None values, which TOML cannot express.

    A table of only numbers and strings is written on one line, so that the parts of a figure stay together.
    """
    return "\n".join(_lines(table, "")).lstrip("\n") + "\n"


def _lines(table: Mapping[str, Any], path: str) -> Iterator[str]:
    """The lines of the table named `path`, its own keys before the tables inside it."""
    given = {_key(key): value for key, value in table.items() if value is not None}
    for key, value in given.items():
        if not _is_section(value) and not _are_sections(value):
            yield f"{key} = {_inline(value)}"
    for key, value in given.items():
        if _is_section(value):
            yield from ("", f"[{path}{key}]", *_lines(value, f"{path}{key}."))
        elif _are_sections(value):
            for section in value:
                yield from ("", f"[[{path}{key}]]", *_lines(section, f"{path}{key}."))


def _is_section(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(inner, list | tuple | Mapping) for inner in value.values())


def _are_sections(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _inline(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _string(value)
        case int() | datetime.date():
            return str(value)
        case float():
            return repr(value)  # the shortest digits that read back as the same number; also inf and nan
        case Mapping():
            inside = (f"{_key(key)} = {_inline(inner)}" for key, inner in value.items() if inner is not None)
            return f"{{ {', '.join(inside)} }}"
        case list() | tuple():
            return f"[{', '.join(map(_inline, value))}]"
    raise TypeError(f"TOML has no {type(value).__name__}")


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _string(key)


def _string(text: str) -> str:
    escaped = _MUST_ESCAPE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return f'"{escaped}"'
