"""Each request's id, which its response has and all who work on it log, and the agent's own log of requests."""

from __future__ import annotations

import logging
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cutline.core.request import is_request_id
from cutline.edge.api.access.auth import TENANT
from cutline.edge.generation.result import Answer
from cutline.protos.request_ids import TRACE_KEY, new_request_id, trace_id

HEADER = "x-request-id"
REQUEST = "cutline.request"
SAID = "cutline.said"
LONGEST_PATH = 100  # characters

log = logging.getLogger(__name__)


class Named:
    """An application whose requests have ids: the client's own, its trace's, or one that is made.

    Each response has it as a header.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        name = _named(Headers(scope=scope))

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = name
            await send(message)

        return await self._app({**scope, REQUEST: name}, receive, named)


class RequestLog:
    """An application of whose named requests each that may do something is a line in the log: never what was asked."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        said: dict[str, Any] = {}
        status, began = 0, time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app({**scope, SAID: said}, receive, noted)
        finally:
            if scope["method"] == "POST":  # the others only look
                fields = {
                    "request": scope[REQUEST],
                    "tenant": scope.get(TENANT, ""),
                    "path": scope["path"][:LONGEST_PATH],
                    "status": status,
                    "seconds": round(time.perf_counter() - began, 4),
                }
                log.info("request", extra={"fields": fields | said})


def request_id(request: Request) -> str:
    """The id of a request."""
    return str(request.scope.get(REQUEST, ""))


def trace(request: Request) -> str:
    """The W3C trace context that a request belongs to, "" where it came with none."""
    given = request.headers.get(TRACE_KEY, "")
    return "" if trace_id(given) is None else given


def note(request: Request, outcome: Answer | str) -> None:
    """Have a request's line say how its answer was made, or what became of it."""
    said: dict[str, Any] = request.scope.get(SAID, {})
    if isinstance(outcome, str):
        said["outcome"] = outcome
        return
    said |= {
        "mode": str(outcome.mode),
        "worker": outcome.worker or "",
        "tokens": len(outcome.tokens),
        "exact": outcome.exact,
        "lost": len(outcome.lost),
        "bytes_up": outcome.bytes_up,
        "bytes_down": outcome.bytes_down,
        "first_token_seconds": round(outcome.ttft_ms / 1e3, 4),
    }
    if (gate := outcome.gate) is not None:
        said |= {"gate": str(gate.decision), "group": gate.group, "promised": gate.promised, "agree": gate.agree}


def _named(headers: Headers) -> str:
    given = headers.getlist(HEADER)
    if len(given) == 1 and is_request_id(given[0]):
        return given[0]
    traces = headers.getlist(TRACE_KEY)
    found = trace_id(traces[0]) if len(traces) == 1 else None
    return found or new_request_id()
