"""A worker's Prometheus metrics, and the HTTP server that shows them."""

from __future__ import annotations

import contextlib
import functools
import platform
import re
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, make_wsgi_app

from cutline.cloud.telemetry.observer import Observer
from cutline.cloud.telemetry.rank_figures import RankFigures
from cutline.cloud.telemetry.session_stats import Account
from cutline.core.escalations.recorder import JournalCounts
from cutline.errors import InputError
from cutline.protos.channel.address import is_loopback, parse_address
from cutline.protos.channel.credentials import ServerKeys, server_context
from cutline.protos.channel.reloading import Renewed
from cutline.protos.channel.revocation import Revoked
from cutline.protos.messages import Confirmed, Finished, Opened
from cutline.protos.version import package_version

MAX_CONNECTIONS = 16
CONNECTION_SECONDS = 10.0  # longest connection, with its handshake
MAX_TENANTS = 100  # with counters of their own; further tenants are counted as `other`

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_ROWS = tuple(2**power for power in range(11))


class WorkerMetrics(Observer):
    """An observer that counts in a `registry` of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._slots = Gauge("cutline_slots", "Sessions there is room for", registry=registry)
        self._used = Gauge("cutline_slots_in_use", "Sessions that have a slot", registry=registry)
        self._open = Gauge("cutline_sessions_open", "Streams of sessions, those that still open too", registry=registry)
        self._queued = Histogram(
            "cutline_queue_seconds", "Waiting of a session for its first pass", buckets=_SECONDS, registry=registry
        )
        self._seconds = Histogram("cutline_pass_seconds", "Passes", buckets=_SECONDS, registry=registry)
        self._rows = Histogram("cutline_pass_rows", "Rows in a pass", buckets=_ROWS, registry=registry)
        self._drafted = Counter("cutline_drafted", "Drafted tokens that went through a pass", registry=registry)
        self._right = Counter("cutline_accepted", "Those of them that proved right", registry=registry)
        tokens = Counter("cutline_tokens", "Confirmed tokens", ["source"], registry=registry)
        self._tokens = {source: tokens.labels(source) for source in ("draft", "cloud")}
        carried = Counter("cutline_bytes", "Bytes of messages", ["direction"], registry=registry)
        self._carried = {direction: carried.labels(direction) for direction in ("up", "down")}
        recalled = Counter("cutline_images", "Images looked for among those kept", ["found"], registry=registry)
        self._recalled = {found: recalled.labels("yes" if found else "no") for found in (True, False)}
        self._keeping = Gauge("cutline_images_kept_bytes", "Memory of images that are kept", registry=registry)
        self._reused = Counter("cutline_reused_tokens", "Tokens that no pass ran again", registry=registry)
        self._evicted = Counter("cutline_evicted", "Waiting sessions that lost their slot", registry=registry)
        self._last = Gauge("cutline_last_pass_timestamp_seconds", "When the last pass ended", registry=registry)
        self._hung = Gauge("cutline_hung", "1 once a step of the engine does not end", registry=registry)
        self._refused = Counter(
            "cutline_sessions_refused", "Sessions that were refused", ["tenant", "status"], registry=registry
        )
        self._tenants = set[str]()
        Info("cutline_build", "What runs here", registry=registry).info(
            {"version": package_version(), "torch": version("torch"), "python": platform.python_version()}
        )
        ProcessCollector(registry=registry)
        self._ended = Counter("cutline_sessions_ended", "Sessions that ended", ["status"], registry=registry)
        self._next: tuple[Gauge, Gauge] | None = None

    def journal(self, counts: Callable[[], JournalCounts]) -> None:
        """There is a journal; `counts` says what became of its entries so far."""
        entries = Gauge(
            "cutline_journal", "Answers for the journal by what became of them", ["what"], registry=self.registry
        )
        for what in ("kept", "evicted", "lost"):
            entries.labels(what).set_function(functools.partial(_of, counts, what))
        size = Gauge("cutline_journal_bytes", "Bytes of the journal", registry=self.registry)
        size.set_function(functools.partial(_of, counts, "size"))

    def serving(self, slots: int, in_use: Callable[[], int]) -> None:
        self._slots.set(slots)
        self._used.set_function(in_use)

    def divided(self, pids: Sequence[int]) -> None:
        self.registry.register(RankFigures(pids))

    def hung(self) -> None:
        self._hung.set(1)

    def passed(self, rows: int, seconds: float) -> None:
        self._last.set_to_current_time()
        self._rows.observe(rows)
        self._seconds.observe(seconds)

    def waited(self, seconds: float) -> None:
        self._queued.observe(seconds)

    def verified(self, drafted: int, right: int) -> None:
        self._drafted.inc(drafted)
        self._right.inc(right)

    def recalled(self, *, found: bool) -> None:
        self._recalled[found].inc()

    def keeping(self, held: int) -> None:
        self._keeping.set(held)

    def reused(self, tokens: int) -> None:
        self._reused.inc(tokens)

    def evicted(self) -> None:
        self._evicted.inc()

    def talking(self, change: int) -> None:
        self._open.inc(change)

    def told(self, event: Opened | Confirmed | Finished) -> None:
        match event:
            case Confirmed():
                self._tokens["draft"].inc(event.accepted)
                self._tokens["cloud"].inc(len(event.tokens) - event.accepted)

    def ended(self, account: Account) -> None:
        self._ended.labels(account.status).inc()
        if account.opened is None and account.status not in ("OK", "CANCELLED"):
            self._refused.labels(self._tenant(account.tenant), account.status).inc()

    def _tenant(self, name: str) -> str:
        """The label of a tenant. Their number is limited, as certificates may name any number of tenants."""
        if name not in self._tenants and len(self._tenants) >= MAX_TENANTS:
            return "other"
        self._tenants.add(name)
        return name

    def beyond(self, *, ready: bool, seconds: float) -> None:
        if self._next is None:  # a worker without a next one shows no such metric
            self._next = (
                Gauge("cutline_next_worker_ready", "Whether sessions can go on there", registry=self.registry),
                Gauge("cutline_next_worker_seconds", "The last look at it", registry=self.registry),
            )
        self._next[0].set(ready)
        self._next[1].set(seconds)

    def carried(self, *, up: int = 0, down: int = 0) -> None:
        self._carried["up"].inc(up)
        self._carried["down"].inc(down)


def _of(counts: Callable[[], JournalCounts], what: str) -> float:
    return float(getattr(counts(), what))


def show(metrics: WorkerMetrics, listen: str, keys: ServerKeys | None = None) -> contextlib.AbstractContextManager[str]:
    """Serve `metrics` at `listen`, as `shown` does. Raises InputError."""
    return shown(make_wsgi_app(metrics.registry), listen, keys)


@contextlib.contextmanager
def shown(app: Any, listen: str, keys: ServerKeys | None = None) -> Iterator[str]:
    """Serve a WSGI `app` for operators at `listen` (HOST:PORT, port 0 for any free one); yields the address.

    On loopback it speaks HTTP. Elsewhere it speaks HTTPS with `keys`, and requires an unrevoked certificate of their
    `client_ca`. A changed file applies to later connections. Raises InputError.
    """
    host, port = parse_address(listen)
    tls = revoked = None
    if not is_loopback(host):
        if keys is None or keys.client_ca is None:
            raise InputError(f"metrics at {host} could be read from outside; give keys with a client_ca")
        tls = Renewed("the certificate of the metrics", keys.files, functools.partial(server_context, keys))
        revoked = None if keys.revoked is None else Revoked(keys.revoked)
    try:
        server = _Server(host.strip("[]"), port, _named(app, host) if is_loopback(host) else app, tls, revoked)
    except OSError:
        raise InputError(f"cannot show metrics at {listen}: taken, or not an address of this machine") from None
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _named(app: Any, host: str) -> Any:
    """`app` for requests whose Host is this machine; others come from DNS rebinding in a browser."""
    names = {"localhost", "127.0.0.1", "[::1]", host.lower()}

    def guarded(environ: dict[str, Any], start: Any) -> Any:
        name = re.sub(r":\d*$", "", environ.get("HTTP_HOST", "").lower())
        if name in names:
            return app(environ, start)
        start("421 Misdirected Request", [("content-type", "text/plain")])
        return [b"ask for the metrics by the address that the worker printed\n"]

    return guarded


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name there)
        del format, args  # metrics are read all the time


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """Serves MAX_CONNECTIONS, each in a thread that also does the TLS handshake: a silent client blocks no other."""

    daemon_threads = True

    def __init__(
        self, host: str, port: int, app: Any, tls: Renewed[ssl.SSLContext] | None, revoked: Revoked | None
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._tls = tls
        self._revoked = revoked
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__((host, port), _Quiet)
        self.set_app(app)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is room for a connection."""
        del request, client_address
        return self._free.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, then free its place."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection, for CONNECTION_SECONDS at most."""
        if self._tls is not None:
            request = self._tls.now().wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        limit = threading.Timer(CONNECTION_SECONDS, _end, [request])
        limit.daemon = True
        limit.start()
        with request:
            try:
                if isinstance(request, ssl.SSLSocket):
                    request.do_handshake()
                    if self._revoked is not None:
                        self._revoked.check(request.getpeercert(binary_form=True))
                super().finish_request(request, client_address)
            finally:
                limit.cancel()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore failed connections: they do not concern the worker."""


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has ended by itself
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # TLS's own shutdown would wait for an answer
