"""The shape of OpenAI's responses, with what Cutline adds under `cutline`."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from cutline.edge.api.requests.response_format import JsonObjectFormat, NamedSchema
from cutline.edge.api.requests.tools import Choice
from cutline.edge.generation.result import Answer

Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(msgspec.Struct, frozen=True):
    """Words of an answer."""

    text: str
    type: Literal["output_text"] = "output_text"
    annotations: tuple[()] = ()
    logprobs: tuple[()] = ()


class OutputMessage(msgspec.Struct, tag_field="type", tag="message", frozen=True):
    """What the assistant says."""

    id: str
    status: Status
    content: tuple[OutputText, ...]
    role: Literal["assistant"] = "assistant"

    @property
    def text(self) -> str:
        """What it says so far."""
        return "".join(part.text for part in self.content)


class OutputCall(msgspec.Struct, tag_field="type", tag="function_call", frozen=True):
    """A call of a function, with arguments in JSON."""

    id: str
    call_id: str
    name: str
    arguments: str = ""
    status: Status = "in_progress"


class FunctionTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function that may be called."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    type: Literal["function"] = "function"


class FunctionChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The function that has to be called."""

    name: str
    type: Literal["function"] = "function"


class InputDetails(msgspec.Struct, frozen=True):
    """`cached_tokens` of the prompt did not have to be run again."""

    cached_tokens: int


class OutputDetails(msgspec.Struct, frozen=True):
    """No model here reasons in tokens of their own."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, frozen=True):
    """Tokens; the prompt's count those of its images."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    total_tokens: int
    output_tokens_details: OutputDetails = OutputDetails()

    @classmethod
    def of(cls, answer: Answer) -> ResponseUsage:
        """What an answer took, the token that ended it included."""
        read, written = answer.prompt_tokens, len(answer.tokens)
        return cls(read, InputDetails(answer.reused_tokens), written, read + written)


class Incomplete(msgspec.Struct, frozen=True):
    """Why an answer was cut short."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class TextType(msgspec.Struct, tag_field="type", tag="text", frozen=True):
    """Words as they come."""


class TextSettings(msgspec.Struct, frozen=True):
    """How the words are formed."""

    format: TextType | JsonObjectFormat | NamedSchema = TextType()


class ResponseObject(msgspec.Struct, frozen=True, kw_only=True):
    """A response."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    model: str
    output: tuple[OutputMessage | OutputCall, ...] = ()
    error: None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] = {}
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    store: bool
    temperature: float
    text: TextSettings = TextSettings()
    tool_choice: Choice | FunctionChoice = "auto"
    tools: tuple[FunctionTool, ...] = ()
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    cutline: Answer | UnsetType = UNSET


class ResponseDeleted(msgspec.Struct, frozen=True):
    """That a response is kept no more."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True
