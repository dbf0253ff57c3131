"""An answer told in Ollama's words, whole and in lines of JSON."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from cutline.edge.api.errors import body_of
from cutline.edge.api.streams import AnswerText
from cutline.edge.generation.events import Event, Settled
from cutline.edge.generation.result import Answer

PATH = "/api/"  # that all of its paths begin with


class OllamaMessage(msgspec.Struct, frozen=True):
    """What the assistant says."""

    content: str
    role: Literal["assistant"] = "assistant"


class OllamaAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, or a part of one: its words are in `message` of a chat, and in `response` of a prompt alone.

    The last part, and a whole, is `done` and has the counts, of tokens, and durations, in nanoseconds: `load_duration`
    until a model runs, `prompt_eval_duration` from there to the first token, `eval_duration` for the rest.
    """

    model: str
    created_at: datetime
    message: OllamaMessage | UnsetType = UNSET
    response: str | UnsetType = UNSET
    done: bool
    done_reason: Literal["stop", "length", "load"] | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET
    cutline: Answer | UnsetType = UNSET


class OllamaTeller:
    """Tells the answer of a `model` to a chat, or to a prompt alone."""

    media_type = "application/x-ndjson"
    last = b""

    def __init__(self, model: str, *, chat: bool) -> None:
        self._model = model
        self._chat = chat
        self._text = AnswerText()

    @property
    def silence(self) -> bytes:
        """A part without words."""
        return _line(self._part(""))

    def loaded(self) -> OllamaAnswer:
        """What is said to who asks nothing, for a model to be loaded."""
        return msgspec.structs.replace(self._part(""), done=True, done_reason="load")

    def whole(self, answer: Answer) -> OllamaAnswer:
        """All of an answer."""
        return self._end(answer, answer.text)

    def pieces(self, event: Event) -> Iterator[bytes]:
        """The lines that an event is, if it is any."""
        match event:
            case Settled():
                if text := self._text.more("".join(token.text for token in event.tokens)):
                    yield _line(self._part(text))
            case Answer():
                if rest := self._text.rest(event):
                    yield _line(self._part(rest))
                yield _line(self._end(event, ""))

    def broken(self, error: Exception) -> bytes:
        """The line that ends an answer which failed."""
        return _line(body_of(error, PATH))

    def _part(self, text: str) -> OllamaAnswer:
        return OllamaAnswer(
            model=self._model,
            created_at=datetime.now(UTC),
            message=OllamaMessage(text) if self._chat else UNSET,
            response=UNSET if self._chat else text,
            done=False,
        )

    def _end(self, answer: Answer, text: str) -> OllamaAnswer:
        before = sum(answer.parts_ms.get(part, 0.0) for part in ("prepare", "plan", "memory"))
        loaded = min(before, answer.ttft_ms)
        return msgspec.structs.replace(
            self._part(text),
            done=True,
            done_reason="stop" if answer.complete else "length",
            total_duration=_nanoseconds(answer.latency_ms),
            load_duration=_nanoseconds(loaded),
            prompt_eval_count=answer.prompt_tokens,
            prompt_eval_duration=_nanoseconds(answer.ttft_ms - loaded),
            eval_count=len(answer.tokens),
            eval_duration=_nanoseconds(answer.latency_ms - answer.ttft_ms),
            cutline=answer,
        )


def _nanoseconds(ms: float) -> int:
    return max(0, round(ms * 1e6))


def _line(content: object) -> bytes:
    return msgspec.json.encode(content) + b"\n"
