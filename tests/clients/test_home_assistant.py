"""What Home Assistant sends: its Ollama integration, a local server of OpenAI's API, and LLM Vision by either."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import ollama
import openai
import pytest

from cutline.core.conversation import ImagePart, Message, TextPart
from cutline.demo.requests import CardRequest
from tests.clients.conftest import Served, data_url

Cards = tuple[CardRequest, CardRequest]

# What selectors of an AI task become: a choice, a switch, a number, an entity, several texts.
STRUCTURE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "colour": {"type": "string", "enum": ["red", "blue", "green", "yellow"], "description": "Of the first digit"},
        "sure": {"type": "boolean"},
        "level": {"type": "string", "enum": ["low", "high"], "format": "entity_id"},
    },
    "required": ["colour"],
}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "HassTurnOn",
        "description": "Turns on a device",
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}}, "required": []},
    },
}


@pytest.fixture
def files(cards: Cards, tmp_path: Path) -> list[Path]:
    """The pictures as a camera's snapshots."""
    paths = [tmp_path / f"{index}.png" for index in range(2)]
    for path, card in zip(paths, cards, strict=True):
        path.write_bytes(card.image)
    return paths


def streamed(agent: Served, files: list[Path], **more: Any) -> str:
    """As its Ollama integration asks: always streamed, pictures by their paths."""
    messages = [
        ollama.Message(role="system", content="You are the house."),
        ollama.Message(
            role="user", content="Describe the cards.", images=[ollama.Image(value=file) for file in files] or None
        ),
    ]
    given: dict[str, Any] = {"tools": None, "keep_alive": -1, "options": {"num_ctx": 8192}, "think": False}
    with ollama.Client(agent.url) as client:
        (model,) = client.list().models
        parts = client.chat(model.model or "", messages, stream=True, **given | more)
        return "".join(part["message"].get("content") or "" for part in parts)


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_ollama_converses(agent: Served, files: list[Path], pictures: int) -> None:
    assert streamed(agent, files[:pictures], keep_alive="300s", format=None) == agent.target_says()
    assert len(agent.asked[-1].images) == pictures


def test_ollama_fills_in_a_structure(agent: Served, files: list[Path]) -> None:
    said = streamed(agent, files, format=STRUCTURE)
    jsonschema.validate(json.loads(said), STRUCTURE)
    assert said == agent.target_says()


def test_ollama_controls_the_house_with_a_model_that_has_tools(agent: Served, tooled: Served) -> None:
    with pytest.raises(ollama.ResponseError, match="calls no tools"):
        streamed(agent, [], tools=[TOOL])
    assert streamed(tooled, [], tools=[TOOL], options={"num_ctx": 8192, "num_predict": 8}) == tooled.target_says()
    assert tooled.asked[-1].tools is not None


def local(agent: Served, cards: Cards, **more: Any) -> str:
    """As an integration of local servers asks: always streamed, pictures before the words."""
    pictures = [{"type": "image_url", "image_url": {"url": data_url(card.image), "detail": "auto"}} for card in cards]
    messages: Any = [
        {"role": "system", "content": "You are the house."},
        {"role": "user", "content": [*pictures, {"type": "text", "text": "Describe the cards."}]},
    ]
    how: dict[str, Any] = {"temperature": 0.6, "parallel_tool_calls": False, "extra_headers": {"X-Title": "House"}}
    body = {"chat_template_kwargs": {"enable_thinking": False}, "metadata": {"session_id": "01J"}}
    with openai.OpenAI(base_url=f"{agent.url}/v1", api_key="none", max_retries=0) as client:
        (model,) = client.models.list().data
        chunks = client.chat.completions.create(
            model=model.id, messages=messages, stream=True, extra_body=body, **how | more
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.mark.parametrize("pictures", [1, 2])
def test_a_local_server_converses(agent: Served, cards: Cards, pictures: int) -> None:
    assert local(agent, cards[:pictures]) == agent.target_says()  # type: ignore[arg-type]


def test_a_local_server_fills_in_a_structure(agent: Served, cards: Cards) -> None:
    """What need not be given may be null there, and all has to be."""
    schema = json.loads(json.dumps(STRUCTURE)) | {"required": list(STRUCTURE["properties"])}
    schema["properties"]["sure"]["type"] = ["boolean", "null"]
    wanted = {"type": "json_schema", "json_schema": {"name": "a task", "strict": True, "schema": schema}}
    said = local(agent, cards, response_format=wanted)
    jsonschema.validate(json.loads(said), schema)
    assert said == agent.target_says()


@pytest.fixture
def http(agent: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=agent.url, trust_env=False, timeout=60) as one:
        yield one


@pytest.mark.parametrize("schema", [None, STRUCTURE])
def test_llm_vision_by_openais_api(agent: Served, cards: Cards, http: httpx.Client, schema: Any) -> None:
    content: list[Any] = []
    for index, card in enumerate(cards):
        content += [
            {"type": "text", "text": f"Image {index + 1}:"},
            {"type": "image_url", "image_url": {"url": data_url(card.image)}},
        ]
    sent: dict[str, Any] = {
        "model": "cutline",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [*content, {"type": "text", "text": "Describe the cards."}]},
        ],
        "max_completion_tokens": 100,
        "temperature": 0.5,
        "top_p": 0.9,
    }
    if schema is not None:
        strict = {"name": "response", "schema": schema | {"additionalProperties": False}, "strict": True}
        sent["response_format"] = {"type": "json_schema", "json_schema": strict}
    got = http.post("/v1/chat/completions", json=sent, headers={"authorization": "Bearer none"})
    said = got.json()["choices"][0]["message"]["content"]
    assert said == agent.target_says()
    if schema is not None:
        jsonschema.validate(json.loads(said), schema)


@pytest.mark.parametrize("schema", [None, STRUCTURE])
def test_llm_vision_by_ollamas_api(agent: Served, cards: Cards, http: httpx.Client, schema: Any) -> None:
    """A turn for each picture, and the system's words beside the turns."""
    assert http.get("/api/tags").status_code == 200
    sent: dict[str, Any] = {
        "model": agent.model,
        "messages": [
            *(
                {"role": "user", "content": f"Image {index + 1}:", "images": [base64.b64encode(card.image).decode()]}
                for index, card in enumerate(cards)
            ),
            {"role": "user", "content": "Describe the cards."},
        ],
        "system": "Be brief.",
        "stream": False,
        "keep_alive": 5,
        "options": {"num_predict": 100, "temperature": 0.5, "num_ctx": 2048},
    }
    said = http.post("/api/chat", json=sent if schema is None else sent | {"format": schema}).json()["message"]
    assert said["content"] == agent.target_says()
    first, *turns = agent.asked[-1].messages
    assert first == Message("system", (TextPart("Be brief."),))
    assert [len([one for one in turn.parts if isinstance(one, ImagePart)]) for turn in turns] == [1, 1, 0]
    if schema is not None:
        jsonschema.validate(json.loads(said["content"]), schema)


def test_llm_vision_asks_for_a_title(agent: Served, http: httpx.Client) -> None:
    """Two turns of the user's in a row."""
    turns = [{"role": "user", "content": [{"type": "text", "text": text}]} for text in ("A title.", "Two cards.")]
    sent = {"model": "cutline", "messages": turns, "max_completion_tokens": 40, "temperature": 0.5, "top_p": 0.9}
    got = http.post("/v1/chat/completions", json=sent).json()
    assert got["choices"][0]["message"]["content"] == agent.target_says()
