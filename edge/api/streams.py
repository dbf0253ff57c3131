"""An answer as it happens: what every API's way to tell it has, and the response that tells it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

from starlette.types import Receive, Scope, Send

from cutline.core.request import Request
from cutline.edge.generation.events import Event
from cutline.edge.generation.result import Answer, Token
from cutline.errors import CutlineError, WorkerUnavailable
from cutline.models.bundle import Manifest
from cutline.models.tools import Argued, Called, CallReader, Piece, Said

STOPPED = "the agent was stopped before it had an answer; ask another"

log = logging.getLogger(__name__)


class Teller(Protocol):
    """Tells one answer in the words of an API."""

    @property
    def media_type(self) -> str:
        """Of a stream."""

    @property
    def silence(self) -> bytes:
        """What a stream tells while there is nothing to tell."""

    @property
    def last(self) -> bytes:
        """What ends a stream that told all."""

    def whole(self, answer: Answer) -> object:
        """The response that is an answer, to be encoded as JSON."""

    def pieces(self, event: Event) -> Iterable[bytes]:
        """What a stream tells of an event."""

    def broken(self, error: Exception) -> bytes:
        """What ends a stream that fails."""


class AnswerText:
    """The text of an answer that comes in pieces, which joined have no space around them."""

    def __init__(self) -> None:
        self._sent = ""
        self._space = ""  # held back: at the end of an answer there is none

    def more(self, text: str) -> str:
        """What to send of the text that follows."""
        text = self._space + text
        if not self._sent:
            text = text.lstrip()
        sent = text.rstrip()
        self._space = text[len(sent) :]
        self._sent += sent
        return sent

    def rest(self, answer: Answer) -> str:
        """What to send at the end: what a token cut short stands for is not known before."""
        return answer.text.removeprefix(self._sent) if answer.text.startswith(self._sent) else ""


class AnswerPieces:
    """An answer that comes in pieces: its words, without space around them, and its calls of tools."""

    def __init__(self, manifest: Manifest, question: Request) -> None:
        box, syntax = question.tools, manifest.family.tools
        self._text = AnswerText()
        self._reader = None if box is None or syntax is None else CallReader(syntax, box.names, one=not box.parallel)

    @property
    def tools(self) -> bool:
        """Whether it may call any."""
        return self._reader is not None

    @property
    def called(self) -> bool:
        """Whether a tool was called."""
        return self._reader is not None and self._reader.calls > 0

    def more(self, tokens: Iterable[Token]) -> list[Piece]:
        """What more tokens add; words of nothing among it, where they are."""
        if self._reader is None:
            return [Said(self._text.more("".join(token.text for token in tokens)))]
        return self._trimmed(chain.from_iterable(self._reader.read(token.text) for token in tokens))

    def rest(self, answer: Answer) -> list[Piece]:
        """What to tell at the end."""
        if self._reader is None:
            return [Said(self._text.rest(answer))]
        return self._trimmed(self._reader.finish())

    def _trimmed(self, pieces: Iterable[Piece]) -> list[Piece]:
        return [Said(self._text.more(piece.text)) if isinstance(piece, Said) else piece for piece in pieces]


@dataclass(frozen=True, slots=True)
class WholeCall:
    """A call of a tool, as far as the answer has it."""

    name: str
    arguments: str


def whole_of(manifest: Manifest, question: Request, answer: Answer) -> tuple[str, list[WholeCall]]:
    """The words of a whole answer, and its calls of tools."""
    if question.tools is None:
        return answer.text, []
    told = AnswerPieces(manifest, question)
    words, calls = list[str](), list[list[str]]()
    for piece in (*told.more(answer.tokens), *told.rest(answer)):
        match piece:
            case Said(text):
                words.append(text)
            case Called(_, name):
                calls.append([name, ""])
            case Argued(index, text):
                calls[index][1] += text
    return "".join(words), [WholeCall(name, arguments) for name, arguments in calls]


def words_of(pieces: Iterable[Piece]) -> str:
    """The words among pieces."""
    return "".join(piece.text for piece in pieces if isinstance(piece, Said))


class AnswerStream:
    """The response that tells `events`, the `first` of which is known, in the words of a `teller`.

    After `silence` seconds without an event it tells that the answer is still being made. `events` are closed as soon
    as the client is gone; `over` hears how it ended: the Answer, an exception, or None where nobody waited any more.
    """

    def __init__(
        self,
        teller: Teller,
        first: Event,
        events: AsyncGenerator[Event],
        over: Callable[[Answer | Exception | None], object],
        *,
        silence: float,
    ) -> None:
        self._teller = teller
        self._first = first
        self._events = events
        self._over = over
        self._silence = silence
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
        headers = [(b"content-type", self._teller.media_type.encode()), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        event: Event | None = self._first
        try:
            while event is not None:
                for piece in self._teller.pieces(event):
                    await _send(send, piece)
                if isinstance(event, Answer):
                    self._outcome = event
                event = await self._next(send)
            await _send(send, self._teller.last, last=True)
        except Exception as error:
            if not isinstance(error, CutlineError):
                log.exception("an answer that was streamed failed")
            self._outcome = error
            await self._break_off(send, error)

    async def _next(self, send: Send) -> Event | None:
        """The next event, None after the last; while there is none, what says so keeps the connection alive."""
        waiting = asyncio.ensure_future(anext(self._events, None))
        try:
            while not (await asyncio.wait([waiting], timeout=self._silence))[0]:
                await _send(send, self._teller.silence)
            return waiting.result()
        finally:
            await end(waiting)

    async def _break_off(self, send: Send, error: Exception) -> None:
        with suppress(OSError, RuntimeError):  # nobody listens, or the end was on its way
            await _send(send, self._teller.broken(error), last=True)


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
