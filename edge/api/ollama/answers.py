"""An answer told in Ollama's words, whole and in lines of JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from cutline.edge.api.errors import body_of
from cutline.edge.api.streams import AnswerPieces
from cutline.edge.generation.events import Event, Settled
from cutline.edge.generation.result import Answer
from cutline.models.tools import Argued, Called, Piece, Said

PATH = "/api/"  # that all of its paths begin with


class OllamaFunctionCall(msgspec.Struct, frozen=True):
    """A function that is called."""

    name: str
    arguments: dict[str, Any]


class OllamaCall(msgspec.Struct, frozen=True):
    """A call of a tool."""

    function: OllamaFunctionCall


class OllamaMessage(msgspec.Struct, frozen=True):
    """What the assistant says, and the tools that it calls."""

    content: str
    role: Literal["assistant"] = "assistant"
    tool_calls: list[OllamaCall] | UnsetType = UNSET


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
    """Tells the answer of a `model` to a chat, or to a prompt alone, in its `pieces`: a call once it is whole.

    One that was cut short is not told, as it could not be read.
    """

    media_type = "application/x-ndjson"
    last = b""

    def __init__(self, model: str, pieces: AnswerPieces | None, *, chat: bool) -> None:
        self._model = model
        self._chat = chat
        self._pieces = pieces
        self._calls = list[list[str]]()  # each its name, and what is known of its arguments

    @property
    def silence(self) -> bytes:
        """A part without words."""
        return _line(self._part(""))

    def loaded(self) -> OllamaAnswer:
        """What is said to who asks nothing, for a model to be loaded."""
        return msgspec.structs.replace(self._part(""), done=True, done_reason="load")

    def whole(self, answer: Answer) -> OllamaAnswer:
        """All of an answer."""
        assert self._pieces is not None
        words = self._words((*self._pieces.more(answer.tokens), *self._pieces.rest(answer)))
        return self._end(answer, words if self._pieces.tools else answer.text, self._called())

    def pieces(self, event: Event) -> Iterator[bytes]:
        """The lines that an event is, if it is any."""
        assert self._pieces is not None
        match event:
            case Settled():
                if text := self._words(self._pieces.more(event.tokens)):
                    yield _line(self._part(text))
            case Answer():
                rest = self._words(self._pieces.rest(event))
                if rest or self._calls:
                    yield _line(self._part(rest, self._called()))
                yield _line(self._end(event, ""))

    def broken(self, error: Exception) -> bytes:
        """The line that ends an answer which failed."""
        return _line(body_of(error, PATH))

    def _words(self, pieces: Iterable[Piece]) -> str:
        """The words among pieces; those of calls are gathered."""
        words = ""
        for piece in pieces:
            match piece:
                case Said(text):
                    words += text
                case Called(_, name):
                    self._calls.append([name, ""])
                case Argued(index, text):
                    self._calls[index][1] += text
        return words

    def _called(self) -> list[OllamaCall]:
        """The calls that are whole."""
        found = list[OllamaCall]()
        for name, text in self._calls:
            with suppress(msgspec.DecodeError):
                found.append(OllamaCall(OllamaFunctionCall(name, msgspec.json.decode(text, type=dict[str, Any]))))
        return found

    def _part(self, text: str, calls: list[OllamaCall] | None = None) -> OllamaAnswer:
        return OllamaAnswer(
            model=self._model,
            created_at=datetime.now(UTC),
            message=OllamaMessage(text, tool_calls=calls or UNSET) if self._chat else UNSET,
            response=UNSET if self._chat else text,
            done=False,
        )

    def _end(self, answer: Answer, text: str, calls: list[OllamaCall] | None = None) -> OllamaAnswer:
        before = sum(answer.parts_ms.get(part, 0.0) for part in ("prepare", "plan", "memory"))
        loaded = min(before, answer.ttft_ms)
        return msgspec.structs.replace(
            self._part(text, calls),
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
