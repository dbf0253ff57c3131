"""What Open WebUI's server sends: lines of Ollama's API, or OpenAI's events; and titles, which it asks for alone."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from cutline.demo.requests import CardRequest
from tests.clients.conftest import Served, data_url

Cards = tuple[CardRequest, CardRequest]


@pytest.fixture
def http(agent: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=agent.url, trust_env=False, timeout=60) as one:
        yield one


def test_it_looks_the_model_up(agent: Served, http: httpx.Client) -> None:
    assert http.get("/api/version").json()["version"]
    (here,) = http.get("/api/tags").json()["models"]
    assert {"name", "model", "modified_at", "size", "digest", "details"} <= here.keys()
    assert [one["model"] for one in http.get("/api/ps").json()["models"]] == [here["model"]]
    assert http.post("/api/show", json={"name": here["model"]}).json()["capabilities"] == ["completion", "vision"]
    assert [one["id"] for one in http.get("/v1/models").json()["data"]] == [agent.model]


@pytest.mark.parametrize("pictures", [1, 2])
def test_by_ollamas_api(agent: Served, cards: Cards, http: httpx.Client, pictures: int) -> None:
    name = http.get("/api/tags").json()["models"][0]["model"]
    images = [base64.b64encode(card.image).decode() for card in cards[:pictures]]
    sent = {
        "model": name,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What?"},
            {"role": "assistant", "content": "A card."},
            {"role": "user", "content": "Describe.", "images": images},
        ],
        "stream": True,
        "options": {"temperature": 0.7, "top_k": 40, "num_predict": 60, "stop": ["\n\n"]},
        "keep_alive": "5m",
    }
    lines = [json.loads(line) for line in http.post("/api/chat", json=sent).text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == agent.target_says()
    assert lines[-1]["done"]
    assert len(agent.asked[-1].images) == pictures


@pytest.mark.parametrize("pictures", [1, 2])
def test_by_openais_api(agent: Served, cards: Cards, http: httpx.Client, pictures: int) -> None:
    shown = [{"type": "image_url", "image_url": {"url": data_url(card.image)}} for card in cards[:pictures]]
    sent = {
        "stream": True,
        "model": agent.model,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Describe."}, *shown]}],
        "stream_options": {"include_usage": True},
    }
    events = http.post("/v1/chat/completions", json=sent).text.split("\n\n")
    chunks = [json.loads(one[6:]) for one in events if one.startswith("data: {")]
    words = "".join(one["choices"][0]["delta"].get("content") or "" for one in chunks if one["choices"])
    assert words == agent.target_says()
    assert events[-2] == "data: [DONE]"


def test_a_title(agent: Served, http: httpx.Client) -> None:
    turn = {"role": "user", "content": "Name this chat in JSON."}
    sent: dict[str, Any] = {"model": agent.model, "messages": [turn], "stream": False, "max_tokens": 60}
    got = http.post("/v1/chat/completions", json=sent | {"max_completion_tokens": 60}).json()
    assert got["choices"][0]["message"]["content"] == agent.target_says()
