"""The shape of responses: OpenAI's chat completions, whole and in chunks, with what Cutline adds under `cutline`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from cutline.edge.generation.events import Corrected, Guessed, Planned, Settled
from cutline.edge.generation.result import Answer, Lost, Token
from cutline.models.bundle import Manifest

FinishReason = Literal["stop", "length"]


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


class ChatAnswer(msgspec.Struct, frozen=True):
    """What the assistant says."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


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


def completion_of(heading: Heading, answer: Answer, *, logprobs: bool, stops: Collection[int]) -> ChatCompletion:
    """The response that is `answer`; `logprobs` were asked for or not, `stops` are the tokens that end an answer."""
    choice = CompletionChoice(
        ChatAnswer(answer.text),
        "stop" if answer.complete else "length",
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
