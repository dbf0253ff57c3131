"""How models write that they call a tool, and how that is read again, token by token."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MAX_CALLS = 8  # in one answer that has to have one
MAX_HEAD = 400  # characters of a call before its arguments; what has more is no call

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([A-Za-z0-9_.-]{1,64})"\s*,\s*"arguments"\s*:\s*(?=\{)')


@dataclass(frozen=True, slots=True)
class Said:
    """Words of an answer, outside of any call."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """The call of so many before it begins: of the tool `name`."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Argued:
    """A piece of a call's arguments: joined they are JSON, where the answer was not cut short."""

    index: int
    text: str


Piece = Said | Called | Argued


@dataclass(frozen=True, slots=True)
class ToolSyntax:
    """A call is a JSON object of `name` and `arguments` between two tokens of the tokenizer's own, on a line for each.

    Only those tokens begin and end one: an answer that repeats the same letters, as it was asked to, calls nothing.
    """

    begin: str
    end: str

    def grammar(self, parameters: Mapping[str, Any], *, parallel: bool, added: Mapping[str, int], how: Any) -> str:
        """A Lark grammar of calls of the tools whose arguments keep to `parameters`, compiled as `how` says.

        `added` are the ids of the tokenizer's own tokens.
        """
        several = f' ("\\n" call){{0,{MAX_CALLS - 1}}}' if parallel else ""
        heads = [
            f"{json.dumps(_head(name), ensure_ascii=False)} arguments{place} " + '"}"'
            for place, name in enumerate(parameters)
        ]
        return "\n".join(
            [
                f"start: call{several}",
                f'call: <[{added[self.begin]}]> "\\n" one "\\n" <[{added[self.end]}]>',
                f"one: {' | '.join(heads)}",
                *(
                    f"arguments{place}: %json "
                    + json.dumps({"type": "object", **schema, "x-guidance": how}, ensure_ascii=False)
                    for place, schema in enumerate(parameters.values())
                ),
            ]
        )


HERMES = ToolSyntax("<tool_call>", "</tool_call>")


class CallReader:
    """Reads an answer's calls of the tools with these `names` as its tokens come; of several the first, where `one`.

    What is no such call is words.
    """

    def __init__(self, syntax: ToolSyntax, names: Collection[str], *, one: bool) -> None:
        self._syntax = syntax
        self._names = names
        self._one = one
        self._raw: str | None = None  # of the call that is read
        self._told = 0  # characters of it
        self.calls = 0

    def read(self, text: str) -> Iterator[Piece]:
        """What the next token, of this text, adds."""
        if self._raw is None:
            words = text.removesuffix(self._syntax.begin)
            if words:
                yield Said(words)
            if words != text:
                self._raw, self._told = "", 0
        elif text.endswith(self._syntax.end):
            self._raw += text.removesuffix(self._syntax.end)
            yield from self._end(self._syntax.end)
        else:
            self._raw += text
            yield from self._go_on()

    def finish(self) -> Iterator[Piece]:
        """What is left when the answer is over."""
        if self._raw is not None:
            yield from self._end("")

    def _go_on(self) -> Iterator[Piece]:
        assert self._raw is not None
        if not self._told and len(self._raw) <= MAX_HEAD and (head := _HEAD.match(self._raw)) is not None:
            if head[1] not in self._names or (self._one and self.calls):
                return
            yield Called(self.calls, head[1])
            self._told = head.end()
            self.calls += 1
        if self._told:  # the braces at its end may be the call's own
            yield from self._argue(max(self._told, len(self._raw.rstrip(" \n\t}"))))

    def _argue(self, end: int) -> Iterator[Piece]:
        assert self._raw is not None
        if end > self._told:
            yield Argued(self.calls - 1, self._raw[self._told : end])
            self._told = end

    def _end(self, mark: str) -> Iterator[Piece]:
        """The call is over: at its `mark`, or cut short."""
        yield from self._go_on()
        assert self._raw is not None
        raw, self._raw = self._raw, None
        if self._told:
            rest = raw[self._told :].rstrip()
            if rest := rest.removesuffix("}" if mark or _is_json(raw) else "").rstrip():
                yield Argued(self.calls - 1, rest)
            return
        call = _read(raw)
        if call is None or call[0] not in self._names:
            yield Said(self._syntax.begin + raw + mark)
        elif not (self._one and self.calls):
            self.calls += 1
            yield Called(self.calls - 1, call[0])
            yield Argued(self.calls - 1, json.dumps(call[1], ensure_ascii=False))


def _head(name: str) -> str:
    return f'{{"name": {json.dumps(name)}, "arguments": '


def _is_json(text: str) -> bool:
    return _read(text) is not None


def _read(text: str) -> tuple[str, dict[str, Any]] | None:
    """The name and arguments in a whole call, in any order; None where it is none."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", {})
    return (call["name"], arguments) if isinstance(arguments, dict) else None
