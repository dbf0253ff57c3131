"""An answer as it happens, in server-sent events: what is told of it, and the response that tells it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import UNSET
from starlette.types import Receive, Scope, Send

from cutline.edge.api.errors import Failed, fault_of
from cutline.edge.api.responses import (
    ChatChunk,
    ChunkChoice,
    Delta,
    FinishReason,
    Heading,
    Logprobs,
    Told,
    Usage,
    logprobs_of,
    usage_of,
)
from cutline.edge.generation.events import Corrected, Event, Guessed, Planned, Settled
from cutline.edge.generation.result import Answer, Lost
from cutline.errors import CutlineError, WorkerUnavailable

KEEP_ALIVE = 10.0  # seconds of silence after which a comment says that the answer is still being made
STOPPED = "the agent was stopped before it had an answer; ask another"
DONE = b"data: [DONE]\n\n"

log = logging.getLogger(__name__)


class Narrator:
    """Tells the events of one answer as chunks, whose deltas joined are the answer's text.

    `guesses` tells what the drafter believes too, `usage` counts tokens at the end. `limit` is what the answer may have
    of tokens, `stops` are those that end one.
    """

    def __init__(
        self,
        heading: Heading,
        *,
        limit: int,
        stops: Collection[int],
        logprobs: bool = False,
        guesses: bool = False,
        usage: bool = False,
    ) -> None:
        self._heading = heading
        self._limit = limit
        self._stops = stops
        self._logprobs = logprobs
        self._guesses = guesses
        self._usage = usage
        self._text = ""  # that was sent
        self._space = ""  # held back: at the end of an answer there is none
        self._last: int | None = None
        self._settled = 0
        self._begun = False
        self._reason: FinishReason | None = None

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
        text = "".join(token.text for token in event.tokens)
        logprobs = logprobs_of(event.tokens, self._stops) if self._logprobs else None
        return self._chunk(self._trimmed(text), Told(settled=event), logprobs)

    def _conclude(self, answer: Answer) -> Iterator[ChatChunk]:
        told = Told(answer=answer)
        if self._reason is None:
            # What a token cut short stands for is known at the end alone.
            rest = answer.text.removeprefix(self._text) if answer.text.startswith(self._text) else ""
            last = UNSET if self._usage else told
            yield from self._finish("stop" if answer.complete else "length", rest, last)
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
        return "length" if self._settled >= self._limit and self._last not in self._stops else "stop"

    def _trimmed(self, text: str) -> str:
        """What to send of the text that follows, so that there is no space around the whole."""
        text = self._space + text
        if not self._text:
            text = text.lstrip()
        sent = text.rstrip()
        self._space = text[len(sent) :]
        self._text += sent
        return sent

    def _chunk(
        self, content: str | None, told: Told | msgspec.UnsetType, logprobs: Logprobs | None = None
    ) -> ChatChunk:
        delta = Delta(
            role=UNSET if self._begun else "assistant",
            content=("" if not self._begun else UNSET) if content is None else content,
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


class EventStream:
    """The response that tells `events`, the `first` of which is known, through a narrator.

    `events` are closed as soon as the client is gone; `over` hears how it ended: the Answer, an exception, or None
    where nobody waited for it any more.
    """

    def __init__(
        self,
        narrator: Narrator,
        first: Event,
        events: AsyncGenerator[Event],
        over: Callable[[Answer | Exception | None], object],
    ) -> None:
        self._narrator = narrator
        self._first = first
        self._events = events
        self._over = over
        self._outcome: Answer | Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        telling = asyncio.create_task(self._tell(send))
        gone = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait([telling, gone], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # the server stops, and has waited long enough
            await end(telling)
            self._outcome = WorkerUnavailable(STOPPED)
            await self._break_off(send, self._outcome)
        finally:
            await end(telling, gone)
            await self._events.aclose()
            self._over(self._outcome)
        if not telling.cancelled() and (error := telling.exception()) is not None:
            raise error

    async def _tell(self, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        event: Event | None = self._first
        try:
            while event is not None:
                for chunk in self._narrator.chunks(event):
                    await _send(send, b"data: " + msgspec.json.encode(chunk) + b"\n\n")
                if isinstance(event, Answer):
                    self._outcome = event
                event = await self._next(send)
            await _send(send, DONE, last=True)
        except Exception as error:
            if not isinstance(error, CutlineError):
                log.exception("an answer that was streamed failed")
            self._outcome = error
            await self._break_off(send, error)

    async def _next(self, send: Send) -> Event | None:
        """The next event, None after the last; while there is none, comments keep the connection alive."""
        waiting = asyncio.ensure_future(anext(self._events, None))
        try:
            while not (await asyncio.wait([waiting], timeout=KEEP_ALIVE))[0]:
                await _send(send, b": waiting\n\n")
            return waiting.result()
        finally:
            await end(waiting)

    async def _break_off(self, send: Send, error: Exception) -> None:
        with suppress(OSError, RuntimeError):  # nobody listens, or the end was on its way
            await _send(send, b"data: " + msgspec.json.encode(Failed(fault_of(error))) + b"\n\n", last=True)


async def disconnected(receive: Receive) -> None:
    """Until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what still runs, and wait for it."""
    if left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left)


async def _send(send: Send, body: bytes, *, last: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": not last})
