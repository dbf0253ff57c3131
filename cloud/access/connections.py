"""A gRPC server's connections: strangers may hold half of them, and the rest is for who was let in.

gRPC caps all connections together, and closes none that answers pings. It does not say which there are, so they are
looked up among this process's sockets, every moment; who has made a call that was let in is told by the calls.
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

RESERVE = 64  # descriptors for files, pipes, the metrics, and the way to a next worker
MOST = 4096  # connections, whatever the system allows: so many are looked through in some 30 ms
LOOK_SECONDS = 0.25
TELL_SECONDS = 10.0  # between two lines about connections that were closed
HANDSHAKE_SECONDS = 5
IDLE_SECONDS = 600  # without a call, after which a client connects anew: far longer than a pause between two questions

DESCRIPTORS = Path("/proc/self/fd")  # Linux; elsewhere nobody is looked up, and gRPC's own cap is all there is

Peer = tuple[str, int]  # address and port


def most_connections() -> int:
    """How many connections this process has descriptors for: its soft limit is raised to the hard one first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # a system may have a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else max(2, min(MOST, soft - RESERVE))


def options(most: int) -> Options:
    """What gRPC is told of a server's connections, of which there may be `most`."""
    return (
        *SERVER,
        # TLS and HTTP/2 included: without it a connection may take two minutes to begin.
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
        ("grpc.max_connection_idle_ms", IDLE_SECONDS * 1000),
        # One more is closed as soon as it is accepted: where descriptors run out nobody could even be told so.
        ("grpc.max_allowed_incoming_connections", most),
    )


def parse_peer(text: str) -> Peer | None:
    """Address and port of a peer as gRPC writes it: `ipv4:192.0.2.1:5`, `ipv6:%5B::1%5D:5`."""
    kind, _, rest = unquote(text).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdecimal():
        return None
    return host.strip("[]").removeprefix("::ffff:"), int(port)


def to_close(strangers: Sequence[Peer], *, room: int) -> tuple[Peer, ...]:
    """Which of the `strangers`, the oldest first, have to go so that `room` remain.

    The oldest of the address that has most of them, again and again: who is many makes room for who is one.
    """
    held, left, closed = Counter(host for host, _ in strangers), list(strangers), list[Peer]()
    while len(left) > room:
        most = max(held.values())
        one = next(peer for peer in left if held[peer[0]] == most)
        left.remove(one)
        held[one[0]] -= 1
        closed.append(one)
    return tuple(closed)


class Connections:
    """Those of a server at `port` that may have `most`. `watch` them; for one event loop."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._known = set[Peer]()
        self._since = dict[Peer, int]()  # those that were seen, in the order in which they came
        self._closed = Counter[str]()  # strangers' by address, since the last line
        self._told = -TELL_SECONDS
        self._port = 0

    def let_in(self, peer: str) -> None:
        """A call over the connection of `peer` was let in."""
        if (one := parse_peer(peer)) is not None:
            self._known.add(one)

    def end(self, peer: str) -> None:
        """End the connection of `peer`."""
        if (one := parse_peer(peer)) is not None:
            self._close({one})

    @contextlib.asynccontextmanager
    async def watch(self, port: int) -> AsyncIterator[None]:
        """While this is open, strangers that are too many are hung up on."""
        self._port = port
        looking = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.wait([looking])

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if max(len(_descriptors()), len(self._known)) > self.most // 2:  # fewer are no concern
                    self._look()
            except OSError as error:  # no descriptor is left to look with; the next look may have one
                log.warning("cannot look at the connections: %s", error.strerror)

    def _look(self) -> None:
        there = {one for one, _ in _connections(self._port)}
        self._known &= there
        self._since = {one: 0 for one in (*self._since, *there) if one in there}
        strangers = [one for one in self._since if one not in self._known]
        if out := to_close(strangers, room=max(1, min(self.most // 2, self.most - len(self._known)))):
            self._close(set(out))
            self._closed.update(host for host, _ in out)
            self._tell(len(there))

    def _close(self, peers: set[Peer]) -> None:
        for one, connection in _connections(self._port):
            if one in peers:
                with contextlib.suppress(OSError):  # it has ended by itself
                    connection.shutdown(socket.SHUT_RDWR)  # gRPC, which has it open too, hears that it ended

    def _tell(self, count: int) -> None:
        if (now := time.monotonic()) - self._told < TELL_SECONDS:
            return
        self._told = now
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
    """This process's TCP connections at `port`, each with its other end, and a copy of it until the next is given."""
    for name in _descriptors():
        with contextlib.ExitStack() as stack:
            try:
                if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                    continue
                # Whatever the number stands for later, a copy stays what it is.
                copy = stack.enter_context(socket.socket(fileno=os.dup(int(name))))
                if copy.family not in (socket.AF_INET, socket.AF_INET6) or copy.getsockname()[1] != port:
                    continue
                host, remote = copy.getpeername()[:2]
            except OSError:  # it was closed meanwhile, or listens
                continue
            yield (host.removeprefix("::ffff:"), remote), copy


def _descriptors() -> list[str]:
    return [path.name for path in DESCRIPTORS.iterdir()] if DESCRIPTORS.is_dir() else []
