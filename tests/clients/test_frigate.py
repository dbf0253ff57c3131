"""What Frigate sends to Ollama, OpenAI and servers of llama.cpp: descriptions, reviews of several frames, its chat."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import httpx
import jsonschema
import ollama
import openai
import pytest
from pydantic import BaseModel, Field, StringConstraints

from cutline.core.conversation import ImagePart, TextPart
from cutline.demo.requests import CardRequest
from tests.clients.conftest import Served, data_url

OPTIONS = {"temperature": 0.5, "repeat_penalty": 1.05, "presence_penalty": 0.3}
Cards = tuple[CardRequest, CardRequest]


class Review(BaseModel):
    """The fields and bounds of a review's summary."""

    observations: list[Annotated[str, StringConstraints(min_length=20, max_length=160)]] = Field(
        min_length=3, max_length=15, description="In their order."
    )
    title: str = Field(max_length=80)
    scene: str = Field(min_length=150, max_length=600)
    shortSummary: str = Field(min_length=70, max_length=120)
    confidence: float = Field(ge=0.0, le=1.0)
    potential_threat_level: int = Field(ge=0, le=2)
    other_concerns: list[str] | None = Field(default=None)


class Short(BaseModel):
    """The same in short and without open numbers: a model that never learnt to write JSON gets to the end of it."""

    observations: list[Annotated[str, StringConstraints(min_length=2, max_length=9)]] = Field(
        min_length=2, max_length=3, description="In their order."
    )
    title: str = Field(max_length=8)
    potential_threat_level: Literal[0, 1, 2]


@pytest.fixture
def client(agent: Served) -> Iterator[ollama.Client]:
    with ollama.Client(agent.url, timeout=60) as one:
        yield one


@pytest.fixture
def http(agent: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=agent.url, trust_env=False, timeout=60) as one:
        yield one


def asked(words: str, cards: Cards, **more: Any) -> dict[str, Any]:
    """Images at their markers, behind the words."""
    turn = {"role": "user", "content": f"{words}\n[img]\n[img]", "images": [card.image for card in cards]}
    return {"messages": [turn], "options": OPTIONS} | more


def plain(schema: Any, *, names: bool = False) -> Any:
    """A schema without what is only said in it, and without bounds of numbers, as for Ollama's servers."""
    if isinstance(schema, list):
        return [plain(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    left_out = () if names else ("title", "description", "minimum", "maximum")
    return {key: plain(one, names=key == "properties") for key, one in schema.items() if key not in left_out}


def test_a_description_of_two_pictures(agent: Served, cards: Cards, client: ollama.Client) -> None:
    shown = client.show(agent.model)
    assert not shown.get("error")
    assert shown["capabilities"] == ["completion", "vision"]
    got = client.chat(agent.model, **asked("Describe the cards.", cards))
    assert got.message.content == agent.target_says()
    (message,) = agent.asked[-1].messages
    assert message.parts == (TextPart("Describe the cards.\n"), ImagePart(), TextPart("\n"), ImagePart())
    assert agent.asked[-1].images == tuple(card.image for card in cards)
    assert (got["eval_duration"] or 0) > 0


def test_a_review_keeps_to_its_schema(agent: Served, cards: Cards, client: ollama.Client) -> None:
    wanted = plain(Short.model_json_schema())
    got = client.chat(agent.model, **asked("Describe.", cards, format=wanted))
    assert got.done_reason == "stop"
    jsonschema.validate(json.loads(got.message.content or ""), wanted)
    assert got.message.content == agent.target_says()


def test_a_review_as_long_as_they_are_is_begun(agent: Served, cards: Cards, client: ollama.Client) -> None:
    """This model has not enough room for the rest."""
    begun = {"options": OPTIONS | {"num_predict": 20}, "format": plain(Review.model_json_schema())}
    got = client.chat(agent.model, **asked("Describe.", cards) | begun)
    assert got.done_reason == "length"
    assert (got.message.content or "").startswith('{"observations": ["')
    assert got.message.content == agent.target_says()


def test_what_a_picture_takes_is_probed(agent: Served, cards: Cards, client: ollama.Client) -> None:
    probe: dict[str, Any] = {"role": "user", "content": "."}
    one = OPTIONS | {"num_predict": 1}
    without = client.chat(agent.model, [probe], options=one).prompt_eval_count or 0
    image = {"images": [cards[0].image]}
    assert (client.chat(agent.model, [probe | image], options=one).prompt_eval_count or 0) > without > 0


def test_its_chat_streams(agent: Served, cards: Cards, client: ollama.Client) -> None:
    turns = [{"role": "system", "content": "Be brief."}, *asked("What is it?", cards)["messages"]]
    parts = list(client.chat(agent.model, turns, options=OPTIONS, stream=True))
    assert "".join(part.message.content or "" for part in parts) == agent.target_says()
    assert parts[-1].done


def test_by_openais_client(agent: Served, cards: Cards) -> None:
    content: list[Any] = [{"type": "text", "text": "Describe the cards."}]
    for index, card in enumerate(cards):
        content += [
            {"type": "text", "text": f"Frame {index + 1}"},
            {"type": "image_url", "image_url": {"url": data_url(card.image), "detail": "low"}},
        ]
    schema = Short.model_json_schema() | {"additionalProperties": False}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "review_metadata", "strict": True, "schema": schema}}
    messages: Any = [{"role": "user", "content": content}]
    with openai.OpenAI(base_url=f"{agent.url}/v1", api_key="none", max_retries=0) as client:
        assert agent.model in {one.id for one in client.models.list().data}
        said = client.chat.completions.create(model=agent.model, messages=messages, timeout=60)
        assert said.choices[0].message.content == agent.target_says()
        kept = client.chat.completions.create(model=agent.model, messages=messages, response_format=wanted, timeout=60)
        jsonschema.validate(json.loads(kept.choices[0].message.content or ""), schema)
        assert kept.choices[0].message.content == agent.target_says()


def test_as_a_server_of_llama_cpp(agent: Served, cards: Cards, http: httpx.Client) -> None:
    """It looks the model up by its name, or `cutline`, and asks with fields of that server's own."""
    (model,) = http.get("/v1/models").json()["data"]
    assert {agent.model, "cutline"} <= {model["id"], *model["aliases"]}
    assert "image" in model["architecture"]["input_modalities"]
    props = http.get("/props", params={"model": agent.model}).json()
    assert int(props["default_generation_settings"]["n_ctx"]) == model["meta"]["n_ctx"] == 512

    picture = {"type": "image_url", "image_url": {"url": data_url(cards[0].image)}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "Describe the card."}, picture]}]
    sent = {"model": agent.model, "messages": messages, "context_size": 512}
    whole = http.post("/v1/chat/completions", json=sent).json()
    assert whole["choices"][0]["message"]["content"] == agent.target_says()
    streamed = {"stream": True, "stream_options": {"include_usage": True}, "timings_per_token": True}
    told = http.post("/v1/chat/completions", json=sent | streamed).text
    chunks = [json.loads(one[6:]) for one in told.split("\n\n") if one.startswith("data: {")]
    words = "".join(one["choices"][0]["delta"].get("content") or "" for one in chunks if one["choices"])
    assert words == whole["choices"][0]["message"]["content"]
    (usage,) = [one["usage"] for one in chunks if one.get("usage")]
    assert usage["prompt_tokens"] == whole["usage"]["prompt_tokens"]


def test_as_many_frames_as_it_sends_are_taken(agent: Served, cards: Cards, client: ollama.Client) -> None:
    twenty = [base64.b64encode(card.image).decode() for card in cards] * 10
    got = client.chat(agent.model, [{"role": "user", "content": "Describe.", "images": twenty}])
    assert len(agent.asked[-1].images) == 20
    assert got.message.content == agent.target_says()
