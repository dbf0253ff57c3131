"""An upstream as a backend, which answers one request.

No draft can be verified there, and no answer is the target's own: what comes back is text, which is taken as it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Self

import httpx
import msgspec

from cutline.core.constraint import Grammar
from cutline.core.request import Mode, Request
from cutline.core.sampling import GREEDY
from cutline.edge.generation.generation import Execution, Generation, Prepared
from cutline.edge.generation.result import Provenance
from cutline.edge.offload.backends.openai_messages import (
    PENALTIES,
    Completion,
    body_of,
    completion_of,
    failure_of,
    readable,
    refusal_of,
)
from cutline.edge.offload.backends.openai_upstream import Upstream
from cutline.errors import InputError, WorkerFailed, WorkerUnavailable
from cutline.models.vocabulary import Vocabulary

if TYPE_CHECKING:  # its library is loaded where somebody asks for it
    from cutline.models.law.grammars import CompiledConstraint

CONNECT_SECONDS = 5.0
MAX_LINE = 1 << 20  # bytes of one event
MAX_WHOLE = 8 << 20  # of an answer that is not streamed
MAX_REFUSAL = 64 << 10  # of what a server says to a request that it does not take
ENDING = 0.05  # seconds that the end of a body may come after its last event: a connection is used again if it does
# What an upstream is asked for, or may choose itself. For the rest there are no words, or its tokens are others.
SENT = frozenset({"temperature", "top_k", "top_p", "seed", *PENALTIES, "constraint"})


class UpstreamBackend:
    """An `upstream` for one request, whose answer is written with the drafter's `vocabulary` and ended by `stop`.

    It has so many `seconds`. Its session is itself: `bytes_up` and `bytes_down` count its bodies, it was `heard` of
    last then (on the monotonic clock), and once it has sent anything it has `answered`. Raises InputError for a request
    that only a worker of the target can answer.
    """

    exact: None = None

    def __init__(
        self,
        upstream: Upstream,
        prepared: Prepared,
        execution: Execution,
        vocabulary: Vocabulary,
        *,
        stop: int,
        seconds: float,
    ) -> None:
        _check(prepared.request, execution)
        self.address = upstream.url
        self.bytes_up = 0
        self.passes = 0  # nobody says
        self.bytes_down = 0
        self.answered = False
        self.heard = time.monotonic()
        self._upstream = upstream
        self._request, self._compiled = prepared.request, prepared.compiled
        self._most = prepared.request.max_tokens or sys.maxsize
        self._vocabulary = vocabulary
        self._stop = stop
        self._end = time.monotonic() + seconds

    @property
    def session(self) -> Self:
        """This one."""
        return self

    async def extend(self, generation: Generation) -> None:
        """Have the server answer; the answer is begun there, whatever the generation has.

        Raises WorkerError; at once where the server failed before and is not back.
        """
        self._upstream.check()
        outcome: BaseException | None = None
        try:
            reason = await self._ask(generation)
            if not generation.tokens:
                why = reason or "no reason given"
                raise WorkerFailed(f"the server at {self.address} ended its answer without a word ({why})")
        except httpx.TimeoutException as error:
            outcome = WorkerUnavailable(f"the server at {self.address} did not answer in time")
            raise outcome from error
        except httpx.HTTPError as error:
            outcome = WorkerUnavailable(f"no server answers at {self.address}, or the link to it broke")
            raise outcome from error
        except BaseException as error:
            outcome = error
            raise
        finally:
            self._upstream.report(outcome)
            generation.parts.lap("cloud")
        if reason == "stop" and self._compiled is not None:
            await self._check_format(self._compiled, self._vocabulary.decode(generation.tokens).strip())
        if reason == "stop" and not generation.over and len(generation.tokens) < self._most:
            generation.settle([self._stop], [Provenance.CLOUD])
        generation.limit = len(generation.tokens)  # it has said all that it will

    async def _check_format(self, compiled: CompiledConstraint, text: str) -> None:
        """Raises WorkerFailed where a whole answer does not keep to what it was asked to."""
        if not await asyncio.to_thread(compiled.accepts, text, self._vocabulary):
            raise WorkerFailed(f"the server at {self.address} does not keep to the response format; ask another one")

    async def _ask(self, generation: Generation) -> str | None:
        """Ask until the server takes the request. Gives why its answer ended. Raises WorkerError, HTTPError."""
        upstream, request = self._upstream, await asyncio.to_thread(readable, self._request)
        generation.rounds = 1
        generation.cold |= not upstream.answered
        while True:
            refused = upstream.refused
            body = msgspec.json.encode(body_of(request, upstream.model, refused))
            self.bytes_up += len(body)
            generation.sent = [(time.perf_counter(), len(body))]
            left = max(self._end - time.monotonic(), 0.001)
            async with (
                upstream.connected(),
                upstream.client.stream(
                    "POST",
                    f"{self.address}/chat/completions",
                    content=body,
                    headers={"content-type": "application/json"},
                    timeout=httpx.Timeout(left, connect=min(left, CONNECT_SECONDS)),
                    extensions={"trace": _Connecting(generation).trace},
                ) as response,
            ):
                if response.status_code == 200:
                    reason = await self._take_all(response, generation)
                    upstream.answered = True
                    return reason
                said = await self._whole(response, MAX_REFUSAL)
                trouble = None if said is None else said.trouble
                if response.status_code not in (400, 422) or trouble is None or not upstream.learn(trouble, refused):
                    waits = response.headers.get("retry-after", "")
                    raise refusal_of(self.address, response.status_code, trouble, waits=waits, key=upstream.key)

    async def _take_all(self, response: httpx.Response, generation: Generation) -> str | None:
        """Settle what a response says. Gives why the answer ended; None where it was cut here, or nobody says.

        Raises WorkerError for one that tells of an error, or ends before it says that it does.
        """
        reason: str | None = None
        async for said in self._said(response):
            if said is None:  # the mark at the end of a stream
                return reason
            if (trouble := said.trouble) is not None:
                raise failure_of(self.address, trouble, key=self._upstream.key)
            for choice in (said.choices or ())[:1]:
                reason = choice.finish_reason or reason
                if choice.text:
                    self._take(choice.text, generation)
            if len(generation.tokens) >= self._most or generation.over:
                return None
            if time.monotonic() > self._end:
                raise WorkerUnavailable(f"the server at {self.address} did not finish its answer in time")
        if reason is None:
            raise WorkerUnavailable(f"the server at {self.address} ended its answer early")
        return reason

    def _take(self, text: str, generation: Generation) -> None:
        tokens = self._vocabulary.encode(self._vocabulary.guard(text.encode(errors="replace").decode()))
        tokens = tokens[: self._most - len(generation.tokens)]  # its own count is another
        generation.settle(tokens, [Provenance.CLOUD] * len(tokens))

    async def _said(self, response: httpx.Response) -> AsyncIterator[Completion | None]:
        """What a response says, event by event, or at once where the server does not stream; then None for its mark.

        Raises WorkerFailed for what is neither.
        """
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":  # it does not stream, though it was asked to
            if (said := await self._whole(response, MAX_WHOLE)) is None:
                raise self._other()
            yield said
            return
        if "html" in kind:
            raise WorkerFailed(
                f"the server at {self.address} answers with a web page, such as one to log in at; is it the API's URL?"
            )
        stream, found = response.aiter_bytes(), False
        async for line in self._lines(stream):
            content = line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or not content:
                continue
            found = True
            if content == b"[DONE]":
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ENDING):
                        self.bytes_down += sum([len(more) async for more in stream])
                yield None
                return
            if (said := completion_of(content)) is None:
                raise self._other()
            yield said
        if not found:
            raise self._other()

    async def _lines(self, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The lines of a stream, the last also where no end of line follows it."""
        kept = b""
        async for data in stream:
            self._hear(data)
            *lines, kept = (kept + data).split(b"\n")
            if len(kept) > MAX_LINE:
                raise WorkerFailed(f"the server at {self.address} sends events without end")
            for line in lines:
                yield line
        yield kept

    async def _whole(self, response: httpx.Response, most: int) -> Completion | None:
        """What a response says at once, in at most so many bytes; None where that is nothing of this protocol."""
        body = bytearray()
        async for data in response.aiter_bytes():
            self._hear(data)
            body += data
            if len(body) > most:
                return None
        return completion_of(bytes(body))

    def _hear(self, data: bytes) -> None:
        self.bytes_down += len(data)
        self.answered, self.heard = True, time.monotonic()

    def _other(self) -> WorkerFailed:
        return WorkerFailed(f"the server at {self.address} does not speak OpenAI's chat completions")


def _check(request: Request, execution: Execution) -> None:
    cut = execution.cut
    if request.exact or cut != "image" or request.mode in (Mode.DRAFT, Mode.SPLIT):
        what = "an exact answer" if request.exact else f"the cut {cut}" if cut != "image" else f"mode {request.mode}"
        raise InputError(f"{what} needs a worker of the target; an upstream answers in modes cloud and auto")
    if request.tools is not None or any(message.role == "tool" for message in request.messages):
        raise InputError("tools need a model here; an upstream is not asked about any")
    if request.image_tokens is not None:
        raise InputError("image-tokens needs a model here; an upstream makes of images what it likes")
    sampling = request.sampling
    unsent = [name for name in sampling.__struct_fields__ if name not in SENT]
    if unsent := [name for name in unsent if getattr(sampling, name) != getattr(GREEDY, name)]:
        names = ", ".join(name.replace("_", "-") for name in unsent)
        raise InputError(f"{names} needs a worker of the target; an upstream is asked for nothing of the kind")
    if sampling.constraint is not None and sampling.constraint.grammar is not Grammar.JSON_SCHEMA:
        raise InputError(f"an upstream keeps to JSON schemas, not to a {sampling.constraint.grammar}; ask a worker")


class _Connecting:
    """Tells a `generation` when a connection was made for it, and when the request went into it."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._began = 0.0

    async def trace(self, event: str, info: object) -> None:
        """What HTTPX's transport does."""
        del info
        generation = self._generation
        if event == "connection.connect_tcp.started":
            self._began = time.perf_counter()
        elif event == "connection.connect_tcp.complete":
            generation.connecting = time.perf_counter() - self._began
        elif event.endswith("send_request_headers.started"):
            generation.sent = [(time.perf_counter(), size) for _, size in generation.sent]
            if generation.connecting is not None:
                generation.parts.lap("link")
