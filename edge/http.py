"""The agent over HTTP: `POST /v1/chat/completions` and `GET /healthz`."""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cutline.edge.agent import Agent
from cutline.edge.answer import Answer
from cutline.edge.chat import STATUS, Completion
from cutline.errors import CutlineError, InputError, WorkerUnavailable
from cutline.protos.address import parse_address

MAX_BODY = 48 << 20  # bytes: an image of 32 MiB in base64, and room for words
STOP_SECONDS = 2


def application(agent: Agent) -> Starlette:
    """The agent's HTTP application."""

    async def complete(request: Request) -> Response:
        try:
            body = await _body(request)
            asked = msgspec.json.decode(body, type=Completion).question()
            answer = await agent.answer(asked)
        except (msgspec.MsgspecError, RecursionError) as error:  # the latter from JSON nested without end
            return _failure(InputError(f"the request does not read: {error}"))
        except CutlineError as error:
            return _failure(error)
        except asyncio.CancelledError:  # the server stops, and has waited long enough
            return _failure(WorkerUnavailable("the agent was stopped before it had an answer; ask another"))
        return _json(_completion(agent.manifest.name, answer))

    async def healthy(request: Request) -> Response:
        return _json({"status": "ok"})

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            return _fault(error.detail, "InputError", error.status_code)
        return _fault("the agent failed on this request; its log says more", "CutlineError", 500)

    return Starlette(
        routes=[Route("/v1/chat/completions", complete, methods=["POST"]), Route("/healthz", healthy)],
        exception_handlers={HTTPException: refuse, Exception: refuse},
    )


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
    return _fault(str(error), kind.__name__, STATUS.get(kind, 500))


def _fault(message: str, kind: str, status: int) -> Response:
    return _json({"error": {"message": message, "type": kind}}, status=status)


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

    Requests that have no answer `STOP_SECONDS` after the signal get an error.
    """
    host, port = parse_address(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host.strip("[]"), port), family=family)
    except OSError:
        raise InputError(f"cannot listen at {listen}: taken, or not an address of this machine") from None
    config = uvicorn.Config(
        application(agent), log_level="warning", lifespan="off", timeout_graceful_shutdown=STOP_SECONDS
    )
    server = _Server(config, lambda: announce(f"{host}:{listening.getsockname()[1]}"))
    await server.serve([listening])
    if dropped := server.server_state.tasks:
        await asyncio.wait(dropped, timeout=STOP_SECONDS)
