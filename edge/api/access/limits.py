"""Checks before every request: origin, headers, quotas, and the number of requests at once."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
from prometheus_client import Gauge
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cutline.core.request import Priority, Request
from cutline.edge.api.access.origins import OPEN
from cutline.edge.api.errors import Fault, Refused, body_of
from cutline.errors import InputError, WorkerBusy
from cutline.protos.channel.token_file import Quota

MAX_HEAD = 16 << 10  # bytes
MOST = 8  # requests in work at once that need a worker, and as many that the device may answer by itself
WINDOW_SECONDS = 10.0  # over which `openings_per_minute` is measured: a burst may use all of it at once
UNLIMITED = Quota(openings_per_minute=1e9)  # for anonymous callers
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
CLOSE = (b"connection", b"close")  # of a connection whose body is not read


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """How much the agent's HTTP server takes of connections and bodies, and how long it waits for clients."""

    connections: int = 128  # at once
    handshake_seconds: float = 10.0
    head_seconds: float = 10.0  # that a request's head may take, and the wait for the next one
    stall_seconds: int = 30  # that a client may leave unread what was sent
    silence_seconds: float = 10.0  # after which a stream says that the answer is still being made
    stop_seconds: float = 2.0  # for the questions that are open when the server stops
    body: int = 48 << 20  # bytes: images of 32 MiB in base64, and room for words
    body_seconds: float = 30.0
    bodies: int = 32  # that are read at once ...
    all_bodies: int = 4 * (48 << 20)  # ... and bytes of them, four of the largest; one tenant has half of both at most
    small_body: int = 1 << 20  # bytes of a body that are taken as soon as they come


HTTP_LIMITS = HttpLimits()


class Guard:
    """Middleware that checks headers, and refuses pages of other origins.

    A browser's request from another page than the agent's own is refused, but for those of `origins` to what is `OPEN`,
    and so is one whose Host is not among `hosts` (DNS rebinding). None allows any host.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None, origins: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if (fault := self._fault(Headers(scope=scope), scope["path"])) is not None:
            status, message = fault
            return await refuse(scope, sealed, status, Fault(message, InputError.__name__), CLOSE)
        return await self._app(scope, receive, sealed)

    def _fault(self, headers: Headers, path: str) -> tuple[int, str] | None:
        if sum(len(name) + len(value) for name, value in headers.raw) > MAX_HEAD:
            return 431, f"the request's headers are over {MAX_HEAD >> 10} KiB"
        if "content-length" in headers and "transfer-encoding" in headers:  # a proxy may see another end
            return 400, "the request has both content-length and transfer-encoding; send one of them"
        host = headers.get("host", "")
        if self._hosts is not None and name_of(host) not in self._hosts:
            return 421, "the agent is not known by this name; use the address that it printed"
        origin = headers.get("origin")
        named = origin in self._origins and path.startswith(OPEN)
        if origin is not None and not named and origin.partition("://")[2].lower() != host.lower():
            return 403, "pages of other servers may not ask this agent"
        return None


def name_of(host: str) -> str:
    """The name in a Host header, without the port: `[::1]:8080` is `[::1]`."""
    name, colon, port = host.lower().rpartition(":")
    return name if colon and not port.endswith("]") else host.lower()


class RequestPlace:
    """One request's place, counted in `taken` by whether it needs a worker; of each kind there are `most`.

    It has no higher priority than the `highest`.
    """

    def __init__(self, taken: Counter[bool], most: int, highest: Priority) -> None:
        self._taken = taken
        self._most = most
        self._highest = highest
        self._needs_worker: bool | None = None  # not known before the request is read

    def settle(self, *, needs_worker: bool) -> None:
        """Set the request's kind, once. Raises Refused if there are too many of that kind."""
        if self._taken[needs_worker] >= self._most:
            which = "that need a worker" if needs_worker else "of modes auto and edge"
            raise busy(f"the agent has {self._most} requests {which} in work; try again in a second")
        self._taken[needs_worker] += 1
        self._needs_worker = needs_worker

    def ordered(self, question: Request) -> Request:
        """The question, with the priority that it may have, once its kind is set.

        Raises Refused for one in the background that would leave others less than half of the places.
        """
        assert self._needs_worker is not None
        priority = question.priority.at_most(self._highest)
        if priority is Priority.BACKGROUND and self._taken[self._needs_worker] > max(1, self._most // 2):
            raise busy(
                "half of the agent's places have requests, and the others are for those that go first; try later"
            )
        return msgspec.structs.replace(question, priority=priority)

    def leave(self) -> None:
        """Free the place."""
        if self._needs_worker is not None:
            self._taken[self._needs_worker] -= 1


class Desk:
    """Limits the requests in progress, in total and by each tenant's quota in `limits`.

    Requests that need a worker and requests that the device may answer have separate places, `most` of each. So the
    device still answers while other requests wait for a worker.
    """

    def __init__(
        self,
        most: Callable[[], int],
        working: Gauge,
        limits: Callable[[str], Quota] = lambda tenant: UNLIMITED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._working = working
        self._limits = limits
        self._clock = clock
        self._taken = Counter[str]()
        self._kinds = Counter[bool]()
        self._due: dict[str, float] = {}  # by tenant, when its requests so far are within its rate

    @property
    def busy(self) -> bool:
        """Whether any request is in progress."""
        return self._taken.total() > 0

    @contextmanager
    def place(self, tenant: str) -> Iterator[RequestPlace]:
        """Hold a place for one request of `tenant`, whose kind is set once it is read. Raises Refused."""
        if self._taken.total() >= 2 * (most := self._most()):
            raise busy(f"the agent has {2 * most} requests in work; try again in a second")
        limits, now = self._limits(tenant), self._clock()
        if limits.sessions is not None and self._taken[tenant] >= limits.sessions:
            raise busy(f"{limits.sessions} of your requests are in work, as many as you may have; wait for one")
        due = max(self._due.get(tenant, now), now)
        if (wait := due - now - WINDOW_SECONDS) > 0.0:
            raise busy(f"over {limits.openings_per_minute:g} requests a minute came; try again in {wait:.0f} s", wait)
        self._due[tenant] = due + 60.0 / limits.openings_per_minute
        self._count(tenant, 1)
        place = RequestPlace(self._kinds, most, limits.priority)
        try:
            yield place
        finally:
            place.leave()
            self._count(tenant, -1)

    def _count(self, tenant: str, change: int) -> None:
        self._taken[tenant] += change
        self._working.set(self._taken.total())


def busy(message: str, seconds: float = 1.0, *, close: bool = False) -> Refused:
    """A refusal with status 429 and a Retry-After of `seconds`; `close` also closes the connection."""
    fault = Fault(message, WorkerBusy.__name__, code="rate_limit_exceeded")
    headers = {"retry-after": str(max(1, math.ceil(seconds)))}
    return Refused(429, fault, headers | {"connection": "close"} if close else headers)


async def refuse(scope: Scope, send: Send, status: int, fault: Fault, *more: tuple[bytes, bytes]) -> None:
    """Send a fault as the response, with `more` headers."""
    body = msgspec.json.encode(body_of(Refused(status, fault), scope["path"]))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
