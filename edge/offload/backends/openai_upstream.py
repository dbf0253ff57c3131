"""Another cloud: an OpenAI-compatible server that answers in place of a worker, with a model of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx

from cutline.edge.offload.backends.openai_messages import Trouble, also_refused
from cutline.edge.offload.circuit_breaker import Circuit
from cutline.edge.offload.recovery import ANSWER_SECONDS, BACK_SECONDS, Recovery
from cutline.errors import CutlineError, InputError, WorkerBusy, WorkerUnavailable
from cutline.protos.channel.address import is_loopback

log = logging.getLogger(__name__)

KEY = "CUTLINE_UPSTREAM_KEY"  # of the environment
MOST_REST = 60.0  # seconds that a server without room is left alone at most


class _Closed(WorkerUnavailable):
    """The agent itself closed the connection, which says nothing of the server."""


class Upstream:
    """The server at `url`, which ends where `/chat/completions` would follow, asked for `model`.

    The `key` goes into its Authorization header and nowhere else. A server that does not answer is left alone, and
    probed in the background until it does; what parameters it has `refused` it is not sent again. Raises InputError for
    what is no URL, or one by which pictures and the key would leave this machine in plain text.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        check_url(url)
        self.url = url.rstrip("/")
        self.model = model
        self.key = key or ""
        self.refused = frozenset[str]()
        self._clock = clock
        self._circuit = Circuit()
        self._recovery = Recovery(sleep=sleep)
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

    @property
    def reachable(self) -> bool:
        """Whether it may be asked now."""
        return self._circuit.lets(self._clock())

    def check(self) -> None:
        """Begin to ask it, whose outcome is to be told to `report`. Raises WorkerUnavailable, or WorkerBusy."""
        now = self._clock()
        if not self._circuit.lets(now):
            if not self._circuit.failures:
                raise WorkerBusy(f"the server at {self.url} has no room", retry_seconds=self._circuit.left(now))
            raise WorkerUnavailable(
                f"the server at {self.url} failed lately; it is asked again once it answers", retry_seconds=BACK_SECONDS
            )
        self._circuit = self._circuit.asked()

    def report(self, error: BaseException | None) -> None:
        """What came of asking it. A server that is there, and refuses or fails on one request, is asked the next."""
        now = self._clock()
        match error:
            case _Closed():
                self._circuit = self._circuit.dropped()
            case WorkerUnavailable():
                self._circuit = self._circuit.failed(now, chance=random.random())  # noqa: S311 (no secret)
                error.retry_seconds = error.retry_seconds or BACK_SECONDS
                self._recovery.begin(self.url, self._probe)
            case WorkerBusy() if error.retry_seconds:
                self._circuit = self._circuit.refused(now, min(error.retry_seconds, MOST_REST))
            case None | CutlineError():
                self._circuit = self._circuit.worked()
            case _:
                self._circuit = self._circuit.dropped()

    def learn(self, trouble: Trouble, before: frozenset[str]) -> bool:
        """Whether a request without the parameters `before` was refused for others, which it is not sent again."""
        refused = also_refused(trouble, before)
        if refused == before:
            return False
        if more := refused - self.refused:
            log.warning("the server at %s is not sent %s any more: it refuses that", self.url, ", ".join(sorted(more)))
            self.refused |= refused
        return True

    async def _probe(self) -> bool:
        """See whether it answers again; false once that is known."""
        if not self._circuit.failures:
            return False
        try:
            async with self.connected():
                response = await self.client.get(f"{self.url}/models", timeout=ANSWER_SECONDS)
            answers = response.status_code < 500  # which it may well not have
        except (httpx.HTTPError, WorkerUnavailable):
            answers = False
        self._circuit = self._circuit.answered() if answers else self._circuit.unanswered()
        return self._circuit.failures > 0

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """What is done here ends once there is to be no connection any more. Raises WorkerUnavailable then."""
        end = asyncio.timeout(None)
        self._open.add(end)
        try:
            async with end:
                yield
        except TimeoutError:
            raise _Closed(f"the connection to the server at {self.url} was closed") from None
        finally:
            self._open.discard(end)

    def disconnect(self) -> None:
        """Break off what is under way and close all connections; the next session makes new ones."""
        self._recovery.end()
        self._circuit = Circuit()
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
        await self._recovery.close()
        await asyncio.gather(*self._closings, return_exceptions=True)


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
