"""LangChain's own client of OpenAI's API: asked, streamed, with two pictures, by a schema, and with tools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import httpx
import pytest
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from cutline.demo.requests import CardRequest
from tests.clients.conftest import Served, data_url

Cards = tuple[CardRequest, CardRequest]


class Reading(BaseModel):
    """What is on a card."""

    colour: Literal["red", "blue", "green", "yellow"]
    sure: bool


@tool  # type: ignore[untyped-decorator]
def time(zone: Literal["UTC", "CET"]) -> str:
    """The time in a zone."""
    return f"noon, {zone}"


@pytest.fixture
def made() -> Iterator[Callable[[Served], ChatOpenAI]]:
    """Its client of an agent. It keeps connections for as long as the process; these it is given."""
    with httpx.Client(trust_env=False) as http:
        yield lambda agent: ChatOpenAI(
            model="cutline",
            base_url=f"{agent.url}/v1",
            api_key=SecretStr("none"),
            max_retries=0,
            http_client=http,
        )


@pytest.fixture
def llm(agent: Served, made: Callable[[Served], ChatOpenAI]) -> ChatOpenAI:
    return made(agent)


def asked(cards: Cards | tuple[CardRequest]) -> list[BaseMessage]:
    pictures: list[Any] = [{"type": "image_url", "image_url": {"url": data_url(card.image)}} for card in cards]
    return [SystemMessage("Be brief."), HumanMessage([*pictures, {"type": "text", "text": "Describe."}])]


def test_it_asks(agent: Served, cards: Cards, llm: ChatOpenAI) -> None:
    got = llm.invoke(asked(cards))
    assert got.text == agent.target_says()
    assert len(agent.asked[-1].images) == 2
    assert got.usage_metadata is not None
    assert got.usage_metadata["output_tokens"] > 1


def test_it_streams(agent: Served, cards: Cards, llm: ChatOpenAI) -> None:
    chunks = [chunk.text for chunk in llm.stream(asked(cards[:1]))]
    assert "".join(chunks) == agent.target_says()
    assert len([chunk for chunk in chunks if chunk]) > 1


@pytest.mark.parametrize("method", ["json_schema", None])
def test_it_fills_in_a_model(agent: Served, cards: Cards, llm: ChatOpenAI, method: Any) -> None:
    """By a schema, which is what it does where nothing is said."""
    given = {} if method is None else {"method": method}
    said = llm.with_structured_output(Reading, **given).invoke(asked(cards))
    assert said == Reading.model_validate_json(agent.target_says())


def test_it_calls_tools_of_a_model_that_has_them(
    agent: Served, tooled: Served, cards: Cards, made: Callable[[Served], ChatOpenAI]
) -> None:
    with pytest.raises(Exception, match="calls no tools"):
        made(agent).bind_tools([time]).invoke(asked(cards))
    bound = made(tooled).bind_tools([time], tool_choice="any", parallel_tool_calls=False)
    (call,) = bound.invoke("What time is it?").tool_calls
    assert call["name"] == "time"
    assert time.invoke(call).content in {"noon, UTC", "noon, CET"}
    filled = made(tooled).with_structured_output(Reading, method="function_calling").invoke("What is it?")
    assert isinstance(filled, Reading)
