"""Limits a gRPC server's connections: unauthenticated clients may hold half of them.

gRPC caps the total alone, and never closes a connection that answers pings. It does not list its connections either, so
they are found among this process's sockets. AuthInterceptor reports which of them made an authenticated call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
import stat
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from cutline.protos.channel.keepalive import SERVER, Options

log = logging.getLogger(__name__)

RESERVED_DESCRIPTORS = 64  # for files, pipes, the metrics, and the connection to a next worker
MAX_CONNECTIONS = 4096  # whatever the system allows: scanning so many takes some 30 ms
POLL_SECONDS = 0.25
LOG_SECONDS = 10.0  # between two log lines about closed connections
HANDSHAKE_SECONDS = 5
IDLE_SECONDS = 600  # without a call, then the client has to reconnect: far longer than a pause between two questions

DESCRIPTORS = Path("/proc/self/fd")  # Linux; elsewhere only gRPC's own cap applies

Peer = tuple[str, int]  # address and port


def most_connections() -> int:
    """How many connections this process has descriptors for, after raising its soft limit to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # a system may have a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(2, min(MAX_CONNECTIONS, soft - RESERVED_DESCRIPTORS))


def options(most: int) -> Options:
    """gRPC's options for a server of at most `most` connections."""
    return (
        *SERVER,
        # For TLS and HTTP/2 together; gRPC's default is two minutes.
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
        ("grpc.max_connection_idle_ms", IDLE_SECONDS * 1000),
        # gRPC closes one more as soon as it accepts it. Without descriptors left it could not even do that.
        ("grpc.max_allowed_incoming_connections", most),
    )


def parse_peer(text: str) -> Peer | None:
    """Address and port of a peer in gRPC's form, `ipv4:192.0.2.1:5` or `ipv6:%5B::1%5D:5`; None for any other."""
    kind, _, rest = unquote(text).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdecimal():
        return None
    return host.strip("[]").removeprefix("::ffff:"), int(port)


def to_close(strangers: Sequence[Peer], *, room: int) -> tuple[Peer, ...]:
    """Which of the unauthenticated `strangers`, given oldest first, to close so that `room` remain.

    Each time it is the oldest one of the address with the most connections, so floods go first.
    """
    held, left, closed = Counter(host for host, _ in strangers), list(strangers), list[Peer]()
    while len(left) > room:
        most = max(held.values())
        peer = next(peer for peer in left if held[peer[0]] == most)
        left.remove(peer)
        held[peer[0]] -= 1
        closed.append(peer)
    return tuple(closed)


class Connections:
    """Limits the connections of one server to `most`, while `watch` is open. For one event loop."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._authenticated = set[Peer]()
        self._seen = dict[Peer, None]()  # open connections in order of arrival
        self._closed = Counter[str]()  # by address, since the last log line
        self._logged = -LOG_SECONDS
        self._port = 0

    def let_in(self, peer: str) -> None:
        """Note that the connection of `peer` made an authenticated call."""
        if (parsed := parse_peer(peer)) is not None:
            self._authenticated.add(parsed)

    def end(self, peer: str) -> None:
        """Close the connection of `peer`."""
        if (parsed := parse_peer(peer)) is not None:
            self._close({parsed})

    @contextlib.asynccontextmanager
    async def watch(self, port: int) -> AsyncIterator[None]:
        """While this is open, close surplus unauthenticated connections at `port`."""
        self._port = port
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                if max(len(_descriptors()), len(self._authenticated)) > self.most // 2:
                    self._close_surplus()
            except OSError as error:  # no descriptor is free now; the next poll may have one
                log.warning("cannot look at the connections: %s", error.strerror)

    def _close_surplus(self) -> None:
        present = {peer for peer, _ in _connections(self._port)}
        self._authenticated &= present
        self._seen = dict.fromkeys(peer for peer in (*self._seen, *present) if peer in present)
        strangers = [peer for peer in self._seen if peer not in self._authenticated]
        room = max(1, min(self.most // 2, self.most - len(self._authenticated)))
        if closing := to_close(strangers, room=room):
            self._close(set(closing))
            self._closed.update(host for host, _ in closing)
            self._log_closed(len(present))

    def _close(self, peers: set[Peer]) -> None:
        for peer, connection in _connections(self._port):
            if peer in peers:
                with contextlib.suppress(OSError):  # it has ended by itself
                    connection.shutdown(socket.SHUT_RDWR)  # gRPC's own descriptor of it sees the end

    def _log_closed(self, count: int) -> None:
        if (now := time.monotonic()) - self._logged < LOG_SECONDS:
            return
        self._logged = now
        address, most = self._closed.most_common(1)[0]
        log.warning(
            "%d connections are open, of %d that there may be; closed %d of callers that never said who they are, "
            "%d of them from %s",
            count,
            self.most,
            self._closed.total(),
            most,
            address,
        )
        self._closed.clear()


def _connections(port: int) -> Iterator[tuple[Peer, socket.socket]]:
    """This process's TCP connections at `port`: the peer, and a duplicate socket that is closed before the next one."""
    for name in _descriptors():
        with contextlib.ExitStack() as stack:
            try:
                if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                    continue
                # Duplicated first: the number may be reused for another file at any time.
                copy = stack.enter_context(socket.socket(fileno=os.dup(int(name))))
                if copy.family not in (socket.AF_INET, socket.AF_INET6) or copy.getsockname()[1] != port:
                    continue
                host, remote = copy.getpeername()[:2]
            except OSError:  # it was closed meanwhile, or is the listening socket
                continue
            yield (host.removeprefix("::ffff:"), remote), copy


def _descriptors() -> list[str]:
    return [path.name for path in DESCRIPTORS.iterdir()] if DESCRIPTORS.is_dir() else []
