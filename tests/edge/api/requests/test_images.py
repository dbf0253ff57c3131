"""Images that a request names by address: fetched while somebody waits, within one budget, and never offline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import msgspec
import pytest

from cutline.core.request import MAX_IMAGE_BYTES
from cutline.edge.api import server as server
from cutline.edge.api.requests.images import pictures
from cutline.errors import ImageError
from cutline.testing.agent import ScriptedAgent, spoken
from cutline.testing.raw_http import connect, request

Serving = Callable[..., AbstractAsyncContextManager[str]]

URLS = [f"https://images.test/{number}.png" for number in range(4)]


class Elsewhere:
    """A fetcher of images of so many bytes; the first of them takes for ever if it is `slow`."""

    def __init__(self, size: int = 0, *, slow: bool = False) -> None:
        self.size = size
        self.slow = slow
        self.rooms: list[int] = []
        self.begun = asyncio.Event()
        self.given_up = asyncio.Event()

    async def __aenter__(self) -> Elsewhere:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def fetch(self, url: str, *, room: int) -> bytes:
        self.rooms.append(room)
        self.begun.set()
        if self.slow:
            try:
                await asyncio.sleep(3600)
            finally:
                self.given_up.set()
        return bytes(self.size)


def test_each_has_the_room_that_those_before_left() -> None:
    elsewhere: Any = Elsewhere(9 << 20)
    asyncio.run(pictures([URLS[0], "data:;base64,AAAA", *URLS[1:3]], {}, elsewhere, offline=lambda: False))
    room = MAX_IMAGE_BYTES
    assert elsewhere.rooms == [room, room - (9 << 20) - 3, room - (18 << 20) - 3]


def test_offline_in_the_middle_no_more_is_fetched() -> None:
    elsewhere: Any = Elsewhere()
    with pytest.raises(ImageError, match="offline"):
        asyncio.run(pictures(URLS, {}, elsewhere, offline=lambda: len(elsewhere.rooms) == 2))
    assert len(elsewhere.rooms) == 2


def test_a_client_that_vanishes_takes_the_fetching_along(
    agent: ScriptedAgent, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [*({"type": "image_url", "image_url": {"url": url}} for url in URLS), {"type": "text", "text": "Which?"}]
    asked = {"messages": [{"role": "user", "content": parts}]}

    async def run() -> None:
        elsewhere = Elsewhere(slow=True)
        monkeypatch.setattr(server, "_fetcher", lambda urls: elsewhere)
        async with serving(most=lambda: 1, allow_urls=["images.test"]) as url:
            _, writer = await connect(url)
            writer.write(request(msgspec.json.encode(asked)))
            await asyncio.wait_for(elsewhere.begun.wait(), 30)
            writer.close()
            await asyncio.wait_for(elsewhere.given_up.wait(), 30)
            agent.enqueue(spoken("7"))
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                words = {"messages": [{"role": "user", "content": "Is there a place?"}]}
                assert (await client.post("/v1/chat/completions", json=words)).status_code == 200

    asyncio.run(run())
