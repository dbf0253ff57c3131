"""pydantic-ai's own models of OpenAI's APIs: asked, streamed, with two pictures, with types, and with tools."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput, PromptedOutput
from pydantic_ai.exceptions import AgentRunError, ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from cutline.core.constraint import Constraint
from cutline.demo.requests import CardRequest
from tests.clients.conftest import Served

Cards = tuple[CardRequest, CardRequest]


class Reading(BaseModel):
    """What is on a card."""

    colour: Literal["red", "blue", "green", "yellow"]
    sure: bool


def with_(
    agent: Served, ask: Callable[[Agent[None, Any]], Awaitable[Any]], *, responses: bool = False, **options: Any
) -> Any:
    """What `ask` gives of its own agent, whose model is ours. It keeps connections; these it is given."""
    kind = OpenAIResponsesModel if responses else OpenAIChatModel

    async def run() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{agent.url}/v1", api_key="none", max_retries=0) as client:
            return await ask(Agent(kind("cutline", provider=OpenAIProvider(openai_client=client)), **options))

    return asyncio.run(run())


def words(cards: Cards) -> list[Any]:
    return ["Describe.", *(BinaryContent(data=card.image, media_type="image/png") for card in cards)]


@pytest.mark.parametrize("responses", [False, True])
def test_it_asks_and_streams(agent: Served, cards: Cards, responses: bool) -> None:
    async def ask(one: Agent[None, Any]) -> None:
        whole = await one.run(words(cards))
        assert whole.output == agent.target_says()
        assert len(agent.asked[-1].images) == 2
        assert whole.usage.output_tokens > 1
        async with one.run_stream(words(cards)) as stream:
            pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
        assert "".join(pieces) == whole.output
        assert len(pieces) > 1

    with_(agent, ask, responses=responses, instructions="Be brief.")


@pytest.mark.parametrize("responses", [False, True])
def test_it_fills_in_a_type(agent: Served, cards: Cards, responses: bool) -> None:
    got = with_(agent, lambda one: one.run(words(cards)), responses=responses, output_type=NativeOutput(Reading))
    assert got.output == Reading.model_validate_json(agent.target_says())


def test_a_type_that_is_only_asked_for_in_words_is_json_at_least(agent: Served, cards: Cards) -> None:
    how: dict[str, Any] = {"output_type": PromptedOutput(Reading), "retries": 0, "model_settings": {"max_tokens": 20}}
    with pytest.raises(AgentRunError):  # this model has never been told of JSON
        with_(agent, lambda one: one.run(words(cards)), **how)
    assert agent.asked[-1].sampling.constraint == Constraint.json_object()


def test_its_default_is_a_tool_which_some_models_have(agent: Served, tooled: Served, cards: Cards) -> None:
    with pytest.raises(ModelHTTPError, match="calls no tools"):
        with_(agent, lambda one: one.run(words(cards)), output_type=Reading)
    got = with_(tooled, lambda one: one.run("What is it?"), output_type=Reading)
    assert isinstance(got.output, Reading)
