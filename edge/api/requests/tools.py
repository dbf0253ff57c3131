"""Tools as requests have them: OpenAI's functions, what is to be called, and calls that were made before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from cutline.core.tools import Tool, Toolbox, ToolCall
from cutline.errors import InputError

Choice = Literal["none", "auto", "required"]


class FunctionOffered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function that may be called. Where one has to be, its arguments keep to `parameters`, `strict` or not."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def tool(self) -> Tool:
        """It as one of a Request. Raises InputError."""
        return Tool.of(self.name, self.description, self.parameters)


class ToolOffered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool, which is a function."""

    function: FunctionOffered
    type: Literal["function"] = "function"


class FunctionNamed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function, by its name."""

    name: str


class ToolNamed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tool that has to be called."""

    function: FunctionNamed
    type: Literal["function"] = "function"


class FunctionCalled(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function that was called, with arguments in JSON."""

    name: str
    arguments: str


class ToolCalled(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call in an answer that is sent back."""

    function: FunctionCalled
    id: str | None = None
    type: Literal["function"] = "function"

    @property
    def call(self) -> ToolCall:
        """It as one of a Request."""
        return ToolCall(name=self.function.name, arguments=self.function.arguments)


def toolbox(
    tools: Sequence[Tool], choice: Choice | None, named: str | None, *, parallel: bool | None
) -> Toolbox | None:
    """What may be called: nothing without tools, or with the choice none. Raises InputError."""
    if choice == "none" and named is None:
        return None
    if not tools:
        if choice == "required" or named is not None:
            raise InputError("tool_choice asks for a call, and there are no tools")
        return None
    asked: Literal["auto", "required"] = "required" if choice == "required" else "auto"
    return Toolbox(tools=tuple(tools), choice=asked, named=named, parallel=parallel is not False)
