"""Tools that a model may call, and the calls that it makes."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import msgspec

from cutline.core.constraint import Constraint
from cutline.errors import InputError

MAX_TOOLS = 128
MAX_BYTES = 64 << 10  # of their descriptions and parameters together
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a model may ask to be done. `parameters` is the JSON schema of its arguments, as text."""

    name: str
    description: str = ""
    parameters: str = '{"type": "object", "properties": {}}'

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None:
            raise InputError(f"a tool's name has 1 to 64 letters, digits or any of _.-; {self.name[:80]!r} is none")
        try:
            parameters = json.loads(self.parameters)
        except (ValueError, RecursionError):
            parameters = None
        if not isinstance(parameters, dict):
            raise InputError(f"the parameters of the tool {self.name} are no JSON schema of an object")

    @classmethod
    def of(cls, name: str, description: str | None, parameters: dict[str, Any] | None) -> Tool:
        """One whose parameters are given as JSON has them; None for no parameters."""
        try:
            text = json.dumps(parameters or {"type": "object", "properties": {}}, ensure_ascii=False, allow_nan=False)
        except (ValueError, RecursionError):
            raise InputError(f"the parameters of the tool {name[:80]} are no JSON") from None
        return cls(name=name, description=description or "", parameters=text)

    @property
    def told(self) -> dict[str, Any]:
        """It as templates have it."""
        function = {"name": self.name, "description": self.description, "parameters": json.loads(self.parameters)}
        return {"type": "function", "function": function}


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a tool; its `arguments` are JSON, as text."""

    name: str
    arguments: str

    @property
    def told(self) -> dict[str, Any]:
        """It as templates have it. Raises InputError."""
        try:
            arguments = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            raise InputError(f"the arguments of a call of {self.name[:80]} are no JSON") from None
        return {"type": "function", "function": {"name": self.name, "arguments": arguments}}


class Toolbox(msgspec.Struct, frozen=True, kw_only=True):
    """The tools of a request, and whether one has to be called: any, or the one `named`; several, where `parallel`.

    Raises InputError.
    """

    tools: tuple[Tool, ...]
    choice: Literal["auto", "required"] = "auto"
    named: str | None = None
    parallel: bool = True

    def __post_init__(self) -> None:
        names = [tool.name for tool in self.tools]
        if not 1 <= len(names) <= MAX_TOOLS:
            raise InputError(f"there are {len(names)} tools; give 1 to {MAX_TOOLS}")
        if len(set(names)) < len(names):
            raise InputError("two tools have the same name")
        if sum(len(tool.description) + len(tool.parameters) for tool in self.tools) > MAX_BYTES:
            raise InputError(f"the tools have over {MAX_BYTES >> 10} KiB; give fewer, or say less of them")
        if self.named is not None and self.named not in names:
            raise InputError(f"tool_choice names {self.named[:80]!r}, which is none of the tools")

    @property
    def names(self) -> frozenset[str]:
        """Those that may be called."""
        return frozenset({self.named} if self.named is not None else {tool.name for tool in self.tools})

    @property
    def constraint(self) -> Constraint | None:
        """What an answer keeps to that has to call one; None where it need not."""
        if self.choice == "auto" and self.named is None:
            return None
        callable_ = [tool for tool in self.tools if tool.name in self.names]
        parameters = {tool.name: json.loads(tool.parameters) for tool in callable_}
        return Constraint.tool_calls(parameters, parallel=self.parallel and self.named is None)
