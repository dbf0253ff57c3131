"""What clients that exist send: it is taken, and where it changes nothing, it changes nothing."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import msgspec
import openai
import pytest

from cutline.cli.terminal.logs import JsonLines
from cutline.core.conversation import Message, TextPart
from cutline.core.request import Mode, Request
from cutline.core.sampling import Sampling
from cutline.demo.bundles import DRAFTER
from cutline.edge.agent import Agent
from cutline.edge.api.errors import Refused
from cutline.edge.api.requests.schema import read_request
from cutline.edge.generation.result import Decision, Gated
from cutline.errors import WorkerBusy
from cutline.models.bundle import Bundle
from cutline.testing.agent import ScriptedAgent, spoken, told
from cutline.testing.raw_http import BODY, PATH, connect, request

Serving = Callable[..., AbstractAsyncContextManager[str]]

ASKED: list[Any] = [{"role": "user", "content": "What?"}]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def taken(agent: ScriptedAgent, serving: Serving, **sent: Any) -> tuple[Request, Any]:
    """The question that OpenAI's own client asks, and the answer as it reads it."""
    agent.always = [spoken("7")]

    async def run() -> Any:
        async with (
            serving() as url,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        ):
            return await client.chat.completions.create(**{"model": "cutline", "messages": ASKED} | sent)

    answer = asyncio.run(run())
    return agent.asked[-1], answer


@pytest.mark.parametrize(
    "sent",
    [
        {"metadata": {"run": "7"}, "store": True},
        {"store": True, "safety_identifier": "me", "prompt_cache_key": "k", "user": "me"},
        {"tools": [TOOL], "tool_choice": "none"},
        {"extra_body": {"keep_alive": "5m", "num_ctx": 8192, "context_size": 8192, "timings_per_token": True}},
        {"extra_body": {"keep_alive": -1}},
        {"messages": [{"role": "user", "name": "ann", "content": "What?"}]},
        {"service_tier": "priority", "prediction": {"type": "content", "content": "7"}, "verbosity": "medium"},
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}, "think": False, "cache_prompt": True}},
        {"extra_body": {"ignore_eos": False, "skip_special_tokens": True, "reasoning_effort": "none"}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "What?", "cache_control": {}}]}]},
    ],
    ids=repr,
)
def test_what_changes_nothing_is_taken(agent: ScriptedAgent, serving: Serving, sent: dict[str, Any]) -> None:
    asked, answer = taken(agent, serving, **sent)
    plain = read_request(msgspec.json.encode({"messages": ASKED})).question([])
    assert msgspec.structs.replace(asked, request_id="") == plain
    assert answer.choices[0].message.content == "7"


def test_what_a_developer_says_is_the_systems(agent: ScriptedAgent, serving: Serving) -> None:
    asked, _ = taken(agent, serving, messages=[{"role": "developer", "content": "Be brief."}, *ASKED])
    assert asked.messages[0] == Message("system", (TextPart("Be brief."),))


def test_null_is_no_words(agent: ScriptedAgent, serving: Serving) -> None:
    said: Any = {"role": "assistant", "content": None}
    asked, _ = taken(agent, serving, messages=[*ASKED, said, *ASKED])
    assert asked.messages[1] == Message("assistant", ())


@pytest.mark.parametrize("detail", ["auto", "low", "high"])
def test_detail_is_taken(agent: ScriptedAgent, serving: Serving, detail: str) -> None:
    url = {"url": "data:image/png;base64," + base64.b64encode(b"any").decode(), "detail": detail}
    content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": "What?"}]
    asked, _ = taken(agent, serving, messages=[{"role": "user", "content": content}])
    assert asked.images == (b"any",)


@pytest.mark.parametrize(
    "sent",
    [
        {"functions": [TOOL["function"]]},
        {"functions": {}, "function_call": "none"},
        {"metadata": "x"},
        {"num_ctx": "8k"},
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"reasoning_effort": "high"},
        {"verbosity": "low"},
        {"ignore_eos": True},
        {"prediction": "7"},
        {"messages": [{"role": "user", "name": 7, "content": "What?"}]},
    ],
    ids=repr,
)
def test_what_would_change_the_answer_is_refused(sent: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="leave these out"):
        read_request(msgspec.json.encode({"messages": ASKED} | sent))


@pytest.mark.parametrize("sent", [{}, {"seed": -1}, {"seed": None}])
def test_a_seed_that_is_not_given_is_drawn(sent: dict[str, Any]) -> None:
    def seed(**more: Any) -> int:
        raw = {"messages": ASKED, **sent, **more}
        return read_request(msgspec.json.encode(raw)).question([]).sampling.seed

    drawn = {seed(temperature=0.5) for _ in range(20)}
    assert len(drawn) == 20
    assert all(0 <= one < 2**63 for one in drawn)
    assert max(drawn) > 2**53  # a JSON number of so many digits is read whole by whoever keeps integers
    assert seed() == seed(temperature=0) == 0, "nothing is drawn from it"
    assert seed(temperature=0.5, seed=7) == 7


def test_an_answer_is_made_again_by_its_seed() -> None:
    async def run() -> None:
        async with Agent(Bundle.open(DRAFTER), worker=None, threads=1) as agent:

            async def answer(**sampling: Any) -> Any:
                given = Sampling(temperature=4.0, **sampling)
                question = Request(
                    messages=(Message("user", (TextPart("What?"),)),), mode=Mode.EDGE, sampling=given, max_tokens=8
                )
                return await agent.answer(question)

            drawn = read_request(msgspec.json.encode({"messages": ASKED, "temperature": 4.0})).question([]).sampling
            first = await answer(seed=drawn.seed)
            again = await answer(seed=first.seed)
            other = await answer(seed=first.seed ^ 1)
            assert first.seed == drawn.seed
            assert again.text == first.text != other.text

    asyncio.run(run())


def test_a_gzip_body_is_inflated(agent: ScriptedAgent, serving: Serving) -> None:
    agent.always = [spoken("7")]

    async def run() -> list[int]:
        async with serving() as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
            headers = {"content-encoding": "gzip"}
            bomb = gzip.compress(b'{"x": "' + bytes(64 << 20))
            sent = [gzip.compress(BODY), bomb, b"plain", gzip.compress(BODY)[:-4]]
            found = [(await client.post(PATH, content=one, headers=headers)).status_code for one in sent]
            brotli = await client.post(PATH, content=BODY, headers={"content-encoding": "br"})
            return [*found, brotli.status_code]

    assert asyncio.run(run()) == [200, 413, 400, 400, 415]
    assert len(agent.asked) == 1


@pytest.mark.threat("doors")
def test_two_ends_of_a_body_close_the_connection(agent: ScriptedAgent, serving: Serving) -> None:
    """Where a proxy before the agent goes by the other one, what is left would be the next one's request."""
    agent.always = [spoken("7")]
    smuggled = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)

    async def run() -> bytes:
        async with serving() as url:
            reader, writer = await connect(url)
            writer.write(request(chunked, "Transfer-Encoding: chunked", length=len(chunked)) + smuggled)
            got = await asyncio.wait_for(reader.read(), 20)
            writer.close()
            return got

    got = asyncio.run(run())
    assert got.startswith(b"HTTP/1.1 400")
    assert b"content-length and transfer-encoding" in got
    assert got.count(b"HTTP/1.1") == 1
    assert agent.asked == []


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-request-id": "req_1.a:b"}, "req_1.a:b"),
        ({"x-request-id": "mine", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}, "mine"),
        ({"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}, TRACE),
        ({"x-request-id": "two words"}, None),
        ({"x-request-id": "x" * 129}, None),
        ({"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"}, None),
        ({"traceparent": "x"}, None),
        ({}, None),
    ],
)
def test_one_id_names_a_request_wherever_it_goes(
    agent: ScriptedAgent,
    serving: Serving,
    caplog: pytest.LogCaptureFixture,
    headers: dict[str, str],
    expected: str | None,
) -> None:
    gated = Gated(group="one picture", calibrated=True, decision=Decision.KEPT, promised=0.02)
    agent.enqueue(msgspec.structs.replace(spoken("7"), gate=gated))
    agent.enqueue(*told(spoken("7")))
    agent.enqueue(WorkerBusy("no room"))

    async def run() -> list[httpx.Response]:
        async with serving() as url, httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
            bodies = [BODY, msgspec.json.encode(msgspec.json.decode(BODY) | {"stream": True}), BODY, b"{"]
            return [await client.post(PATH, content=one) for one in bodies]

    with caplog.at_level(logging.INFO, logger="cutline.edge.api.request_log"):
        responses = asyncio.run(run())
    names = [one.headers["x-request-id"] for one in responses]
    if expected is None:
        assert len(set(names)) == 4
        assert all(len(one) == 32 for one in names)
    else:
        assert names == [expected] * 4
    assert [one.request_id for one in agent.asked] == names[:3]
    assert {bool(one.trace) for one in agent.asked} == {expected == TRACE or expected == "mine"}
    lines = [json.loads(JsonLines().format(one)) for one in caplog.records]
    assert [one["request"] for one in lines] == names
    assert [one["status"] for one in lines] == [200, 200, 429, 400]
    assert [one.get("tokens") for one in lines] == [1, 1, None, None]
    assert [(one.get("gate"), one.get("promised")) for one in lines] == [("kept", 0.02), *[(None, None)] * 3]
    assert [one.get("outcome") for one in lines] == [None, None, "WorkerBusy", "InputError"]


def test_the_model_is_looked_up_as_of_llama_cpp(agent: ScriptedAgent, serving: Serving) -> None:
    """Frigate reads these before it asks."""

    async def run() -> list[Any]:
        async with serving() as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
            return [(await client.get(path)).json() for path in ("/v1/models", "/props?model=cutline")]

    models, props = asyncio.run(run())
    (model,) = models["data"]
    context = agent.manifest.decoder.context
    assert {model["id"], *model["aliases"]} == {agent.manifest.name, "cutline"}
    assert model["max_model_len"] == model["meta"]["n_ctx"] == context
    assert model["architecture"]["input_modalities"] == ["text", "image"]
    assert model["capabilities"] == ["completion", "vision"]
    assert props["default_generation_settings"]["n_ctx"] == context
    assert props["modalities"] == {"vision": True, "audio": False}
    assert not props["chat_template_caps"]["supports_tools"]
    agent.now = msgspec.structs.replace(agent.now, videos=True)
    (model,) = asyncio.run(run())[0]["data"]
    assert model["architecture"]["input_modalities"] == ["text", "image", "video"]
