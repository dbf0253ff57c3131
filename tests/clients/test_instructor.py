"""instructor over OpenAI's client. It holds that back to versions before ours, so it is not installed with the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from cutline.demo.requests import CardRequest
from tests.clients.conftest import Served, data_url

instructor = pytest.importorskip("instructor")

Cards = tuple[CardRequest, CardRequest]


class Reading(BaseModel):
    """What is on a card."""

    colour: Literal["red", "blue", "green", "yellow"]
    sure: bool


@pytest.fixture
def client(agent: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{agent.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def asked(cards: tuple[CardRequest, ...]) -> Any:
    pictures = [{"type": "image_url", "image_url": {"url": data_url(card.image)}} for card in cards]
    return [{"role": "user", "content": [{"type": "text", "text": "Describe."}, *pictures]}]


@pytest.mark.parametrize("pictures", [1, 2])
def test_by_a_schema(agent: Served, cards: Cards, client: openai.OpenAI, pictures: int) -> None:
    one = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)
    got = one.chat.completions.create(model="cutline", messages=asked(cards[:pictures]), response_model=Reading)
    assert got.model_dump() == Reading.model_validate_json(agent.target_says()).model_dump()
    assert len(agent.asked[-1].images) == pictures


def test_by_a_schema_streamed(agent: Served, cards: Cards, client: openai.OpenAI) -> None:
    one = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)
    *_, last = one.chat.completions.create_partial(
        model="cutline", messages=asked(cards[:1]), response_model=Reading, max_retries=0
    )
    assert last.model_dump() == Reading.model_validate_json(agent.target_says()).model_dump()


def test_by_a_tool_where_the_model_has_them(agent: Served, tooled: Served, cards: Cards, client: openai.OpenAI) -> None:
    """Its default."""
    with pytest.raises(Exception, match="calls no tools"):
        instructor.from_openai(client).chat.completions.create(
            model="cutline", messages=asked(cards), response_model=Reading, max_retries=0
        )
    with openai.OpenAI(base_url=f"{tooled.url}/v1", api_key="none", max_retries=0) as other:
        got = instructor.from_openai(other).chat.completions.create(
            model="cutline", messages=[{"role": "user", "content": "What is it?"}], response_model=Reading
        )
    assert isinstance(got, Reading)
