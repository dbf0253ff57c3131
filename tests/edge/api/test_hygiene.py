"""The server as strangers meet it: who may ask, raw connections, slow ones, and ones without end."""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path

import httpx
import msgspec
import pytest

from cutline.cli.access.certificates import SERVER, Authority
from cutline.core.request import Mode
from cutline.edge.api.access.limits import HTTP_LIMITS, HttpLimits
from cutline.edge.api.server import names_of
from cutline.edge.generation.events import Planned
from cutline.protos.channel.credentials import ServerKeys
from cutline.testing.agent import ScriptedAgent, spoken
from cutline.testing.raw_http import BODY, PATH, STREAMED, connect, get, reply, request

Serving = Callable[..., AbstractAsyncContextManager[str]]

PLANNED = Planned(mode=Mode.DRAFT, cut="image", wire=None)


CLOSE = "Connection: close"


@pytest.mark.threat("doors")
@pytest.mark.parametrize(
    ("host", "more", "status"),
    [
        ("localhost:8080", [], 200),
        ("127.0.0.1", [], 200),
        ("[::1]:1", [], 200),
        ("LOCALHOST", [], 200),
        ("rebound.example", [], 421),
        ("localhost.example:80", [], 421),
        ("127.0.0.1.example", [], 421),
        ("", [], 421),
        ("localhost", ["Origin: https://other.example"], 403),
        ("localhost", ["Origin: null"], 403),
        ("localhost:1", ["Origin: http://localhost:2"], 403),
        ("localhost:1", ["Origin: http://localhost:1"], 200),
        ("localhost", ["Content-Type: text/plain"], 415),
        ("localhost", ["Content-Type: application/x-www-form-urlencoded"], 415),
        ("localhost", ["Content-Type: application/json; charset=utf-8"], 200),
    ],
)
def test_who_may_ask(agent: ScriptedAgent, serving: Serving, host: str, more: list[str], status: int) -> None:
    agent.always = [spoken("7")]

    async def run() -> None:
        async with serving() as url:
            got, body = await reply(url, request(BODY, CLOSE, *more, host=host))
        assert got == status
        if status != 200:
            assert msgspec.json.decode(body)["error"]["message"]
            assert agent.asked == []

    asyncio.run(run())


def test_names_are_held_to_where_only_this_machine_can_ask() -> None:
    assert names_of("127.0.0.1") == names_of("localhost") == names_of("[::1]")
    assert "127.0.0.2" in (names_of("127.0.0.2") or ())
    assert names_of("0.0.0.0") is None  # noqa: S104 - an address, not a listener
    assert names_of("192.168.1.7") is None


@pytest.mark.threat("floods")
@pytest.mark.parametrize(
    ("sent", "limits", "status"),
    [
        (b"", HttpLimits(head_seconds=0.1), 0),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Sl", HttpLimits(head_seconds=0.1), 0),
        (request(BODY[:10], length=len(BODY)), HttpLimits(body_seconds=0.1), 408),
        (request(b"", length=HTTP_LIMITS.body + 1, host="localhost") + b"x" * 10, HttpLimits(body_seconds=0.1), 408),
    ],
    ids=["nothing", "half a head", "half a body", "a large body that does not come"],
)
def test_the_slow_are_not_waited_for(
    agent: ScriptedAgent, serving: Serving, sent: bytes, limits: HttpLimits, status: int
) -> None:
    async def run() -> None:
        async with serving(http=limits) as url:
            got, _ = await asyncio.wait_for(reply(url, sent), 60)
        assert got == status

    asyncio.run(run())


@pytest.mark.threat("floods")
@pytest.mark.parametrize("count", [200, 1000, 5000])
def test_a_head_without_end_is_refused(agent: ScriptedAgent, serving: Serving, count: int) -> None:
    async def run() -> int:
        async with serving() as url:
            many = [f"X-{index}: {'y' * 100}" for index in range(count)]
            return (await reply(url, request(BODY, CLOSE, *many)))[0]

    assert asyncio.run(run()) in (0, 400, 431)  # by whether it came in one piece, or was still coming
    assert agent.asked == []


@pytest.mark.threat("floods")
def test_connections_are_bounded(serving: Serving) -> None:
    async def run() -> None:
        async with serving(http=HttpLimits(connections=2)) as url:
            held = [await connect(url) for _ in range(2)]
            assert (await get(url, "/healthz")).status_code == 200, "the silent do not keep others out"
            await ended(held[0][0])
            for _, one in held:
                one.close()

    asyncio.run(run())


async def ended(reader: asyncio.StreamReader) -> None:
    """Waits until the server has closed a connection."""
    with suppress(ConnectionResetError):  # an end is as good
        assert await asyncio.wait_for(reader.read(), 60) == b""


@pytest.mark.threat("floods")
def test_who_waits_for_an_answer_keeps_the_connection(agent: ScriptedAgent, serving: Serving) -> None:
    agent.always = [PLANNED, math.inf]

    async def run() -> None:
        async with serving(http=HttpLimits(connections=2)) as url:
            asking = [await connect(url) for _ in range(2)]
            for count, (_, writer) in enumerate(asking, start=1):
                writer.write(request(STREAMED))
                await agent.reaches(asked=count)
            late, writer = await connect(url)
            await ended(late)
            assert agent.given_up == 0
            for _, one in [*asking, (late, writer)]:
                one.close()

    asyncio.run(run())


@pytest.mark.threat("floods")
def test_a_connection_counts_before_its_handshake(serving: Serving, tmp_path: Path) -> None:
    authority = Authority.make(tmp_path)
    pair = authority.sign("server", SERVER, hosts=["127.0.0.1"])
    authority.write()
    keys = ServerKeys(certificate=pair.certificate, key=pair.key)
    context = ssl.create_default_context(cafile=tmp_path / "ca.crt")

    async def run() -> None:
        async with serving(keys=keys, http=HttpLimits(connections=3)) as url:
            silent = [await connect(url) for _ in range(5)]
            for reader, _ in silent[:2]:
                await ended(reader)
            secure = url.replace("http:", "https:")
            async with httpx.AsyncClient(base_url=secure, verify=context, trust_env=False) as client:
                assert (await client.get("/healthz")).status_code == 200
            await ended(silent[2][0])
            for _, one in silent:
                one.close()
        async with serving(keys=keys, http=HttpLimits(handshake_seconds=0.1)) as url:
            reader, writer = await connect(url)
            await ended(reader)
            writer.close()

    asyncio.run(run())


@pytest.mark.threat("floods")
def test_all_bodies_together_have_a_size(agent: ScriptedAgent, serving: Serving) -> None:
    agent.always = [spoken("7")]

    async def run() -> None:
        async with serving(http=HttpLimits(all_bodies=3000)) as url:
            _, writer = await connect(url)
            writer.write(request(b" " * 2900, length=3000))
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client, asyncio.timeout(60):
                while (await client.post(PATH, content=BODY + b" " * 200)).status_code != 429:  # once it was read
                    pass
                writer.close()
                while (await client.post(PATH, content=BODY + b" " * 200)).status_code != 200:  # and once it is gone
                    pass

    asyncio.run(run())
