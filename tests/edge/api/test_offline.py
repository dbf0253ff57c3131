"""What an agent that is offline does not do, whoever asks."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from cutline.demo.bundles import DRAFTER
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.api.app import application
from cutline.models.bundle import Bundle


class Elsewhere:
    """A fetcher that notes what it was to fetch."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def fetch(self, url: str, *, room: int) -> bytes:
        self.asked.append(url)
        return b""


def test_no_image_is_fetched() -> None:
    elsewhere: Any = Elsewhere()
    url = "https://images.test/card.png"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Which digits?"}]
    body = {"messages": [{"role": "user", "content": parts}], "cutline": {"mode": "edge"}}

    async def run() -> None:
        async with Agent(Bundle.open(DRAFTER), worker=None, threads=1, settings=AgentSettings(offline=True)) as agent:
            app = httpx.ASGITransport(application(agent, fetcher=elsewhere))
            async with httpx.AsyncClient(transport=app, base_url="http://agent") as client:
                refused = await client.post("/v1/chat/completions", json=body)
                assert refused.status_code == 400
                assert "offline" in refused.json()["error"]["message"]
                assert elsewhere.asked == []
                agent.offline = False
                await client.post("/v1/chat/completions", json=body)
                assert elsewhere.asked == [url]

    asyncio.run(run())
