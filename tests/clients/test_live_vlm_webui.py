"""What live-vlm-webui sends of each frame that it has time for: one picture, whole answers, tokens drawn at 0.7."""

from __future__ import annotations

import asyncio
from typing import Any

import openai

from cutline.demo.requests import CardRequest
from tests.clients.conftest import Served, data_url


def test_frames_one_after_another(agent: Served, cards: tuple[CardRequest, CardRequest]) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{agent.url}/v1", api_key="EMPTY") as client:
            (model,) = (await client.models.list()).data
            for card in cards:
                content: list[Any] = [
                    {"type": "text", "text": "Describe what you see in this image in one sentence."},
                    {"type": "image_url", "image_url": {"url": data_url(card.image)}},
                ]
                messages: Any = [{"role": "user", "content": content}]
                got = await client.chat.completions.create(
                    model=model.id, messages=messages, max_tokens=100, temperature=0.7
                )
                assert got.choices[0].message.content == await asyncio.to_thread(agent.target_says)

    asyncio.run(run())
