"""Tools over HTTP, by the official clients of OpenAI and Ollama: offered, called, told as the answer is made."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import msgspec
import ollama
import openai
import pytest

from cutline.core.conversation import Message, TextPart
from cutline.core.tools import ToolCall
from cutline.demo.bundles import DRAFTER
from cutline.edge.api.errors import Refused
from cutline.edge.api.requests.schema import ChatRequest, read_request
from cutline.edge.generation.result import Answer
from cutline.errors import CutlineError
from cutline.models.bundle import Bundle
from cutline.models.families.qwen.qwen25vl import Qwen25VL
from cutline.models.tools import HERMES
from cutline.testing.agent import ScriptedAgent, spoken, told

Serving = Callable[..., AbstractAsyncContextManager[str]]
STOP = 2
WEATHER: Any = {
    "name": "weather",
    "description": "Where is it wet?",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TIME: Any = {"name": "time", "parameters": {"type": "object", "properties": {}}}
TOOLS: Any = [{"type": "function", "function": one} for one in (WEATHER, TIME)]
ASKED: Any = [{"role": "user", "content": "Is it wet in Rome?"}]
CALL = (HERMES.begin, '\n{"name": "weather", ', '"arguments": ', '{"city": "Ro', 'me"}', "}\n", HERMES.end)
LATER = (HERMES.begin, '{"name": "time", "arguments": {}}', HERMES.end)
BOTH = spoken("I ", "look. ", *CALL, "\n", *LATER, stop=STOP)
CALLS = [("weather", {"city": "Rome"}), ("time", {})]


@pytest.fixture
def agent() -> ScriptedAgent:
    """One of a family that has words for calls."""
    family = Qwen25VL(
        patch=14, merge=2, frames=2, tower_head=24, tower_theta=1e4, min_pixels=3136, max_pixels=50176, theta=1e6,
        sections=(4, 6, 6), window=112, full=(2,),
    )  # fmt: skip
    return ScriptedAgent(msgspec.structs.replace(Bundle.open(DRAFTER).manifest, family=family))


def by_openai(serving: Serving, ask: Callable[[openai.AsyncOpenAI], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with serving() as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            return await ask(client)

    return asyncio.run(run())


def test_a_chat_calls_tools(agent: ScriptedAgent, serving: Serving) -> None:
    agent.always = [BOTH]
    got = by_openai(
        serving, lambda client: client.chat.completions.create(model="cutline", messages=ASKED, tools=TOOLS)
    )
    (choice,) = got.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I look."
    called = choice.message.tool_calls
    assert [(one.function.name, json.loads(one.function.arguments)) for one in called] == CALLS
    assert len({one.id for one in called}) == 2
    (asked,) = agent.asked
    assert asked.tools is not None
    assert [one.name for one in asked.tools.tools] == ["weather", "time"]
    assert asked.tools.choice == "auto"


def test_a_chat_that_is_streamed_calls_them_piece_by_piece(agent: ScriptedAgent, serving: Serving) -> None:
    agent.always = told(BOTH)

    async def ask(client: openai.AsyncOpenAI) -> Any:
        asked: Any = {"model": "cutline", "messages": ASKED, "tools": TOOLS, "stream": True}
        return [chunk async for chunk in await client.chat.completions.create(**asked)]

    deltas = [choice for chunk in by_openai(serving, ask) for choice in chunk.choices]
    assert "".join(one.delta.content or "" for one in deltas) == "I look."
    names, arguments = dict[int, str](), dict[int, list[str]]()
    for delta in deltas:
        for one in delta.delta.tool_calls or ():
            if one.function.name:
                assert one.id
                assert one.type == "function"
                names[one.index] = one.function.name
            arguments.setdefault(one.index, []).append(one.function.arguments)
    assert [(names[place], json.loads("".join(arguments[place]))) for place in sorted(names)] == CALLS
    assert len([piece for piece in arguments[0] if piece]) > 1, "before the call was whole"
    assert [one.finish_reason for one in deltas if one.finish_reason] == ["tool_calls"]


def test_a_call_that_is_cut_short_says_so(agent: ScriptedAgent, serving: Serving) -> None:
    agent.always = [spoken(*CALL[:4])]
    got = by_openai(
        serving, lambda client: client.chat.completions.create(model="cutline", messages=ASKED, tools=TOOLS)
    )
    assert got.choices[0].finish_reason == "length"
    assert got.choices[0].message.tool_calls[0].function.arguments == '{"city": "Ro'


def test_what_was_not_offered_is_not_called(agent: ScriptedAgent, serving: Serving) -> None:
    """Neither a tool of another name, nor any where none were offered: those are words."""
    agent.always = [spoken(*CALL, stop=STOP)]
    for offered in ([TOOLS[1]], None):
        sent: dict[str, Any] = {} if offered is None else {"tools": offered}
        ask = lambda client, sent=sent: client.chat.completions.create(model="cutline", messages=ASKED, **sent)  # noqa: E731
        got = by_openai(serving, ask)
        assert got.choices[0].finish_reason == "stop"
        assert got.choices[0].message.tool_calls is None
        assert got.choices[0].message.content == "".join(CALL)


def test_several_calls_are_one_where_that_is_asked_for(agent: ScriptedAgent, serving: Serving) -> None:
    agent.always = [BOTH]
    got = by_openai(
        serving,
        lambda client: client.chat.completions.create(
            model="cutline", messages=ASKED, tools=TOOLS, parallel_tool_calls=False
        ),
    )
    assert [one.function.name for one in got.choices[0].message.tool_calls] == ["weather"]


CALLED: Any = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
        {"id": "c2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ],
}
GIVEN: Any = [{"role": "tool", "tool_call_id": f"c{one}", "content": said} for one, said in ((1, "wet"), (2, "noon"))]
TURNS = (
    Message("user", (TextPart("Is it wet in Rome?"),)),
    Message(
        "assistant",
        (),
        (ToolCall(name="weather", arguments='{"city": "Rome"}'), ToolCall(name="time", arguments="{}")),
    ),
    Message("tool", (TextPart("wet"),)),
    Message("tool", (TextPart("noon"),)),
)


def test_what_tools_gave_is_a_part_of_the_conversation(agent: ScriptedAgent, serving: Serving) -> None:
    agent.always = [spoken("Yes.", stop=STOP)]
    messages = [*ASKED, CALLED, *GIVEN]
    got = by_openai(
        serving, lambda client: client.chat.completions.create(model="cutline", messages=messages, tools=TOOLS)
    )
    assert got.choices[0].message.content == "Yes."
    assert agent.asked[0].messages == TURNS
    again = ChatRequest.asking(agent.asked[0])
    question = again.question([])
    assert (question.messages, question.tools) == (TURNS, agent.asked[0].tools), "as our own client asks it"


@pytest.mark.parametrize(
    ("choice", "constrained", "named"),
    [
        ("auto", False, None),
        ("required", True, None),
        ({"type": "function", "function": {"name": "time"}}, True, "time"),
    ],
)
def test_what_has_to_be_called(choice: Any, constrained: bool, named: str | None) -> None:
    sent = msgspec.json.encode({"messages": ASKED, "tools": TOOLS, "tool_choice": choice})
    asked = read_request(sent).question([])
    box = asked.tools
    assert box is not None
    assert (box.named, box.constraint is not None) == (named, constrained)
    if box.constraint is not None:
        assert set(box.constraint.value["parameters"]) == ({named} if named else {"weather", "time"})
        assert box.constraint.value["parallel"] == (named is None)
    assert ChatRequest.asking(asked).question([]).tools == box


@pytest.mark.parametrize(
    "sent",
    [
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tools": [*TOOLS, TOOLS[0]]},
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        {"tools": [{"type": "web_search"}]},
        {"tools": TOOLS, "tool_choice": "any"},
        {"tools": TOOLS, "response_format": {"type": "json_object"}},
        {"messages": [*ASKED, CALLED]},
    ],
    ids=repr,
)
def test_what_is_refused(sent: Any) -> None:
    with pytest.raises((CutlineError, Refused)):
        read_request(msgspec.json.encode({"messages": ASKED} | sent)).question([])


def test_a_response_calls_tools(agent: ScriptedAgent, serving: Serving) -> None:
    agent.enqueue(BOTH)
    agent.enqueue(*told(BOTH))
    agent.enqueue(spoken("Yes.", stop=STOP))
    flat: Any = [{"type": "function", **one} for one in (WEATHER, TIME)]
    sent: Any = {"model": "cutline", "input": "Is it wet in Rome?", "tools": flat}

    async def ask(client: openai.AsyncOpenAI) -> Any:
        whole = await client.responses.create(**sent)
        events = [event async for event in await client.responses.create(**sent, stream=True)]
        calls = [one for one in whole.output if one.type == "function_call"]
        given: Any = [
            {"type": "function_call_output", "call_id": one.call_id, "output": said}
            for one, said in zip(calls, ("wet", "noon"), strict=True)
        ]
        after = await client.responses.create(model="cutline", input=given, tools=flat, previous_response_id=whole.id)
        return whole, events, after

    whole, events, after = by_openai(serving, ask)
    for made in (whole, events[-1].response):
        message, *calls = made.output
        assert message.content[0].text == "I look."
        assert [(one.name, json.loads(one.arguments)) for one in calls] == CALLS
        assert {one.status for one in made.output} == {"completed"}
        assert len({one.call_id for one in calls}) == 2
    deltas = [one.delta for one in events if one.type == "response.function_call_arguments.delta"]
    assert len(deltas) > 2
    assert "".join(deltas) == '{"city": "Rome"}{}'
    kinds = [one.type for one in events]
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 3
    assert [one.sequence_number for one in events] == list(range(len(events)))
    assert after.output_text == "Yes."
    said = agent.asked[-1].messages
    assert [one.role for one in said] == ["user", "assistant", "tool", "tool"]
    assert said[1].calls == TURNS[1].calls
    assert said[2:] == TURNS[2:]


def test_a_response_takes_calls_that_are_sent_back(agent: ScriptedAgent, serving: Serving) -> None:
    agent.always = [spoken("Yes.", stop=STOP)]
    calls: Any = [
        {"type": "function_call", "call_id": one["id"], "id": "fc", "status": "completed", **one["function"]}
        for one in CALLED["tool_calls"]
    ]
    given: Any = [
        {"type": "function_call_output", "call_id": one["tool_call_id"], "output": one["content"]} for one in GIVEN
    ]
    asked: Any = [{"role": "user", "content": "Is it wet in Rome?"}, *calls, *given]
    by_openai(serving, lambda client: client.responses.create(model="cutline", input=asked))
    assert agent.asked[0].messages == TURNS


def test_ollamas_client_calls_tools(agent: ScriptedAgent, serving: Serving) -> None:
    agent.enqueue(BOTH)
    agent.enqueue(*told(BOTH))
    agent.enqueue(spoken("Yes.", stop=STOP))

    async def run() -> Any:
        async with serving() as url, ollama.AsyncClient(url, trust_env=False) as client:
            whole = await client.chat(model="cutline", messages=ASKED, tools=TOOLS)
            stream = await client.chat(model="cutline", messages=ASKED, tools=TOOLS, stream=True)
            parts = [part async for part in stream]
            given: Any = [
                {"role": "tool", "tool_name": name, "content": said}
                for name, said in (("weather", "wet"), ("time", "noon"))
            ]
            after = await client.chat(model="cutline", messages=[*ASKED, whole.message, *given], tools=TOOLS)
            return whole, parts, after

    whole, parts, after = asyncio.run(run())
    assert whole.message.content == "I look." == "".join(part.message.content or "" for part in parts)
    streamed = [one for part in parts for one in part.message.tool_calls or ()]
    for calls in (whole.message.tool_calls, streamed):
        assert [(one.function.name, dict(one.function.arguments)) for one in calls] == CALLS
    assert after.message.content == "Yes."
    said = agent.asked[-1].messages
    assert [one.role for one in said] == ["user", "assistant", "tool", "tool"]
    assert [(one.name, json.loads(one.arguments)) for one in said[1].calls] == CALLS


def test_the_raw_answer_is_still_there(agent: ScriptedAgent, serving: Serving) -> None:
    agent.always = [BOTH]
    got = by_openai(
        serving, lambda client: client.chat.completions.create(model="cutline", messages=ASKED, tools=TOOLS)
    )
    assert msgspec.convert(got.model_extra["cutline"], Answer) == BOTH


@pytest.mark.parametrize("tools", [True, False])
def test_whether_the_model_calls_tools_is_told(agent: ScriptedAgent, serving: Serving, tools: bool) -> None:
    """As clients of each API look it up."""
    agent.now = msgspec.structs.replace(agent.now, tools=tools)

    async def run() -> list[Any]:
        async with serving() as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
            models = (await client.get("/v1/models")).json()
            props = (await client.get("/props")).json()
            shown = (await client.post("/api/show", json={"model": "cutline"})).json()
            return [models["data"][0]["capabilities"], shown["capabilities"], props["chat_template_caps"]]

    able = ["completion", "vision", *(["tools"] if tools else [])]
    assert asyncio.run(run()) == [able, able, {"supports_tools": tools}]
