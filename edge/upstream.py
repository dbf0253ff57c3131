"""Another cloud: an OpenAI-compatible server that answers in place of a worker, with a model of its own.

No draft can be verified there, and no answer is the target's own: what comes back is text, which is taken as it comes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec

from cutline.edge.answer import Provenance
from cutline.edge.progress import Prepared, Progress
from cutline.edge.question import Question
from cutline.errors import AccessDenied, InputError, WorkerBusy, WorkerError, WorkerFailed, WorkerUnavailable
from cutline.models.prompt import ImagePart, Message
from cutline.models.unreadable import UNREADABLE
from cutline.models.vocabulary import Vocabulary
from cutline.protos.address import is_loopback

KEY = "CUTLINE_UPSTREAM_KEY"  # of the environment
MAX_LINE = 1 << 20  # bytes of one event
ENDING = 0.05  # seconds that the end of a body may come after its last event: a connection is used again if it does
KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}  # of images, by how their files begin


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []


class Upstream:
    """The server at `url`, which ends where `/chat/completions` would follow, asked for `model`.

    The `key` goes into its Authorization header and nowhere else. Raises InputError for what is no URL, or one by which
    pictures and the key would leave this machine in plain text.
    """

    def __init__(
        self, url: str, *, model: str, key: str | None = None, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        check_url(url)
        self.url = url.rstrip("/")
        self.model = model
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
            raise WorkerUnavailable(f"the connection to the server at {self.url} was closed") from None
        finally:
            self._open.discard(end)

    def disconnect(self) -> None:
        """Break off what is under way and close all connections; the next session makes new ones."""
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

    async def answer(self, prepared: Prepared, progress: Progress, vocabulary: Vocabulary, stop: int) -> None:
        """Settle its answer, in the tokens that the drafter's `vocabulary` writes it with, then `stop` if it is whole.

        Raises WorkerError, whatever was settled before.
        """
        question = prepared.question
        body = msgspec.json.encode(_body(question, self._upstream.model))
        self.bytes_up += len(body)
        left = question.timeout - (time.perf_counter() - progress.began)
        progress.rounds = 1
        progress.cold |= not self._upstream.answered
        progress.sent = [(time.perf_counter(), len(body))]
        try:
            async with (
                self._upstream.connected(),
                self._upstream.client.stream(
                    "POST",
                    f"{self.address}/chat/completions",
                    content=body,
                    headers={"content-type": "application/json"},
                    timeout=httpx.Timeout(max(left, 0.001), connect=min(max(left, 0.001), 5.0)),
                    extensions={"trace": _Connecting(progress).trace},
                ) as response,
            ):
                if response.status_code != 200:
                    raise _refusal(self.address, response)
                whole = False
                async for chunk in self._chunks(response):
                    for choice in chunk.choices[:1]:
                        whole |= choice.finish_reason == "stop"
                        if choice.delta.content:
                            self._take(choice.delta.content, progress, vocabulary, question.max_tokens)
                    full = len(progress.tokens) >= question.max_tokens
                    if full or progress.over or time.perf_counter() - progress.began > question.timeout:
                        break
            self._upstream.answered = True
        except httpx.TimeoutException:
            raise WorkerUnavailable(f"the server at {self.address} did not answer in time") from None
        except httpx.HTTPError:
            raise WorkerUnavailable(f"no server answers at {self.address}, or the link to it broke") from None
        finally:
            progress.parts.lap("cloud")
        if whole and not progress.over and len(progress.tokens) < question.max_tokens:
            progress.settle([stop], [Provenance.CLOUD])

    def _take(self, text: str, progress: Progress, vocabulary: Vocabulary, most: int) -> None:
        tokens = vocabulary.encode(vocabulary.guard(text.encode(errors="replace").decode()))
        tokens = tokens[: most - len(progress.tokens)]  # it counts in tokens of its own, or not at all
        progress.settle(tokens, [Provenance.CLOUD] * len(tokens))

    async def _chunks(self, response: httpx.Response) -> AsyncIterator[_Chunk]:
        """The events of its answer. Raises WorkerFailed on what is none."""
        kept, stream = b"", response.aiter_bytes()
        async for data in stream:
            self.bytes_down += len(data)
            self.answered, self.heard = True, time.monotonic()
            *lines, kept = (kept + data).split(b"\n")
            if len(kept) > MAX_LINE:
                raise WorkerFailed(f"the server at {self.address} sends events without end")
            for line in lines:
                content = line.removeprefix(b"data:").strip()
                if not line.startswith(b"data:") or not content:
                    continue
                if content == b"[DONE]":
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(ENDING):
                            self.bytes_down += sum([len(more) async for more in stream])
                    return
                try:
                    yield msgspec.json.decode(content, type=_Chunk)
                except UNREADABLE:
                    why = f"the server at {self.address} does not speak OpenAI's chat completions"
                    raise WorkerFailed(why) from None


class _Connecting:
    """Tells the `progress` of an answer when a connection was made for it, and when the request went into it."""

    def __init__(self, progress: Progress) -> None:
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


def _body(question: Question, model: str) -> dict[str, Any]:
    images = iter(question.images)
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message, images) for message in question.messages],
        "max_tokens": question.max_tokens,
        "temperature": question.sampling.temperature,
        "stream": True,
    }
    if question.sampling.temperature > 0:
        body |= {"top_p": question.sampling.top_p, "seed": question.sampling.seed}
    if question.stop:
        body["stop"] = list(question.stop)
    return body


def _message(message: Message, images: Any) -> dict[str, Any]:
    parts = [
        {"type": "image_url", "image_url": {"url": _url(next(images))}}
        if isinstance(part, ImagePart)
        else {"type": "text", "text": part.text}
        for part in message.parts
    ]
    plain = all(part["type"] == "text" for part in parts)
    return {"role": message.role, "content": message.text if plain else parts}


def _url(image: bytes) -> str:
    kind = next((kind for start, kind in KINDS.items() if image.startswith(start)), "octet-stream")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _refusal(url: str, response: httpx.Response) -> WorkerError:
    """What a status other than 200 means; what the server says beside it may be anything, and is not repeated."""
    status = response.status_code
    if status in (401, 403):
        return AccessDenied(f"the server at {url} does not take this key ({status}); set {KEY} or give a key's file")
    if status == 429:
        waits = response.headers.get("retry-after", "")
        return WorkerBusy(f"the server at {url} has no room", retry_seconds=float(waits) if waits.isdecimal() else 0.0)
    if status >= 500:
        return WorkerUnavailable(f"the server at {url} failed on this request ({status})")
    return WorkerFailed(f"the server at {url} refuses this request ({status}); does it serve this model, and images?")
