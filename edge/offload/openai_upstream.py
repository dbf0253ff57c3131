"""Another cloud: an OpenAI-compatible server that answers in place of a worker, with a model of its own.

No draft can be verified there, and no answer is the target's own: what comes back is text, which is taken as it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import msgspec

from cutline.core.request import Request
from cutline.edge.generation.generation import Generation, Prepared
from cutline.edge.generation.result import Provenance
from cutline.edge.offload.circuit_breaker import Circuit
from cutline.edge.offload.openai_messages import (
    Completion,
    Trouble,
    also_refused,
    body_of,
    completion_of,
    failure_of,
    readable,
    refusal_of,
)
from cutline.edge.offload.recovery import ANSWER_SECONDS, BACK_SECONDS, Recovery
from cutline.errors import CutlineError, InputError, WorkerBusy, WorkerFailed, WorkerUnavailable
from cutline.models.vocabulary import Vocabulary
from cutline.protos.channel.address import is_loopback

log = logging.getLogger(__name__)

KEY = "CUTLINE_UPSTREAM_KEY"  # of the environment
CONNECT_SECONDS = 5.0
MAX_LINE = 1 << 20  # bytes of one event
MOST_REST = 60.0  # seconds that a server without room is left alone at most
MAX_WHOLE = 8 << 20  # of an answer that is not streamed
MAX_REFUSAL = 64 << 10  # of what a server says to a request that it does not take
ENDING = 0.05  # seconds that the end of a body may come after its last event: a connection is used again if it does


class _Closed(WorkerUnavailable):
    """The agent itself closed the connection, which says nothing of the server."""


class Upstream:
    """The server at `url`, which ends where `/chat/completions` would follow, asked for `model`.

    The `key` goes into its Authorization header and nowhere else. A server that does not answer is left alone, and
    probed in the background until it does; what parameters it has `refused` it is not sent again. Raises InputError for
    what is no URL, or one by which pictures and the key would leave this machine in plain text.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        check_url(url)
        self.url = url.rstrip("/")
        self.model = model
        self.key = key or ""
        self.refused = frozenset[str]()
        self._clock = clock
        self._circuit = Circuit()
        self._recovery = Recovery(sleep=sleep)
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._transport = transport
        self._client: httpx.AsyncClient | None = None
        self.answered = False  # over the connections that there are
        self._closings = set[asyncio.Task[None]]()
        self._open = set[asyncio.Timeout]()  # of the sessions under way

    @property
    def client(self) -> httpx.AsyncClient:
        """The connections to it."""
        if self._client is None:
            # Neither a proxy nor keys of other servers are taken from the environment.
            self._client = httpx.AsyncClient(headers=self._headers, trust_env=False, transport=self._transport)
        return self._client

    @property
    def reachable(self) -> bool:
        """Whether it may be asked now."""
        return self._circuit.lets(self._clock())

    def check(self) -> None:
        """Begin to ask it, whose outcome is to be told to `report`. Raises WorkerUnavailable, or WorkerBusy."""
        now = self._clock()
        if not self._circuit.lets(now):
            if not self._circuit.failures:
                raise WorkerBusy(f"the server at {self.url} has no room", retry_seconds=self._circuit.left(now))
            raise WorkerUnavailable(
                f"the server at {self.url} failed lately; it is asked again once it answers", retry_seconds=BACK_SECONDS
            )
        self._circuit = self._circuit.asked()

    def report(self, error: BaseException | None) -> None:
        """What came of asking it. A server that is there, and refuses or fails on one request, is asked the next."""
        now = self._clock()
        match error:
            case _Closed():
                self._circuit = self._circuit.dropped()
            case WorkerUnavailable():
                self._circuit = self._circuit.failed(now, chance=random.random())  # noqa: S311 (no secret)
                error.retry_seconds = error.retry_seconds or BACK_SECONDS
                self._recovery.begin(self.url, self._probe)
            case WorkerBusy() if error.retry_seconds:
                self._circuit = self._circuit.refused(now, min(error.retry_seconds, MOST_REST))
            case None | CutlineError():
                self._circuit = self._circuit.worked()
            case _:
                self._circuit = self._circuit.dropped()

    def learn(self, trouble: Trouble, before: frozenset[str]) -> bool:
        """Whether a request without the parameters `before` was refused for others, which it is not sent again."""
        refused = also_refused(trouble, before)
        if refused == before:
            return False
        if more := refused - self.refused:
            log.warning("the server at %s is not sent %s any more: it refuses that", self.url, ", ".join(sorted(more)))
            self.refused |= refused
        return True

    async def _probe(self) -> bool:
        """See whether it answers again; false once that is known."""
        if not self._circuit.failures:
            return False
        try:
            async with self.connected():
                response = await self.client.get(f"{self.url}/models", timeout=ANSWER_SECONDS)
            answers = response.status_code < 500  # which it may well not have
        except (httpx.HTTPError, WorkerUnavailable):
            answers = False
        self._circuit = self._circuit.answered() if answers else self._circuit.unanswered()
        return self._circuit.failures > 0

    def session(self) -> UpstreamSession:
        """One question before it."""
        return UpstreamSession(self)

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """What is done here ends once there is to be no connection any more. Raises WorkerUnavailable then."""
        end = asyncio.timeout(None)
        self._open.add(end)
        try:
            async with end:
                yield
        except TimeoutError:
            raise _Closed(f"the connection to the server at {self.url} was closed") from None
        finally:
            self._open.discard(end)

    def disconnect(self) -> None:
        """Break off what is under way and close all connections; the next session makes new ones."""
        self._recovery.end()
        self._circuit = Circuit()
        while self._open:
            self._open.pop().reschedule(asyncio.get_running_loop().time())
        if self._client is not None:
            closing = asyncio.create_task(self._client.aclose())
            self._closings.add(closing)
            closing.add_done_callback(self._closings.discard)
            self._client = None
            self.answered = False

    async def close(self) -> None:
        """Close the connections to it."""
        self.disconnect()
        await self._recovery.close()
        await asyncio.gather(*self._closings, return_exceptions=True)


class UpstreamSession:
    """One question before an `upstream`; `bytes_up` and `bytes_down` count its bodies.

    It was `heard` of last then (on the monotonic clock), and once it has sent anything it has `answered`.
    """

    def __init__(self, upstream: Upstream) -> None:
        self.address = upstream.url
        self.bytes_up = 0
        self.bytes_down = 0
        self.answered = False
        self.heard = time.monotonic()
        self._upstream = upstream

    async def answer(self, prepared: Prepared, progress: Generation, vocabulary: Vocabulary, stop: int) -> None:
        """Settle its answer, in the tokens that the drafter's `vocabulary` writes it with, then `stop` if it is whole.

        Raises WorkerError, whatever was settled before; at once where the server failed before and is not back.
        """
        self._upstream.check()
        outcome: BaseException | None = None
        try:
            reason = await self._ask(prepared, progress, vocabulary)
            if not progress.tokens:
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
            progress.parts.lap("cloud")
        if reason == "stop" and not progress.over and len(progress.tokens) < prepared.question.max_tokens:
            progress.settle([stop], [Provenance.CLOUD])

    async def _ask(self, prepared: Prepared, progress: Generation, vocabulary: Vocabulary) -> str | None:
        """Ask until the server takes the request. Gives why its answer ended. Raises WorkerError, HTTPError."""
        upstream, question = self._upstream, await asyncio.to_thread(readable, prepared.question)
        progress.rounds = 1
        progress.cold |= not upstream.answered
        while True:
            refused = upstream.refused
            body = msgspec.json.encode(body_of(question, upstream.model, refused))
            self.bytes_up += len(body)
            progress.sent = [(time.perf_counter(), len(body))]
            left = max(question.timeout - (time.perf_counter() - progress.began), 0.001)
            async with (
                upstream.connected(),
                upstream.client.stream(
                    "POST",
                    f"{self.address}/chat/completions",
                    content=body,
                    headers={"content-type": "application/json"},
                    timeout=httpx.Timeout(left, connect=min(left, CONNECT_SECONDS)),
                    extensions={"trace": _Connecting(progress).trace},
                ) as response,
            ):
                if response.status_code == 200:
                    reason = await self._take_all(response, progress, vocabulary, question)
                    upstream.answered = True
                    return reason
                said = await self._whole(response, MAX_REFUSAL)
                trouble = None if said is None else said.trouble
                if response.status_code not in (400, 422) or trouble is None or not upstream.learn(trouble, refused):
                    waits = response.headers.get("retry-after", "")
                    raise refusal_of(self.address, response.status_code, trouble, waits=waits, key=upstream.key)

    async def _take_all(
        self, response: httpx.Response, progress: Generation, vocabulary: Vocabulary, question: Request
    ) -> str | None:
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
                    self._take(choice.text, progress, vocabulary, question.max_tokens)
            if len(progress.tokens) >= question.max_tokens or progress.over:
                return None
            if time.perf_counter() - progress.began > question.timeout:
                raise WorkerUnavailable(f"the server at {self.address} did not finish its answer in time")
        if reason is None:
            raise WorkerUnavailable(f"the server at {self.address} ended its answer early")
        return reason

    def _take(self, text: str, progress: Generation, vocabulary: Vocabulary, most: int) -> None:
        tokens = vocabulary.encode(vocabulary.guard(text.encode(errors="replace").decode()))
        tokens = tokens[: most - len(progress.tokens)]  # it counts in tokens of its own, or not at all
        progress.settle(tokens, [Provenance.CLOUD] * len(tokens))

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


class _Connecting:
    """Tells the `progress` of an answer when a connection was made for it, and when the request went into it."""

    def __init__(self, progress: Generation) -> None:
        self._progress = progress
        self._began = 0.0

    async def trace(self, event: str, info: object) -> None:
        """What HTTPX's transport does."""
        del info
        progress = self._progress
        if event == "connection.connect_tcp.started":
            self._began = time.perf_counter()
        elif event == "connection.connect_tcp.complete":
            progress.connecting = time.perf_counter() - self._began
        elif event.endswith("send_request_headers.started"):
            progress.sent = [(time.perf_counter(), size) for _, size in progress.sent]
            if progress.connecting is not None:
                progress.parts.lap("link")


def check_url(url: str) -> None:
    """Raises InputError for what is no URL of a server, has a password in it, or would be asked in plain text."""
    try:
        given = httpx.URL(url)
    except httpx.InvalidURL:
        given = httpx.URL("")
    if given.scheme not in ("http", "https") or not given.host or given.userinfo:
        raise InputError("the upstream is no URL of a server; give one such as https://api.example.com/v1")
    if given.scheme == "http" and not is_loopback(given.host):
        raise InputError(f"pictures and the key would go to {given.host} in plain text; give its https:// URL")


def open_key(file: Path | None) -> str | None:
    """The key in a `file`, or else in the environment. Raises InputError."""
    try:
        key = os.environ.get(KEY, "") if file is None else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the key in {file} cannot be read ({getattr(error, 'strerror', 'not text')})") from None
    if file is None and not key:
        return None
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise InputError(f"{file or KEY} holds no key: one line of plain characters")
    return key
