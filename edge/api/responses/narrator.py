"""An answer told as a response, whole and in events."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from cutline.edge.api.errors import fault_of
from cutline.edge.api.responses.objects import Incomplete, OutputMessage, OutputText, ResponseObject, ResponseUsage
from cutline.edge.api.streams import AnswerText
from cutline.edge.generation.events import Event, Settled
from cutline.edge.generation.result import Answer


class ResponseTeller:
    """Tells an answer as the response that `begun` becomes by it; `keep` hears that once it has."""

    media_type = "text/event-stream; charset=utf-8"
    silence = b": waiting\n\n"
    last = b""

    def __init__(self, begun: ResponseObject, keep: Callable[[ResponseObject], object]) -> None:
        self._begun = begun
        self._keep = keep
        self._item = OutputMessage(f"msg_{begun.id.removeprefix('resp_')}", "in_progress", ())
        self._text = AnswerText()
        self._numbers = itertools.count()
        self._opened = False

    def whole(self, answer: Answer) -> ResponseObject:
        """The response that is an answer."""
        status = "completed" if answer.complete else "incomplete"
        item = replace(self._item, status=status, content=(OutputText(answer.text),))
        made = replace(
            self._begun,
            status=status,
            output=(item,),
            incomplete_details=None if answer.complete else Incomplete(),
            usage=ResponseUsage.of(answer),
            cutline=answer,
        )
        self._keep(made)
        return made

    def pieces(self, event: Event) -> Iterator[bytes]:
        """The events that tell of one."""
        if not self._opened:
            self._opened = True
            yield self._event("response.created", response=self._begun)
            yield self._event("response.in_progress", response=self._begun)
            yield self._event("response.output_item.added", output_index=0, item=self._item)
            yield self._event("response.content_part.added", **self._place, part=OutputText(""))
        match event:
            case Settled():
                yield from self._delta(self._text.more("".join(token.text for token in event.tokens)))
            case Answer():
                yield from self._delta(self._text.rest(event))
                yield from self._end(event)

    def broken(self, error: Exception) -> bytes:
        """The event that ends a stream which failed."""
        fault = fault_of(error)
        return self._event("error", code=fault.code, message=fault.message, param=fault.param, error=fault)

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item.id, "output_index": 0, "content_index": 0}

    def _delta(self, text: str) -> Iterator[bytes]:
        if text:
            yield self._event("response.output_text.delta", **self._place, delta=text, logprobs=())

    def _end(self, answer: Answer) -> Iterator[bytes]:
        made = self.whole(answer)
        (item,) = made.output
        (part,) = item.content
        yield self._event("response.output_text.done", **self._place, text=part.text, logprobs=())
        yield self._event("response.content_part.done", **self._place, part=part)
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event(f"response.{made.status}", response=made)

    def _event(self, kind: str, **told: Any) -> bytes:
        content = msgspec.json.encode({"type": kind, "sequence_number": next(self._numbers), **told})
        return b"event: " + kind.encode() + b"\ndata: " + content + b"\n\n"
