"""The agent over HTTP, in the shape of OpenAI's chat completions, and the little client that `ask --agent` is.

One user message with one image, as a `data:` URL, per request. What OpenAI's shape has no words for stands under
`cutline`: in the request `mode`, `effort`, `top_k` and `timeout`, in the response the whole `Answer`.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import httpx
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cutline.edge.agent import Agent
from cutline.edge.answer import Answer, Mode, Question
from cutline.errors import (
    BundleError,
    CutlineError,
    ImageError,
    InputError,
    ModelMismatch,
    PromptError,
    WorkerBusy,
    WorkerFailed,
    WorkerUnavailable,
)
from cutline.models.sampling import Sampling

log = logging.getLogger(__name__)

MAX_BODY = 48 << 20  # bytes: an image of 32 MiB in base64, and room for words
STOP_SECONDS = 2

# The one table between exceptions and HTTP statuses, read in both directions by the name that stands in the body.
_STATUS: dict[type[CutlineError], int] = {
    ImageError: 400,
    PromptError: 400,
    InputError: 400,
    BundleError: 500,
    WorkerUnavailable: 503,
    ModelMismatch: 502,
    WorkerBusy: 429,
    WorkerFailed: 502,
}


class _Text(msgspec.Struct, tag_field="type", tag="text", frozen=True):
    text: str


class _Url(msgspec.Struct, frozen=True):
    url: str


class _Image(msgspec.Struct, tag_field="type", tag="image_url", frozen=True):
    image_url: _Url


class _Message(msgspec.Struct, frozen=True):
    role: Literal["user"]
    content: list[_Text | _Image]


class _Extension(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mode: Mode = Mode.AUTO
    effort: float = 1.0
    top_k: int = 0
    timeout: float = 60.0


class _Completion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request; fields that would change the answer and are not served are refused by being unknown."""

    messages: list[_Message]
    model: str = ""
    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    cutline: _Extension = _Extension()

    @classmethod
    def asking(cls, question: Question) -> _Completion:
        """The request that asks `question`; the inverse of `question`."""
        url = "data:application/octet-stream;base64," + base64.b64encode(question.image).decode()
        sampling = question.sampling
        return cls(
            messages=[_Message("user", [_Image(_Url(url)), _Text(question.text)])],
            max_tokens=question.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            cutline=_Extension(question.mode, question.effort, sampling.top_k, question.timeout),
        )

    def question(self) -> Question:
        """The question it asks. Raises InputError."""
        parts = [part for message in self.messages for part in message.content]
        images = [part for part in parts if isinstance(part, _Image)]
        if len(self.messages) != 1 or len(images) != 1:
            raise InputError("send one user message with one image")
        return Question(
            image=_data_of(images[0].image_url.url),
            text="".join(part.text for part in parts if isinstance(part, _Text)),
            mode=self.cutline.mode,
            sampling=Sampling(temperature=self.temperature, top_k=self.cutline.top_k, top_p=self.top_p, seed=self.seed),
            max_tokens=self.max_tokens,
            effort=self.cutline.effort,
            timeout=self.cutline.timeout,
        )


def _data_of(url: str) -> bytes:
    """The bytes in a base64 `data:` URL, the only kind taken: nothing is fetched on a client's behalf."""
    head, comma, body = url.partition(",")
    if not (head.startswith("data:") and head.endswith(";base64") and comma):
        raise ImageError("images are taken as base64 `data:` URLs only")
    try:
        return base64.b64decode(body, validate=True)
    except ValueError:
        raise ImageError("the image's `data:` URL is not base64") from None


def application(agent: Agent) -> Starlette:
    """The agent's HTTP application."""

    async def complete(request: Request) -> Response:
        try:
            body = await _body(request)
            asked = msgspec.json.decode(body, type=_Completion).question()
            answer = await agent.answer(asked)
        except (msgspec.MsgspecError, RecursionError) as error:  # the latter from JSON nested without end
            return _failure(InputError(f"the request does not read: {error}"))
        except CutlineError as error:
            return _failure(error)
        return _json(_completion(agent.manifest.name, answer))

    async def healthy(request: Request) -> Response:
        return _json({"status": "ok"})

    return Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"]), Route("/healthz", healthy)])


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise InputError(f"the request is over {MAX_BODY >> 20} MiB")
    return bytes(body)


def _completion(model: str, answer: Answer) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": answer.text},
                "finish_reason": "stop" if answer.complete else "length",
            }
        ],
        "cutline": answer,
    }


def _failure(error: CutlineError) -> Response:
    kind = type(error)
    return _json({"error": {"message": str(error), "type": kind.__name__}}, status=_STATUS.get(kind, 500))


def _json(content: object, *, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it takes requests, and keeps a signal that stopped it to itself."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own raises the signal anew once the server has stopped, which would end a process that obeyed it.
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, self.handle_exit, name, None)
        yield


async def serve(agent: Agent, *, listen: str, announce: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `announce` hears the address once requests are taken. Raises InputError.

    Requests that are not answered `STOP_SECONDS` after the signal are dropped.
    """
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host.strip("[]"), int(port)), family=family)
    except OSError:
        raise InputError(f"cannot listen at {listen}: taken, or not an address of this machine") from None
    config = uvicorn.Config(
        application(agent), log_level="warning", lifespan="off", timeout_graceful_shutdown=STOP_SECONDS
    )
    server = _Server(config, lambda: announce(f"{host}:{listening.getsockname()[1]}"))
    await server.serve([listening])


def ask_agent(url: str, question: Question) -> Answer:
    """The answer of the agent at `url`. Raises what the agent raised, or InputError if no agent is there."""
    # An agent is on this machine or near it: a proxy meant for browsers must not come between.
    try:
        client = httpx.Client(base_url=url, timeout=question.timeout + 5, trust_env=False)
    except httpx.InvalidURL:
        raise InputError(f"{url} is no URL of an agent; give one such as http://127.0.0.1:8080") from None
    with client:
        return ask_over(client, question)


def ask_over(client: httpx.Client, question: Question) -> Answer:
    """`ask_agent` over a connection that is kept."""
    body = msgspec.json.encode(_Completion.asking(question))
    try:
        response = client.post("/v1/chat/completions", content=body)
    except (httpx.TransportError, httpx.InvalidURL, ValueError):
        raise InputError(f"no agent answers at {client.base_url}; is it running?") from None
    try:
        if response.status_code == 200:
            return msgspec.json.decode(response.content, type=_Answered).cutline
        fault = msgspec.json.decode(response.content, type=_Failed).error
    except msgspec.MsgspecError:
        raise InputError(f"what answers at {client.base_url} is not a Cutline agent") from None
    kind = next((kind for kind in _STATUS if kind.__name__ == fault.type), InputError)
    raise kind(fault.message)


class _Answered(msgspec.Struct, frozen=True):
    cutline: Answer


class _Fault(msgspec.Struct, frozen=True):
    message: str
    type: str


class _Failed(msgspec.Struct, frozen=True):
    error: _Fault
