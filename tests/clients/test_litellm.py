"""LiteLLM by both of the APIs. It holds back what others here need newer, so it is not installed with the rest."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel

from cutline.demo.requests import CardRequest
from tests.clients.conftest import Served, data_url

litellm = pytest.importorskip("litellm")

Cards = tuple[CardRequest, CardRequest]


class Reading(BaseModel):
    """What is on a card."""

    colour: Literal["red", "blue", "green", "yellow"]
    sure: bool


@pytest.fixture(params=["openai", "ollama_chat"])
def how(agent: Served, request: pytest.FixtureRequest) -> dict[str, Any]:
    base = f"{agent.url}/v1" if request.param == "openai" else agent.url
    return {"model": f"{request.param}/cutline", "api_base": base, "api_key": "none"}


def asked(cards: tuple[CardRequest, ...]) -> Any:
    pictures = [{"type": "image_url", "image_url": {"url": data_url(card.image)}} for card in cards]
    return [{"role": "user", "content": [{"type": "text", "text": "Describe."}, *pictures]}]


@pytest.mark.parametrize("pictures", [1, 2])
def test_it_asks(agent: Served, cards: Cards, how: dict[str, Any], pictures: int) -> None:
    got = litellm.completion(messages=asked(cards[:pictures]), **how)
    assert got.choices[0].message.content == agent.target_says()
    assert agent.asked[-1].images == tuple(card.image for card in cards[:pictures])


def test_it_streams(agent: Served, cards: Cards, how: dict[str, Any]) -> None:
    parts = [
        part.choices[0].delta.content or "" for part in litellm.completion(messages=asked(cards), stream=True, **how)
    ]
    assert "".join(parts) == agent.target_says()


def test_it_fills_in_a_model(agent: Served, cards: Cards, how: dict[str, Any]) -> None:
    got = litellm.completion(messages=asked(cards[:1]), response_format=Reading, **how)
    Reading.model_validate_json(got.choices[0].message.content)
    assert got.choices[0].message.content == agent.target_says()
