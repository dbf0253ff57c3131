"""Streams to clients that vanish, wait or do not read, and from a server that stops."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import httpx
import pytest

from cutline.core.request import Mode
from cutline.edge.api.access.limits import HttpLimits
from cutline.edge.generation.events import Planned, Settled
from cutline.edge.generation.result import Provenance, Token
from cutline.testing.agent import ScriptedAgent, spoken, told
from cutline.testing.raw_http import BODY, PATH, STREAMED, connect, get, request

Serving = Callable[..., AbstractAsyncContextManager[str]]


PLANNED = Planned(mode=Mode.DRAFT, cut="image", wire=None)


@pytest.mark.parametrize("body", [BODY, STREAMED], ids=["whole", "streamed"])
def test_a_client_that_vanishes_takes_its_answer_along(agent: ScriptedAgent, serving: Serving, body: bytes) -> None:
    agent.always = [PLANNED, math.inf]

    async def run() -> None:
        async with serving() as url:
            _, writer = await connect(url)
            writer.write(request(body))
            await agent.reaches(asked=1)
            writer.close()
            await asyncio.wait_for(agent.reaches(given_up=1), 60)
            counts = (await get(url, "/metrics")).text
        assert 'cutline_agent_requests_total{mode="draft",status="499"} 1.0' in counts
        assert "cutline_agent_requests_in_work 0.0" in counts

    asyncio.run(run())


def test_silence_is_filled(agent: ScriptedAgent, serving: Serving) -> None:
    often = HttpLimits(silence_seconds=0.05)
    agent.enqueue(PLANNED, 0.3, *told(spoken("7"))[1:])

    async def run() -> str:
        async with serving(http=often) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
            response = await client.post(PATH, content=STREAMED)
            assert response.headers["content-type"].startswith("text/event-stream")
            return response.text

    text = asyncio.run(run())
    assert text.count(": waiting\n\n") >= 2
    assert text.endswith("data: [DONE]\n\n")


def test_a_reader_that_does_not_read_is_left(agent: ScriptedAgent, serving: Serving) -> None:
    long = Settled(0, tuple(Token(100, "x" * 1000, Provenance.EDGE) for _ in range(200)))
    agent.always = [PLANNED, *[long] * 200, math.inf]

    async def run() -> None:
        async with serving(http=HttpLimits(stall_seconds=1)) as url:
            _, writer = await connect(url)
            writer.write(request(STREAMED))
            await asyncio.wait_for(agent.reaches(given_up=1), 60)
            writer.transport.abort()

    asyncio.run(run())


def test_a_server_that_stops_says_so_in_the_stream(agent: ScriptedAgent, serving: Serving) -> None:
    agent.always = [PLANNED, math.inf]

    async def run() -> bytes:
        async with serving(http=HttpLimits(stop_seconds=0.1)) as url:
            reader, writer = await connect(url)
            writer.write(request(STREAMED))
            await agent.reaches(asked=1)
        got = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        return got

    got = asyncio.run(run())
    assert b'"type":"WorkerUnavailable"' in got
    assert b"[DONE]" not in got
    assert agent.given_up == 1


def test_no_piece_waits_for_the_one_before_to_be_acknowledged(agent: ScriptedAgent, serving: Serving) -> None:
    """As Nagle's rule would have it, for 40 ms each: asyncio does not switch it off for a socket that it was given."""
    agent.always = told(spoken(*"a card with digits on it"))

    async def run() -> float:
        async with serving() as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
            times = []
            for _ in range(20):
                began = time.perf_counter()
                await client.post(PATH, content=STREAMED)
                times.append(time.perf_counter() - began)
            return min(times)

    assert asyncio.run(run()) < 0.035
