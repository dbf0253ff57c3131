"""Structured output through the API, by OpenAI's own client, with the demo's models on both sides."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import ollama
import openai
import pytest
from pydantic import BaseModel, ConfigDict

from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.api.server import ServerOptions, serve
from cutline.models.bundle import Bundle
from cutline.testing.together import together

ROOT = Path(__file__).resolve().parents[3]
CARD = next(iter(requests(Split.EVALUATION, 1, seed=5)))
URL = "data:image/png;base64," + base64.b64encode(CARD.image).decode()
ASKED: list[Any] = [
    {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": "Read the digits."}],
    }
]


class Reading(BaseModel):
    model_config = ConfigDict(extra="forbid")
    colour: Literal["red", "blue", "green", "yellow"]
    sure: bool


@asynccontextmanager
async def client() -> AsyncIterator[openai.AsyncOpenAI]:
    async with together(Bundle.open(TARGET), Bundle.open(DRAFTER)) as agent:
        given = ServerOptions(listen="127.0.0.1:0")
        listening, stop = asyncio.get_running_loop().create_future(), asyncio.Event()
        served = asyncio.create_task(serve(agent, given, announce=listening.set_result, stop=stop))
        url = f"http://{await listening}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as one:
            yield one
        stop.set()
        await served


def test_a_pydantic_model_comes_back_filled_in() -> None:
    async def run() -> None:
        async with client() as one:
            parsed = await one.chat.completions.parse(model="cutline", messages=ASKED, response_format=Reading)
            assert isinstance(parsed.choices[0].message.parsed, Reading)
            async with one.chat.completions.stream(model="cutline", messages=ASKED, response_format=Reading) as stream:
                async for _ in stream:
                    pass
                streamed = await stream.get_final_completion()
            assert streamed.choices[0].message.parsed == parsed.choices[0].message.parsed

    asyncio.run(run())


def test_an_object_that_is_cut_short_is_never_passed_off_as_whole() -> None:
    async def run() -> None:
        async with client() as one:
            with pytest.raises(openai.LengthFinishReasonError):
                await one.chat.completions.parse(
                    model="cutline", messages=ASKED, response_format=Reading, max_completion_tokens=3
                )

    asyncio.run(run())


@pytest.mark.parametrize(
    ("wanted", "pattern"),
    [
        ({"type": "regex", "regex": "[0-9]( [0-9])?"}, "[0-9]( [0-9])?"),
        ({"type": "choice", "choice": ["red", "blue"]}, "red|blue"),
        ({"type": "lark", "lark": 'start: "sum " /[0-9]/'}, "sum [0-9]"),
    ],
)
def test_what_openai_has_no_words_for(wanted: Any, pattern: str) -> None:
    async def run() -> None:
        async with client() as one:
            said = await one.chat.completions.create(model="cutline", messages=ASKED, response_format=wanted)
            assert re.fullmatch(pattern, said.choices[0].message.content or "")
            assert said.choices[0].finish_reason == "stop"

    asyncio.run(run())


def test_any_object() -> None:
    async def run() -> None:
        async with client() as one:
            said = await one.chat.completions.create(
                model="cutline",
                messages=ASKED,
                response_format={"type": "json_object"},
                extra_body={"cutline": {"mode": "edge"}},
            )
            if said.choices[0].finish_reason == "stop":
                assert isinstance(json.loads(said.choices[0].message.content or ""), dict)
            else:
                assert (said.choices[0].message.content or "").startswith("{")

    asyncio.run(run())


def test_a_hostile_schema_is_refused_with_its_reason() -> None:
    schema = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}

    async def run() -> None:
        async with client() as one:
            with pytest.raises(openai.BadRequestError, match="with not are not served"):
                await one.chat.completions.create(model="cutline", messages=ASKED, response_format=wanted)

    asyncio.run(run())


def test_the_responses_api_fills_a_pydantic_model_in_too() -> None:
    content: Any = [{"type": "input_image", "image_url": URL}, {"type": "input_text", "text": "Read the digits."}]

    async def run() -> None:
        async with client() as one:
            asked: Any = [{"role": "user", "content": content}]
            said = await one.responses.parse(model="cutline", input=asked, text_format=Reading)
            assert isinstance(said.output_parsed, Reading)
            assert said.text is not None
            assert said.text.format is not None
            assert said.text.format.type == "json_schema"

    asyncio.run(run())


def test_ollamas_client_gets_json_by_its_format() -> None:
    async def run() -> None:
        async with client() as one:
            host = str(one.base_url).removesuffix("/v1/")
            asked = [{"role": "user", "content": "Read the digits.", "images": [CARD.image]}]
            schema = Reading.model_json_schema()
            async with ollama.AsyncClient(host=host) as theirs:
                said = await theirs.chat(model="cutline", messages=asked, format=schema)
                Reading.model_validate_json(said.message.content or "")
                anything = await theirs.generate(
                    model="cutline", prompt="Read.", images=[CARD.image], format="json", options={"num_predict": 40}
                )
                assert (anything.response or "").startswith("{")
                with pytest.raises(ollama.ResponseError, match="with not are not served"):
                    await theirs.chat(model="cutline", messages=asked, format={"not": {}})

    asyncio.run(run())


def test_the_example_of_the_page_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/how-to/structured-output.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(ROOT)

    async def run() -> None:
        async with client() as one:
            await asyncio.to_thread(exec, example.replace("http://127.0.0.1:8080/v1", str(one.base_url)), {})

    asyncio.run(run())
    assert re.match(r"digits=\[.*\] colour='\w+'", capsys.readouterr().out)
