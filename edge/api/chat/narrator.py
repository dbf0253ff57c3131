"""An answer told in OpenAI's chat completions, whole and in chunks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

import msgspec
from msgspec import UNSET

from cutline.core.request import Request
from cutline.edge.api.chat.completions import (
    ChatChunk,
    ChatCompletion,
    ChatToolCall,
    ChunkChoice,
    Delta,
    FinishReason,
    FunctionCall,
    Heading,
    Logprobs,
    Told,
    Usage,
    called_id,
    completion_of,
    finish_reason,
    logprobs_of,
    usage_of,
)
from cutline.edge.api.errors import Failed, fault_of
from cutline.edge.api.requests.schema import ChatRequest
from cutline.edge.api.streams import AnswerPieces, whole_of, words_of
from cutline.edge.generation.events import Corrected, Event, Guessed, Planned, Settled
from cutline.edge.generation.result import Answer, Lost
from cutline.models.bundle import Manifest
from cutline.models.tools import Argued, Called, Piece


class Narrator:
    """Tells the events of one answer as chunks, whose deltas joined are the answer's text.

    `guesses` tells what the drafter believes too, `usage` counts tokens at the end. The answer is `manifest`'s, to a
    `question`.
    """

    media_type = "text/event-stream; charset=utf-8"
    silence = b": waiting\n\n"
    last = b"data: [DONE]\n\n"

    def __init__(self, manifest: Manifest, question: Request, *, guesses: bool = False, usage: bool = False) -> None:
        self._heading = Heading.of(manifest)
        self._limit = question.max_tokens or sys.maxsize
        self._stops = frozenset(manifest.stop_tokens)  # which are no words
        self._ends = question.sampling.stops(manifest.stop_tokens)
        self._logprobs = question.logprobs is not None
        self._guesses = guesses
        self._usage = usage
        self._question = question
        self._manifest = manifest
        self._pieces = AnswerPieces(manifest, question)
        self._last: int | None = None
        self._settled = 0
        self._begun = False
        self._reason: FinishReason | None = None

    def whole(self, answer: Answer) -> ChatCompletion:
        """The response that is `answer`."""
        told = whole_of(self._manifest, self._question, answer)
        return completion_of(self._heading, answer, told, logprobs=self._logprobs, stops=self._stops)

    def pieces(self, event: Event) -> Iterator[bytes]:
        """What a stream tells of an event."""
        return map(_told, self.chunks(event))

    def broken(self, error: Exception) -> bytes:
        """How a stream ends that fails."""
        return _told(Failed(fault_of(error)))

    def chunks(self, event: Event) -> Iterator[ChatChunk]:
        """What is told of an event."""
        match event:
            case Planned():
                yield self._chunk("", Told(planned=event))
            case Guessed():
                if self._guesses:
                    yield self._chunk(None, Told(guessed=event))
            case Settled():
                yield self._settle(event)
            case Lost():
                yield self._chunk(None, Told(lost=event))
            case Corrected():
                yield from self._finish(self._ended())
                yield self._chunk(None, Told(corrected=event))
            case Answer():
                yield from self._conclude(event)

    def _settle(self, event: Settled) -> ChatChunk:
        self._settled = event.position + len(event.tokens)
        if event.tokens:
            self._last = event.tokens[-1].id
        pieces = self._pieces.more(event.tokens)
        logprobs = logprobs_of(event.tokens, self._stops) if self._logprobs else None
        return self._chunk(words_of(pieces), Told(settled=event), logprobs, _calls(pieces))

    def _conclude(self, answer: Answer) -> Iterator[ChatChunk]:
        told = Told(answer=answer)
        if self._reason is None:
            last = UNSET if self._usage else told
            rest = self._pieces.rest(answer)
            if calls := _calls(rest):
                yield self._chunk(None, UNSET, calls=calls)
            reason = finish_reason(answer, called=self._pieces.called)
            yield from self._finish(reason, words_of(rest), last)
            if not self._usage:
                return
        elif not self._usage:
            yield self._chunk(None, told)
            return
        yield self._made([], told, usage_of(answer))

    def _finish(
        self, reason: FinishReason, rest: str = "", told: Told | msgspec.UnsetType = UNSET
    ) -> Iterator[ChatChunk]:
        if self._reason is None:
            self._reason = reason
            yield self._chunk(rest or None, told)

    def _ended(self) -> FinishReason:
        """Why an answer ended of which only the tokens are known yet."""
        return "length" if self._settled >= self._limit and self._last not in self._ends else "stop"

    def _chunk(
        self,
        content: str | None,
        told: Told | msgspec.UnsetType,
        logprobs: Logprobs | None = None,
        calls: list[ChatToolCall] | None = None,
    ) -> ChatChunk:
        delta = Delta(
            role=UNSET if self._begun else "assistant",
            content=("" if not self._begun else UNSET) if content is None else content,
            tool_calls=calls or UNSET,
        )
        self._begun = True
        return self._made([ChunkChoice(delta=delta, finish_reason=self._reason, logprobs=logprobs)], told)

    def _made(
        self, choices: list[ChunkChoice], told: Told | msgspec.UnsetType, usage: Usage | None = None
    ) -> ChatChunk:
        heading = self._heading
        return ChatChunk(
            id=heading.id,
            created=heading.created,
            model=heading.model,
            system_fingerprint=heading.system_fingerprint,
            choices=choices,
            usage=usage if self._usage else UNSET,
            cutline=told,
        )


def _calls(pieces: Iterable[Piece]) -> list[ChatToolCall]:
    """The pieces of calls among those of an answer."""
    found = list[ChatToolCall]()
    for piece in pieces:
        match piece:
            case Called(index, name):
                function = FunctionCall("", name)
                found.append(ChatToolCall(id=called_id(), type="function", function=function, index=index))
            case Argued(index, text):
                found.append(ChatToolCall(function=FunctionCall(text), index=index))
    return found


def teller_of(asked: ChatRequest, manifest: Manifest, question: Request) -> Narrator:
    """What tells the answer of the drafter `manifest` to who asks so."""
    usage = bool(asked.stream_options and asked.stream_options.include_usage)
    return Narrator(manifest, question, guesses=asked.cutline.guesses, usage=usage)


def _told(content: ChatChunk | Failed) -> bytes:
    return b"data: " + msgspec.json.encode(content) + b"\n\n"
