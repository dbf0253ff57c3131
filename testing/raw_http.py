"""The agent's HTTP API at the level of bytes, also malformed ones, for tests."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import httpx
import msgspec

from cutline.core.request import Mode, Request
from cutline.edge.api.requests.schema import ChatRequest

PATH = "/v1/chat/completions"
BODY = msgspec.json.encode(ChatRequest.asking(Request.about(b"any", "What?", mode=Mode.DRAFT)))
STREAMED = msgspec.json.encode(msgspec.json.decode(BODY) | {"stream": True})


def request(body: bytes, *more: str, length: int | None = None, host: str = "localhost") -> bytes:
    """A request with a body and `more` header lines; `length` is its content-length, by default the right one."""
    lines = [f"POST {PATH} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, *more, "", ""]).encode() + body


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the server at a URL."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def reply(url: str, sent: bytes) -> tuple[int, bytes]:
    """The status and body of the response to `sent`; the server must close the connection."""
    reader, writer = await connect(url)
    writer.write(sent)
    got = b""
    with suppress(ConnectionResetError):  # a server that does not want the rest may say so as well
        got = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    head, _, body = got.partition(b"\r\n\r\n")
    return (int(head.split()[1]), body) if head else (0, b"")


async def get(url: str, path: str) -> httpx.Response:
    """The response at a path, on a new connection."""
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        return await client.get(path)
