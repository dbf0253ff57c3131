"""Videos in chat completions: which frames of them are asked about, and what is said of that."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest
from PIL import Image

from cutline.core.conversation import ImagePart, Message, TextPart, VideoPart
from cutline.core.request import MAX_IMAGES, Request
from cutline.demo.bundles import DRAFTER
from cutline.edge.agent import Agent
from cutline.edge.api.requests.schema import ChatRequest
from cutline.edge.video.views import VideoShown
from cutline.errors import InputError, PromptError
from cutline.models.bundle import Bundle
from cutline.testing.agent import ScriptedAgent, spoken

Serving = Callable[..., AbstractAsyncContextManager[str]]


def animated(count: int, *, lasting: int = 500, size: tuple[int, int] = (64, 64)) -> bytes:
    out = io.BytesIO()
    frames = [Image.new("RGB", size, (index * 5, 0, 0)) for index in range(count)]
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:], duration=lasting, lossless=True)
    return out.getvalue()


def still() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "blue").save(out, "PNG")
    return out.getvalue()


def part(kind: str, data: bytes) -> dict[str, Any]:
    return {"type": kind, kind: {"url": "data:;base64," + base64.b64encode(data).decode()}}


def ask(serving: Serving, *parts: dict[str, Any], role: str = "user") -> httpx.Response:
    body = {"messages": [{"role": role, "content": [*parts, {"type": "text", "text": "What happens?"}]}]}

    async def run() -> httpx.Response:
        async with serving() as url, httpx.AsyncClient(base_url=url) as client:
            return await client.post("/v1/chat/completions", json=body, timeout=60)

    return asyncio.run(run())


def test_frames_of_a_video_stand_among_a_request_s_images(agent: ScriptedAgent, serving: Serving) -> None:
    agent.enqueue(spoken("Red", " grows."))
    picture, video = still(), animated(10)
    response = ask(serving, part("image_url", picture), part("video_url", video), part("image_url", picture))
    assert response.status_code == 200, response.text
    (asked,) = agent.asked
    times = (0.0, 1.0, 2.0, 3.5, 4.5)
    assert asked.messages == (
        Message("user", (ImagePart(), VideoPart(times, 5.0, 10), ImagePart(), TextPart("What happens?"))),
    )
    assert (asked.images[0], asked.images[-1], len(asked.images)) == (picture, picture, 7)
    reds = [Image.open(io.BytesIO(file)).convert("RGB").getpixel((5, 5)) for file in asked.images[1:-1]]
    assert reds == [(index * 5, 0, 0) for index in (0, 2, 4, 7, 9)]


@pytest.mark.parametrize(
    ("parts", "role", "why"),
    [
        ([part("video_url", b"none")], "user", "is no video that is taken"),
        ([{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,%%%"}}], "user", "is not base64"),
        ([{"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}}], "user", "--allow-url"),
        ([part("video_url", animated(3))], "assistant", "only the user's may"),
        ([part("image_url", still())] * MAX_IMAGES + [part("video_url", animated(2))], "user", "too many"),
        ([part("image_url", still())] * 31 + [part("video_url", b"x")] * 1 + [], "user", "no video"),
        ([{"type": "video_url", "video_url": {"url": "data:,", "fps": 2}}], "user", "unknown fields"),
    ],
)
def test_what_is_wrong_with_a_video_is_said(serving: Serving, parts: list[Any], role: str, why: str) -> None:
    response = ask(serving, *parts, role=role)
    assert response.status_code == 400
    assert why in response.json()["error"]["message"]


def test_frames_are_not_sent_on_to_another_agent() -> None:
    asked = Request(
        messages=(Message("user", (VideoPart((0.0,), 1.0), TextPart("?"))),), images=(still(),), max_tokens=4
    )
    with pytest.raises(InputError, match="send it the video itself"):
        ChatRequest.asking(asked)


@pytest.mark.parametrize("times", [(), (1.0, 0.5), (-1.0,), (float("nan"),), (0.0, 3.0)])
def test_times_of_frames_are_in_order_and_within_the_video(times: tuple[float, ...]) -> None:
    with pytest.raises(PromptError, match="ascending"):
        VideoPart(times, 2.0)


def test_a_model_without_a_mode_for_videos_looks_at_images_and_says_so() -> None:
    """The answer is that to the frames as pictures, token for token."""
    frames = (still(),) * 3
    words = TextPart("Read the digits.")
    film = Message("user", (VideoPart((0.0, 1.0, 2.0), 3.0, 90), words))
    pictures = Message("user", (ImagePart(), ImagePart(), ImagePart(), words))

    async def run() -> list[Any]:
        async with Agent(Bundle.open(DRAFTER), threads=1) as agent:
            asked = (Request(messages=(one,), images=frames, mode="edge", max_tokens=6) for one in (film, pictures))  # type: ignore[arg-type]
            return [await agent.answer(one) for one in asked]

    filmed, pictured = asyncio.run(run())
    assert [token.id for token in filmed.tokens] == [token.id for token in pictured.tokens]
    assert filmed.prompt_tokens == pictured.prompt_tokens
    why = "the model was exported without a mode for videos, or its family has none here"
    assert filmed.video == VideoShown(mode="images", videos=1, frames=3, total=90, seconds=3.0, why=why)
    assert pictured.video is None
    assert "video" in filmed.gate.group
    assert not filmed.gate.calibrated
