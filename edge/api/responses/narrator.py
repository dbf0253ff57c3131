"""An answer told as a response, whole and in events."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from cutline.edge.api.errors import fault_of
from cutline.edge.api.responses.objects import (
    Incomplete,
    OutputCall,
    OutputMessage,
    OutputText,
    ResponseObject,
    ResponseUsage,
)
from cutline.edge.api.streams import AnswerPieces
from cutline.edge.generation.events import Event, Settled
from cutline.edge.generation.result import Answer
from cutline.models.tools import Argued, Called, Piece, Said


class ResponseTeller:
    """Tells an answer in its `pieces` as the response that `begun` becomes by it; `keep` hears that once it has.

    An answer has one message, which is begun with it unless it may call tools: then with its first word.
    """

    media_type = "text/event-stream; charset=utf-8"
    silence = b": waiting\n\n"
    last = b""

    def __init__(self, begun: ResponseObject, pieces: AnswerPieces, keep: Callable[[ResponseObject], object]) -> None:
        self._begun = begun
        self._keep = keep
        self._pieces = pieces
        self._tools = pieces.tools
        self._items = list[OutputMessage | OutputCall]()
        self._message: int | None = None  # its place among them
        self._calls = list[int]()  # likewise
        self._numbers = itertools.count()
        self._opened = False

    def whole(self, answer: Answer) -> ResponseObject:
        """The response that is an answer."""
        for _ in self._tell((*self._pieces.more(answer.tokens), *self._pieces.rest(answer))):
            pass
        return self._made(answer)

    def pieces(self, event: Event) -> Iterator[bytes]:
        """The events that tell of one."""
        if not self._opened:
            self._opened = True
            yield self._event("response.created", response=self._begun)
            yield self._event("response.in_progress", response=self._begun)
            if not self._tools:
                yield from self._open_message()
        match event:
            case Settled():
                yield from self._tell(self._pieces.more(event.tokens))
            case Answer():
                yield from self._tell(self._pieces.rest(event))
                yield from self._end(event)

    def broken(self, error: Exception) -> bytes:
        """The event that ends a stream which failed."""
        fault = fault_of(error)
        return self._event("error", code=fault.code, message=fault.message, param=fault.param, error=fault)

    def _tell(self, pieces: Iterable[Piece]) -> Iterator[bytes]:
        for piece in pieces:
            match piece:
                case Said(text):
                    if text:
                        yield from self._say(text)
                case Called(_, name):
                    self._calls.append(len(self._items))
                    call = OutputCall(f"fc_{secrets.token_hex(12)}", f"call_{secrets.token_hex(12)}", name)
                    yield self._add(call)
                case Argued(index, text):
                    place = self._calls[index]
                    call = self._call(place)
                    self._items[place] = replace(call, arguments=call.arguments + text)
                    named = {"item_id": call.id, "output_index": place}
                    yield self._event("response.function_call_arguments.delta", **named, delta=text)

    def _say(self, text: str) -> Iterator[bytes]:
        if self._message is None:
            yield from self._open_message()
        place, message = self._place
        self._items[place] = replace(message, content=(OutputText(message.text + text),))
        yield self._event("response.output_text.delta", **self._part, delta=text, logprobs=())

    def _open_message(self) -> Iterator[bytes]:
        self._message = len(self._items)
        message = OutputMessage(f"msg_{self._begun.id.removeprefix('resp_')}", "in_progress", ())
        yield self._add(message)
        yield self._event("response.content_part.added", **self._part, part=OutputText(""))

    def _add(self, item: OutputMessage | OutputCall) -> bytes:
        self._items.append(item)
        return self._event("response.output_item.added", output_index=len(self._items) - 1, item=item)

    def _call(self, place: int) -> OutputCall:
        call = self._items[place]
        assert isinstance(call, OutputCall)
        return call

    @property
    def _place(self) -> tuple[int, OutputMessage]:
        assert self._message is not None
        message = self._items[self._message]
        assert isinstance(message, OutputMessage)
        return self._message, message

    @property
    def _part(self) -> dict[str, Any]:
        place, message = self._place
        return {"item_id": message.id, "output_index": place, "content_index": 0}

    def _made(self, answer: Answer) -> ResponseObject:
        """The response, once all pieces of the answer are told."""
        if not self._items:
            for _ in self._open_message():
                pass
        status = "completed" if answer.complete else "incomplete"
        if self._message is not None:
            place, message = self._place
            text = message.text if self._tools else answer.text
            self._items[place] = replace(message, content=(OutputText(text),))
        made = replace(
            self._begun,
            status=status,
            output=tuple(replace(item, status=status) for item in self._items),
            incomplete_details=None if answer.complete else Incomplete(),
            usage=ResponseUsage.of(answer),
            cutline=answer,
        )
        self._keep(made)
        return made

    def _end(self, answer: Answer) -> Iterator[bytes]:
        made = self._made(answer)
        for place, item in enumerate(made.output):
            if isinstance(item, OutputCall):
                named = {"item_id": item.id, "output_index": place, "name": item.name}
                yield self._event("response.function_call_arguments.done", **named, arguments=item.arguments)
            else:
                (part,) = item.content
                yield self._event("response.output_text.done", **self._part, text=part.text, logprobs=())
                yield self._event("response.content_part.done", **self._part, part=part)
            yield self._event("response.output_item.done", output_index=place, item=item)
        yield self._event(f"response.{made.status}", response=made)

    def _event(self, kind: str, **told: Any) -> bytes:
        content = msgspec.json.encode({"type": kind, "sequence_number": next(self._numbers), **told})
        return b"event: " + kind.encode() + b"\ndata: " + content + b"\n\n"
