"""Serving the agent's HTTP application until it is told to stop."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from cutline.edge.api.access.auth import Entrance
from cutline.edge.api.access.limits import HTTP_LIMITS, MAX_HEAD, MOST, UNLIMITED, Guard, HttpLimits
from cutline.edge.api.access.login import LoginCode
from cutline.edge.api.access.origins import allowing, check_origins
from cutline.edge.api.access.tls import Secured, tls
from cutline.edge.api.app import application
from cutline.edge.api.handler import ServedAgent
from cutline.edge.api.request_log import RequestLog
from cutline.errors import InputError
from cutline.protos.channel.address import is_loopback, parse_address
from cutline.protos.channel.credentials import ServerKeys
from cutline.protos.channel.token_file import Tokens

if TYPE_CHECKING:
    from cutline.edge.api.requests.image_fetcher import Fetcher
    from cutline.edge.inference.encoder import Encoder

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class _Door:
    """The connections that were accepted, the oldest first. Where they are too many one goes that has no request.

    That is the oldest of the address that has most connections: who is many makes room for who is one.
    """

    def __init__(self, http: HttpLimits) -> None:
        self.http = http
        self._inside: dict[_Connection, asyncio.Transport] = {}

    def enter(self, connection: _Connection, transport: asyncio.Transport) -> None:
        """One was accepted, or is known already, by its TLS."""
        self._inside.setdefault(connection, transport)
        if len(self._inside) > self.http.connections:
            held = Counter(map(_address, self._inside.values()))
            idle = (one for one in self._inside if not one.busy)  # this one, if there is no other
            self._inside.pop(max(idle, key=lambda one: held[_address(self._inside[one])])).abort()

    def leave(self, connection: _Connection) -> None:
        """One has ended."""
        self._inside.pop(connection, None)


def _address(transport: asyncio.Transport) -> str:
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if peer else ""


class _Connection(H11Protocol):
    """A connection that is closed where no request comes in time, or where there are too many."""

    _timer: asyncio.TimerHandle | None = None

    def __init__(self, door: _Door, **given: Any) -> None:
        super().__init__(**given)
        self._door = door

    @property
    def busy(self) -> bool:
        """Whether it has a request that is not answered."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._door.enter(self, transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.leave(self)
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._expect_head()
        super().on_response_complete()

    def _expect_head(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(self._door.http.head_seconds, self._give_up)

    def _give_up(self) -> None:
        if not self.busy:
            self.transport.close()


def _accepted(door: _Door, context: ssl.SSLContext | None, **given: Any) -> asyncio.BaseProtocol:
    """What speaks with who was just accepted."""
    connection = _Connection(door, **given)
    if context is None:
        return connection
    came, left = partial(door.enter, connection), partial(door.leave, connection)
    return Secured(context, connection, came=came, left=left, seconds=door.http.handshake_seconds)


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it takes requests, and leaves signals to whoever has it `stop`."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], stop: asyncio.Event) -> None:
        super().__init__(config)
        self._ready = ready
        self._stop = stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def on_tick(self, counter: int) -> bool:
        return self._stop.is_set() or await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Where an agent is asked, and by whom: over HTTPS with `keys`, with `tokens` by who has one, or the `link`.

    `listen` is HOST:PORT. Images are fetched from the hosts of `allow_urls` alone; as many questions may be in work at
    once as `most` says. Pages of `allow_origins` may ask it, beside its own. An `encoder` makes rows of
    texts and images. `http` says how much it takes of clients, and how long it waits for them.
    """

    listen: str
    allow_origins: Sequence[str] = ()
    allow_urls: Sequence[str] = ()
    most: Callable[[], int] = lambda: MOST
    keys: ServerKeys | None = None
    tokens: Tokens | None = None
    link: LoginCode | None = None
    encoder: Encoder | None = None
    http: HttpLimits = HTTP_LIMITS


async def serve(
    agent: ServedAgent, given: ServerOptions, *, announce: Callable[[str], None], stop: asyncio.Event
) -> None:
    """Serve until `stop` is set; `announce` hears the address once requests are taken. Raises InputError.

    Questions that have no answer `http.stop_seconds` after that get an error.
    """
    (host, _), tokens = parse_address(given.listen), given.tokens
    async with AsyncExitStack() as stack:
        app = application(
            agent,
            most=given.most,
            fetcher=await stack.enter_async_context(_fetcher(given.allow_urls)) if given.allow_urls else None,
            limits=(lambda tenant: UNLIMITED) if tokens is None else tokens.limits,
            shared=tokens is not None or not is_loopback(host),
            entrance=_entrance(given, host),
            encoder=given.encoder,
            http=given.http,
        )
        await serve_application(app, given.listen, given.keys, announce=announce, stop=stop, http=given.http)


async def serve_application(
    app: ASGIApp,
    listen: str,
    keys: ServerKeys | None,
    *,
    announce: Callable[[str], None],
    stop: asyncio.Event,
    http: HttpLimits = HTTP_LIMITS,
) -> None:
    """Serve an application at HOST:PORT, over HTTPS with `keys`, as `serve` does. Raises InputError."""
    host, port = parse_address(listen)
    listening = _listen(host, port, listen, http.stall_seconds)
    try:
        async with AsyncExitStack() as stack:
            context = None if keys is None else await stack.enter_async_context(tls(keys))
            config = uvicorn.Config(
                app,
                http=partial(_accepted, _Door(http), context),  # type: ignore[arg-type] # it is only called
                ws="none",
                lifespan="off",
                log_level="warning",
                server_header=False,
                h11_max_incomplete_event_size=MAX_HEAD,
                timeout_graceful_shutdown=http.stop_seconds,  # type: ignore[arg-type] # parts of a second, too
            )
            server = _Server(config, lambda: announce(f"{host}:{listening.getsockname()[1]}"), stop)
            await server.serve([listening])
            if dropped := server.server_state.tasks:
                await asyncio.wait(dropped, timeout=http.stop_seconds)
    finally:
        listening.close()


def _entrance(given: ServerOptions, host: str) -> Callable[[ASGIApp], ASGIApp]:
    """What stands before an application that listens at `host`: who may ask it, and the log of who did.

    Raises InputError.
    """
    tokens, origins = given.tokens, check_origins(given.allow_origins)
    hosts = names_of(host) if tokens is None else None  # a page that misled a browser has no token

    def before(app: ASGIApp) -> ASGIApp:
        logged = RequestLog(Guard(app, hosts, origins))
        inside = logged if tokens is None else Entrance(logged, tokens=tokens, link=given.link)
        return allowing(inside, origins)

    return before


def names_of(host: str) -> frozenset[str] | None:
    """The names by which a server that listens at `host` may be asked; None for any.

    A page of another server may have its name lead to this machine. On an address of this machine alone nobody has a
    name for the agent but this machine's own; one that others reach may have any.
    """
    return LOCAL_NAMES | {host.lower()} if is_loopback(host) else None


def _listen(host: str, port: int, listen: str, stall: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host.strip("[]"), port), family=family)
    except OSError:
        raise InputError(f"cannot listen at {listen}: taken, or not an address of this machine") from None
    # Connections that are taken inherit both. asyncio's own word against Nagle does not reach sockets made so, and each
    # piece of a stream would wait 40 ms for the one before to be acknowledged.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stall * 1000)
    return listening


def _fetcher(allow_urls: Sequence[str]) -> Fetcher:
    from cutline.edge.api.requests.image_fetcher import (
        Fetcher,  # httpx, which an agent that fetches nothing does not load
    )

    return Fetcher(allow_urls)
