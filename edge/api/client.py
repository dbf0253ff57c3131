"""Asking an agent that runs elsewhere, over HTTP.

Within asyncio: a Ctrl-C that comes just before a blocking read would not end it.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from cutline.core.json_errors import UNREADABLE
from cutline.core.request import Request
from cutline.edge.api.chat.completions import Answered, ChatChunk
from cutline.edge.api.errors import Failed, exception_of
from cutline.edge.api.requests.schema import ChatRequest
from cutline.edge.generation.events import Event
from cutline.edge.generation.result import Answer
from cutline.errors import CutlineError, InputError, WorkerUnavailable
from cutline.protos.channel.address import is_loopback
from cutline.protos.channel.credentials import NO_KEYS, AgentKeys

BUSY_SECONDS = 30.0  # that connecting may take, and each piece of a question on its way
ALONE_SECONDS = 300.0  # that an agent may prepare and draft, besides what a question allows a worker: a board is slow


async def ask_agent(url: str, question: Request, keys: AgentKeys = NO_KEYS) -> Answer:
    """The answer of the agent at `url`, reached by `keys`.

    Raises what the agent raised, InputError, or WorkerUnavailable if none is there.
    """
    async with _client(url, question, keys) as client:
        return await ask_over(client, question)


async def ask_over(client: httpx.AsyncClient, question: Request) -> Answer:
    """`ask_agent` over a connection that is kept."""
    async with _asked(client, ChatRequest.asking(question)) as response:
        try:
            return msgspec.json.decode(await response.aread(), type=Answered).cutline
        except UNREADABLE:
            raise _no_agent(client) from None


async def stream_agent(url: str, question: Request, keys: AgentKeys = NO_KEYS) -> AsyncGenerator[Event]:
    """What the agent at `url` tells while it answers, the `Answer` last, as `Agent.stream` does. Raises likewise."""
    async with _client(url, question, keys) as client:
        async for event in stream_over(client, question):
            yield event


async def stream_over(client: httpx.AsyncClient, question: Request) -> AsyncGenerator[Event]:
    """`stream_agent` over a connection that is kept."""
    asked = ChatRequest.asking(question)
    asked = replace(asked, stream=True, cutline=replace(asked.cutline, guesses=True))
    async with _asked(client, asked) as response:
        ended = False
        async for line in response.aiter_lines():
            if not line.startswith("data:") or (content := line.removeprefix("data:").strip()) == "[DONE]":
                continue
            try:
                told = msgspec.json.decode(content, type=ChatChunk)
            except UNREADABLE:
                raise _failed(client, content.encode()) from None
            for event in msgspec.structs.astuple(told.cutline) if told.cutline is not UNSET else ():
                if event is not UNSET:
                    ended = ended or isinstance(event, Answer)
                    yield event
        if not ended:
            raise WorkerUnavailable(f"the agent at {client.base_url} ended in the middle of its answer; ask again")


def _client(url: str, question: Request, keys: AgentKeys) -> httpx.AsyncClient:
    """A connection to the agent at `url`. Raises InputError."""
    shown = dict(keys.metadata())
    # An agent is on this machine or near it: a proxy meant for browsers must not come between.
    try:
        client = httpx.AsyncClient(
            base_url=url,
            headers=shown,
            verify=True if keys.ca is None else _trusting(keys.ca),
            timeout=httpx.Timeout(BUSY_SECONDS, read=question.timeout + question.correct_seconds + ALONE_SECONDS),
            trust_env=False,
        )
    except httpx.InvalidURL:
        raise InputError(f"{url} is no URL of an agent; give one such as http://127.0.0.1:8080") from None
    if shown and client.base_url.scheme != "https" and not is_loopback(client.base_url.host):
        raise InputError(f"the token would go to {client.base_url.host} in plain text; give an https URL, and --ca")
    return client


@asynccontextmanager
async def _asked(client: httpx.AsyncClient, request: ChatRequest) -> AsyncGenerator[httpx.Response]:
    """The agent's response to a request that it takes, still to be read. Raises what it raised."""
    body = msgspec.json.encode(request)
    headers = {"content-type": "application/json"}
    try:
        async with client.stream("POST", "/v1/chat/completions", content=body, headers=headers) as response:
            if response.status_code != 200:
                raise _failed(client, await response.aread(), response.headers.get("retry-after"))
            yield response
    except httpx.TimeoutException:
        raise WorkerUnavailable(f"the agent at {client.base_url} did not answer in time") from None
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, ValueError):
        raise InputError(f"{client.base_url} is no URL of an agent; give one such as http://127.0.0.1:8080") from None
    except httpx.ConnectError as error:
        why = ", or nobody that --ca names vouches for it" if "CERTIFICATE_VERIFY_FAILED" in str(error) else ""
        raise WorkerUnavailable(f"no agent answers at {client.base_url}; is it running{why}?") from None
    except httpx.TransportError:
        raise WorkerUnavailable(f"no agent answers at {client.base_url}; is it running?") from None


def _failed(client: httpx.AsyncClient, content: bytes, retry_after: str | None = None) -> CutlineError:
    """What the agent raised, as its response says."""
    try:
        return exception_of(msgspec.json.decode(content, type=Failed).error, retry_after)
    except UNREADABLE:
        return _no_agent(client)


def _no_agent(client: httpx.AsyncClient) -> InputError:
    return InputError(f"what answers at {client.base_url} is not a Cutline agent")


def _trusting(ca: Path) -> ssl.SSLContext:
    """TLS with whoever the authorities in a file vouch for, and no one else."""
    return ssl.create_default_context(cafile=ca)
