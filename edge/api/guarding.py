"""What every request passes first, and every response gets: who may ask, how much, and how many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from prometheus_client import Gauge
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cutline.edge.api.faults import Failed, Fault, Refused
from cutline.errors import InputError, WorkerBusy

MAX_BODY = 48 << 20  # bytes: images of 32 MiB in base64, and room for words
MAX_HEAD = 16 << 10  # bytes
BODY_SECONDS = 30.0
MOST = 8  # requests in work at once
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """An application behind checks of who asks.

    A browser sends along what page asks: another page than the agent's own is refused, and so is one that reached this
    machine under a name that is not among `hosts` (DNS rebinding); None takes any name.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if (fault := self._fault(Headers(scope=scope))) is not None:
            status, message = fault
            return await _refuse(status, message, sealed)
        return await self._app(scope, receive, sealed)

    def _fault(self, headers: Headers) -> tuple[int, str] | None:
        if sum(len(name) + len(value) for name, value in headers.raw) > MAX_HEAD:
            return 431, f"the request's headers are over {MAX_HEAD >> 10} KiB"
        host = headers.get("host", "")
        if self._hosts is not None and name_of(host) not in self._hosts:
            return 421, "the agent is not known by this name; use the address that it printed"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            return 403, "pages of other servers may not ask this agent"
        return None


def name_of(host: str) -> str:
    """The name in a Host header, without the port: `[::1]:8080` is `[::1]`."""
    name, colon, port = host.lower().rpartition(":")
    return name if colon and not port.endswith("]") else host.lower()


class Desk:
    """At most so many requests in work."""

    def __init__(self, most: int, working: Gauge) -> None:
        self._most = most
        self._working = working
        self._taken = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one request. Raises Refused where there is none."""
        if self._taken >= self._most:
            message = f"the agent has {self._most} requests in work; try again in a second"
            fault = Fault(message, WorkerBusy.__name__, code="rate_limit_exceeded")
            raise Refused(429, fault, {"retry-after": "1"})
        self._taken += 1
        self._working.set(self._taken)
        try:
            yield
        finally:
            self._taken -= 1
            self._working.set(self._taken)


async def body_of(request: Request, *, keep: bool = True) -> bytearray:
    """The body of a request, empty unless it is to be kept. Raises Refused for one that is too large or too slow."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise _refused(415, "send JSON, as content-type: application/json")
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size > MAX_BODY:
                    raise _refused(413, f"the request is over {MAX_BODY >> 20} MiB")
                if keep:
                    body += chunk
    except TimeoutError:
        raise _refused(408, f"the request did not arrive in {BODY_SECONDS:.0f} seconds") from None
    return body


def _refused(status: int, message: str) -> Refused:
    # A connection whose body was not read to its end is of no more use.
    return Refused(status, Fault(message, InputError.__name__), {"connection": "close"})


async def _refuse(status: int, message: str, send: Send) -> None:
    body = msgspec.json.encode(Failed(Fault(message, InputError.__name__)))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
