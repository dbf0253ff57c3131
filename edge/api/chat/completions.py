"""The shape of responses: OpenAI's chat completions, whole and in chunks, with what Cutline adds under `cutline`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from cutline.edge.api.streams import WholeCall
from cutline.edge.generation.events import Corrected, Guessed, Planned, Settled
from cutline.edge.generation.result import Answer, Lost, Token
from cutline.models.bundle import Manifest

FinishReason = Literal["stop", "length", "tool_calls"]


class Alternative(msgspec.Struct, frozen=True):
    """A token that might have stood there."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """How likely a token of the answer was."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Alternative]


class Logprobs(msgspec.Struct, frozen=True):
    """How likely the answer's tokens were, but for the one that ended it."""

    content: list[TokenLogprob]
    refusal: None = None


class FunctionCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """A function that is called, with arguments in JSON, or a piece of them."""

    arguments: str
    name: str | UnsetType = UNSET


class ChatToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a tool, or a piece of the one that is the `index`-th of an answer."""

    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionCall
    index: int | UnsetType = UNSET


class ChatAnswer(msgspec.Struct, frozen=True):
    """What the assistant says; null where it only calls tools."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[ChatToolCall] | UnsetType = UNSET


class CompletionChoice(msgspec.Struct, frozen=True):
    """The answer; there is one."""

    message: ChatAnswer
    finish_reason: FinishReason
    logprobs: Logprobs | None = None
    index: int = 0


class PromptDetails(msgspec.Struct, frozen=True):
    """`cached_tokens` of the prompt did not have to be run again."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Tokens; the prompt's count those of its images."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """A response. `system_fingerprint` changes with the drafter."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage
    cutline: Answer


class Answered(msgspec.Struct, frozen=True):
    """What Cutline's own client reads of a response."""

    cutline: Answer


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """What is added to the answer."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[ChatToolCall] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Likewise, and how it ended, once it has."""

    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None
    index: int = 0


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What happened: one of these."""

    planned: Planned | UnsetType = UNSET
    guessed: Guessed | UnsetType = UNSET
    settled: Settled | UnsetType = UNSET
    lost: Lost | UnsetType = UNSET
    corrected: Corrected | UnsetType = UNSET
    answer: Answer | UnsetType = UNSET


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a response that is streamed."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    cutline: Told | UnsetType = UNSET


class Heading(msgspec.Struct, frozen=True):
    """What a response and all its chunks begin with."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    @classmethod
    def of(cls, manifest: Manifest) -> Heading:
        """A new one for an answer of the drafter `manifest`."""
        name = f"chatcmpl-{secrets.token_hex(12)}"
        return cls(name, int(time.time()), manifest.name, f"fp_{manifest.identity[:12]}")


def called_id() -> str:
    """A new name for a call."""
    return f"call_{secrets.token_hex(12)}"


def completion_of(
    heading: Heading, answer: Answer, told: tuple[str, Sequence[WholeCall]], *, logprobs: bool, stops: Collection[int]
) -> ChatCompletion:
    """The response that is `answer`, whose words and calls are `told`.

    `logprobs` were asked for or not, `stops` are the tokens that end an answer.
    """
    words, calls = told
    called = [
        ChatToolCall(id=called_id(), type="function", function=FunctionCall(call.arguments, call.name))
        for call in calls
    ]
    choice = CompletionChoice(
        ChatAnswer(None if called and not words else words, tool_calls=called or UNSET),
        finish_reason(answer, called=bool(called)),
        logprobs_of(answer.tokens, stops) if logprobs else None,
    )
    return ChatCompletion(
        id=heading.id,
        created=heading.created,
        model=heading.model,
        system_fingerprint=heading.system_fingerprint,
        choices=[choice],
        usage=usage_of(answer),
        cutline=answer,
    )


def finish_reason(answer: Answer, *, called: bool) -> FinishReason:
    """Why an answer ended that called tools, or did not."""
    if not answer.complete:
        return "length"
    return "tool_calls" if called else "stop"


def usage_of(answer: Answer) -> Usage:
    """What an answer took of tokens, the one that ended it included."""
    written = len(answer.tokens)
    return Usage(
        answer.prompt_tokens, written, answer.prompt_tokens + written, PromptDetails(cached_tokens=answer.reused_tokens)
    )


def logprobs_of(tokens: Sequence[Token], stops: Collection[int]) -> Logprobs:
    """How likely `tokens` were, where that is known."""
    return Logprobs(
        [
            TokenLogprob(
                one.text,
                one.logprob,
                list(one.text.encode()),
                [Alternative(other.text, other.logprob, list(other.text.encode())) for other in one.alternatives],
            )
            for one in tokens
            if one.logprob is not None and one.id not in stops
        ]
    )
