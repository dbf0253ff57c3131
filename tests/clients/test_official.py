"""The clients of OpenAI and Ollama do all that they can with an agent and its worker, on real models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import ollama
import openai
import pytest
from pydantic import BaseModel, ConfigDict

from cutline.demo.requests import CardRequest
from tests.clients.conftest import Served, data_url

Cards = tuple[CardRequest, CardRequest]
TIME: Any = {
    "name": "time",
    "parameters": {
        "type": "object",
        "properties": {"zone": {"type": "string", "enum": ["UTC", "CET"]}},
        "required": ["zone"],
    },
}


class Reading(BaseModel):
    """What is on a card."""

    model_config = ConfigDict(extra="forbid")
    colour: Literal["red", "blue", "green", "yellow"]
    sure: bool


@pytest.fixture
def client(agent: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{agent.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def asked(cards: tuple[CardRequest, ...]) -> Any:
    shown = [{"type": "input_image", "image_url": data_url(card.image)} for card in cards]
    return [{"role": "user", "content": [{"type": "input_text", "text": "Describe the card."}, *shown]}]


@pytest.mark.parametrize("pictures", [1, 2])
def test_responses(agent: Served, cards: Cards, client: openai.OpenAI, pictures: int) -> None:
    whole = client.responses.create(model="cutline", input=asked(cards[:pictures]))
    assert whole.output_text == agent.target_says()
    with client.responses.stream(model="cutline", input=asked(cards[:pictures])) as events:
        deltas = [one.delta for one in events if one.type == "response.output_text.delta"]
        streamed = events.get_final_response()
    assert "".join(deltas) == streamed.output_text == whole.output_text

    on = client.responses.create(model="cutline", input="Read the digits.", previous_response_id=whole.id)
    assert on.output_text == agent.target_says()
    assert [one.role for one in agent.asked[-1].messages] == ["user", "assistant", "user"]
    assert len(agent.asked[-1].images) == pictures, "sent once, and kept"


def test_responses_by_a_schema(agent: Served, cards: Cards, client: openai.OpenAI) -> None:
    got = client.responses.parse(model="cutline", input=asked(cards[:1]), text_format=Reading)
    assert got.output_parsed == Reading.model_validate_json(agent.target_says())


def test_tools_of_openais(agent: Served, tooled: Served, client: openai.OpenAI) -> None:
    chat: Any = {"model": "cutline", "messages": [{"role": "user", "content": "What time is it?"}]}
    offered: Any = {"tools": [{"type": "function", "function": TIME}], "tool_choice": "required"}
    flat: Any = {
        "model": "cutline",
        "input": "What time is it?",
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    flat |= {"tools": [{"type": "function", "strict": True, **TIME}]}
    with pytest.raises(openai.BadRequestError, match="calls no tools"):
        client.chat.completions.create(**chat, **offered)
    with openai.OpenAI(base_url=f"{tooled.url}/v1", api_key="none", max_retries=0) as other:
        said = other.chat.completions.create(**chat, **offered, parallel_tool_calls=False).choices[0]
        (call,) = said.message.tool_calls or []
        assert said.finish_reason == "tool_calls"
        assert json.loads(call.model_dump()["function"]["arguments"])["zone"] in {"UTC", "CET"}
        (item,) = other.responses.create(**flat).output
        assert item.type == "function_call"
        assert json.loads(item.arguments)["zone"] in {"UTC", "CET"}


def test_what_is_not_served_here_says_so(agent: Served, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="cutline", input="A card.")
    with ollama.Client(agent.url) as one, pytest.raises(ollama.ResponseError, match="--encoder"):
        one.embed("cutline", "A card.")


def test_ollama(agent: Served, cards: Cards) -> None:
    image = cards[0].image
    turn: Any = {"role": "user", "content": "Describe the card.", "images": [image]}
    with ollama.Client(agent.url) as client:
        (here,) = client.list().models
        assert [one.model for one in client.ps().models] == [here.model]
        assert (client.show(here.model or "").capabilities) == ["completion", "vision"]
        assert client.pull("cutline").status == "success"
        assert [one.status for one in client.pull("cutline", stream=True)] == ["success"]
        said = client.chat("cutline", [turn]).message.content
        assert said == agent.target_says()
        assert client.generate("cutline", "Describe the card.", images=[image]).response == said
        assert "".join(one.message.content or "" for one in client.chat("cutline", [turn], stream=True)) == said
        kept = client.chat("cutline", [turn], format=Reading.model_json_schema())
        Reading.model_validate_json(kept.message.content or "")
        assert kept.message.content == agent.target_says()
