"""Ollama's own client against the agent: what it reads is what was answered."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import ollama
import pytest

from cutline.core.conversation import ImagePart, Message, TextPart
from cutline.core.request import MAX_IMAGES, Mode
from cutline.core.sampling import Sampling
from cutline.demo.bundles import DRAFTER
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.agent import Agent
from cutline.edge.api.access.limits import HttpLimits
from cutline.edge.api.app import application
from cutline.edge.generation.events import Planned
from cutline.edge.generation.result import Answer, Decision, Gated
from cutline.errors import InputError, WorkerBusy, WorkerUnavailable
from cutline.models.bundle import Bundle
from cutline.protos.channel.token_file import Tokens, token_entry
from cutline.testing.agent import ScriptedAgent, spoken, told
from cutline.testing.raw_http import connect

Serving = Callable[..., AbstractAsyncContextManager[str]]

ONE, TWO = b"\xff\xd8 one", b"\x89PNG two"
STOP = 2  # a stop token of the demo's drafter
ASKED: list[Any] = [{"role": "user", "content": "What?"}]
PLANNED = Planned(mode=Mode.DRAFT, cut="image", wire=None)
# 12.5 ms in all, the first token after 3.25, of which 1.25 went before any model ran
ANSWER = msgspec.structs.replace(
    spoken("A", " card.", stop=STOP),
    parts_ms={"prepare": 1.0, "plan": 0.25, "link": 11.25},
    gate=Gated(group="one picture", calibrated=True, decision=Decision.KEPT, promised=0.02),
)


def sent(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


@pytest.fixture
def client(serving: Serving) -> Callable[..., AbstractAsyncContextManager[ollama.AsyncClient]]:
    @asynccontextmanager
    async def run(headers: dict[str, str] | None = None, **options: Any) -> AsyncIterator[ollama.AsyncClient]:
        async with serving(**options) as url, ollama.AsyncClient(url, headers=headers, trust_env=False) as one:
            yield one

    return run


Client = Callable[..., AbstractAsyncContextManager[ollama.AsyncClient]]


def test_a_conversation_with_images_in_several_turns(agent: ScriptedAgent, client: Client) -> None:
    agent.always = [ANSWER]

    async def run() -> ollama.ChatResponse:
        async with client() as one:
            messages: list[Any] = [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What is it?", "images": [ONE, TWO]},
                {"role": "assistant", "content": "Two cards."},
                ollama.Message(role="user", content="And now?", images=[ollama.Image(value=TWO)]),
            ]
            return await one.chat("cutline", messages)

    got = asyncio.run(run())
    assert got.message.role == "assistant"
    assert got.message.content == "A card."
    (asked,) = agent.asked
    assert asked.messages == (
        Message("system", (TextPart("Be brief."),)),
        Message("user", (ImagePart(), ImagePart(), TextPart("What is it?"))),
        Message("assistant", (TextPart("Two cards."),)),
        Message("user", (ImagePart(), TextPart("And now?"))),
    )
    assert asked.images == (ONE, TWO, TWO)
    assert asked.sampling == Sampling(), "greedy, as everywhere where nothing is asked"
    assert asked.max_tokens is None, "to the end of the context"
    assert asked.mode is Mode.AUTO


@pytest.mark.parametrize(
    ("words", "images", "parts", "order"),
    [
        ("Both?\n[img]\nthen\n[img]", [ONE, TWO], ["Both?\n", "", "\nthen\n", ""], [ONE, TWO]),
        ("[img] or [img]?", [ONE, TWO], ["", " or ", "", "?"], [ONE, TWO]),
        ("Here: [img]", [ONE, TWO], ["", "Here: ", ""], [TWO, ONE]),
        ("[img][img]", [ONE], ["", "[img]"], [ONE]),
        ("Is [img] one?", [], ["Is [img] one?"], []),
    ],
)
def test_images_stand_where_the_words_say(
    agent: ScriptedAgent, client: Client, words: str, images: list[bytes], parts: list[str], order: list[bytes]
) -> None:
    """An image at each marker, as Ollama has it; those without one before the words."""
    agent.always = [ANSWER]

    async def run() -> None:
        async with client() as one:
            await one.chat("cutline", [{"role": "user", "content": words, "images": images}])

    asyncio.run(run())
    (message,) = agent.asked[0].messages
    assert message.parts == tuple(TextPart(one) if one else ImagePart() for one in parts)
    assert list(agent.asked[0].images) == order


def test_what_a_chat_says_of_the_system_is_its_first_turn(agent: ScriptedAgent, serving: Serving) -> None:
    agent.always = [ANSWER]

    async def run() -> list[int]:
        async with serving() as url, httpx.AsyncClient(base_url=url, trust_env=False) as one:
            asked = {"system": "Be brief.", "stream": False}
            return [
                (await one.post("/api/chat", json=asked | {"messages": ASKED})).status_code,
                (await one.post("/api/chat", json=asked)).status_code,
            ]

    assert asyncio.run(run()) == [200, 200]
    (asked,) = agent.asked  # without messages the model is loaded, and nothing asked
    assert asked.messages == (Message("system", (TextPart("Be brief."),)), Message("user", (TextPart("What?"),)))


def test_what_an_answer_took_is_told(agent: ScriptedAgent, client: Client) -> None:
    agent.always = [ANSWER]

    async def run() -> ollama.GenerateResponse:
        async with client() as one:
            return await one.generate("cutline", "What?")

    got = asyncio.run(run())
    assert (got.model, got.response, got.done, got.done_reason) == ("cutline", "A card.", True, "stop")
    assert (got.total_duration, got.load_duration) == (12_500_000, 1_250_000)
    assert (got.prompt_eval_duration, got.eval_duration) == (2_000_000, 9_250_000)
    assert (got.prompt_eval_count, got.eval_count) == (40, 3)
    assert got.created_at is not None
    assert abs((datetime.now(UTC) - datetime.fromisoformat(got.created_at)).total_seconds()) < 600


def test_an_answer_cut_short_says_so(agent: ScriptedAgent, client: Client) -> None:
    agent.always = [spoken("A", " card")]

    async def run() -> ollama.ChatResponse:
        async with client() as one:
            return await one.chat("cutline", ASKED, options={"num_predict": 2})

    assert asyncio.run(run()).done_reason == "length"
    assert agent.asked[0].max_tokens == 2


@pytest.mark.parametrize("each", [1, 2])
def test_streams_joined_are_the_answer(agent: ScriptedAgent, client: Client, each: int) -> None:
    answer = msgspec.structs.replace(spoken(" A", " ", "card", ". ", stop=STOP), parts_ms={"prepare": 1.0})
    agent.always = told(answer, each=each)

    async def run() -> tuple[list[ollama.ChatResponse], list[ollama.GenerateResponse]]:
        async with client() as one:
            chat = [part async for part in await one.chat("cutline", ASKED, stream=True)]
            prompt = [part async for part in await one.generate("cutline", "What?", stream=True)]
            return chat, prompt

    chat, prompt = asyncio.run(run())
    assert "".join(part.message.content or "" for part in chat) == "A card."
    assert "".join(part.response or "" for part in prompt) == "A card."
    for parts in (chat, prompt):
        assert len(parts) > 2
        assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
        assert parts[-1].done_reason == "stop"
        assert parts[-1].eval_count == 5
        assert [part.total_duration for part in parts] == [None] * (len(parts) - 1) + [12_500_000]


@pytest.mark.parametrize("path", ["chat", "generate"])
@pytest.mark.parametrize("stream", [True, False])
def test_the_account_goes_along(agent: ScriptedAgent, serving: Serving, path: str, stream: bool) -> None:
    agent.always = told(ANSWER)
    asked = {"messages": ASKED} if path == "chat" else {"prompt": "What?"}

    async def run() -> httpx.Response:
        async with serving() as url, httpx.AsyncClient(base_url=url, trust_env=False) as one:
            return await one.post(f"/api/{path}", json=asked | {"stream": stream})

    got = asyncio.run(run())
    lines = [json.loads(line) for line in got.text.splitlines()]
    assert got.headers["content-type"] == ("application/x-ndjson" if stream else "application/json")
    assert msgspec.convert(lines[-1]["cutline"], Answer) == ANSWER
    assert lines[-1]["cutline"]["gate"]["promised"] == 0.02
    assert not any("cutline" in line for line in lines[:-1])


def test_the_client_that_blocks(agent: ScriptedAgent, client: Client, tmp_path: Path) -> None:
    """As most scripts use it: a path for a picture, and a system's words."""
    agent.always = told(ANSWER)
    picture = tmp_path / "card.png"
    picture.write_bytes(ONE)

    async def run() -> tuple[str | None, list[str | None]]:
        async with client() as one:
            url = str(one._client.base_url)

            def ask() -> tuple[str | None, list[str | None]]:
                with ollama.Client(url, trust_env=False) as blocking:
                    whole = blocking.generate("cutline", "What?", system="Be brief.", images=[str(picture)])
                    parts = blocking.chat("cutline", ASKED, stream=True)
                    return whole.response, [part.message.content for part in parts]

            return await asyncio.to_thread(ask)

    whole, parts = asyncio.run(run())
    assert whole == "".join(part or "" for part in parts) == "A card."
    assert agent.asked[0].images == (ONE,)
    assert agent.asked[0].messages == (
        Message("system", (TextPart("Be brief."),)),
        Message("user", (ImagePart(), TextPart("What?"))),
    )


def test_options_choose_tokens(agent: ScriptedAgent, client: Client) -> None:
    agent.always = [ANSWER]
    options = {
        "temperature": 0.5,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.05,
        "seed": 7,
        "num_predict": 17,
        "num_ctx": 8192,
        "stop": ["\n", "."],
        "repeat_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "num_thread": 4,
        "num_gpu": 0,
        "use_mmap": True,
        "mirostat": 0,
    }

    async def run() -> None:
        async with client() as one:
            await one.chat("cutline", ASKED, options=options, keep_alive="5m", think=False, tools=[], format="")
            await one.chat("cutline", ASKED, options=ollama.Options(temperature=0.0, num_predict=-1), keep_alive=-1)
            for _ in range(2):
                await one.chat("cutline", ASKED, options={"temperature": 0.8})

    asyncio.run(run())
    chosen, plain, *drawn = agent.asked
    assert chosen.sampling == Sampling(
        temperature=0.5,
        top_k=20,
        top_p=0.9,
        min_p=0.05,
        seed=7,
        repetition_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
    )
    assert (chosen.max_tokens, chosen.stop) == (17, ("\n", "."))
    assert (plain.sampling, plain.max_tokens) == (Sampling(), None)
    assert [one.sampling.temperature for one in drawn] == [0.8, 0.8]
    assert [(one.sampling.top_k, one.sampling.top_p) for one in drawn] == [(0, 1.0)] * 2, "what is not sent is not done"
    assert drawn[0].sampling.seed != drawn[1].sampling.seed


def test_what_frigate_sends(agent: ScriptedAgent, client: Client) -> None:
    """It looks the model up, and asks about thumbnails with options of its own."""
    agent.always = [ANSWER]

    async def run() -> tuple[Any, str | None]:
        async with client() as one:
            shown = await one.show(agent.manifest.name)
            options = {"temperature": 0.5, "repeat_penalty": 1.05, "presence_penalty": 0.3}
            said = await one.generate(agent.manifest.name, "Describe it.", images=[ONE, TWO], options=options)
            return shown.get("error"), said["response"]

    assert asyncio.run(run()) == (None, "A card.")
    assert agent.asked[0].images == (ONE, TWO)
    assert agent.asked[0].sampling.repetition_penalty == 1.05


@pytest.mark.parametrize("think", [None, False])
def test_what_home_assistant_sends(agent: ScriptedAgent, client: Client, think: bool | None, tmp_path: Path) -> None:
    """It streams whole conversations, pictures by their paths."""
    agent.always = told(ANSWER)
    picture = tmp_path / "snapshot.jpg"
    picture.write_bytes(ONE)

    async def run() -> str:
        async with client() as one:
            (model,) = (await one.list()).models
            messages = [
                ollama.Message(role="system", content="You are the house."),
                ollama.Message(role="user", content="Who is there?", images=[ollama.Image(value=picture)]),
                ollama.Message(role="assistant", content="Nobody.", thinking=None, tool_calls=None),
                ollama.Message(role="user", content="And now?", images=None),
            ]
            options = {"num_ctx": 8192}
            parts = await one.chat(
                model.model or "",
                messages,
                tools=None,
                stream=True,
                keep_alive="300s",
                options=options,
                think=think,
                format=None,
            )
            return "".join([part["message"].get("content") or "" async for part in parts])

    assert asyncio.run(run()) == "A card."
    assert [message.role for message in agent.asked[0].messages] == ["system", "user", "assistant", "user"]
    assert agent.asked[0].images == (ONE,)


def test_cutlines_own_words_are_taken(agent: ScriptedAgent, serving: Serving) -> None:
    agent.always = [ANSWER]

    async def run() -> int:
        async with serving() as url, httpx.AsyncClient(base_url=url, trust_env=False) as one:
            asked = {"prompt": "What?", "stream": False, "cutline": {"mode": "cloud", "timeout": 5}}
            return (await one.post("/api/generate", json=asked)).status_code

    assert asyncio.run(run()) == 200
    assert (agent.asked[0].mode, agent.asked[0].timeout) == (Mode.CLOUD, 5.0)


@pytest.mark.parametrize(
    ("path", "more", "named"),
    [
        ("chat", {"think": True}, "think"),
        ("chat", {"think": "high"}, "think"),
        ("chat", {"logprobs": True}, "logprobs"),
        ("generate", {"raw": True}, "raw"),
        ("generate", {"template": "{{ .Prompt }}"}, "template"),
        ("generate", {"suffix": "end"}, "suffix"),
        ("generate", {"context": [1, 2]}, "context"),
        ("chat", {"options": {"mirostat": 2}}, "options.mirostat"),
        ("chat", {"options": {"repeat_last_n": 64}}, "options.repeat_last_n"),
        ("chat", {"messages": [*ASKED, {"role": "assistant", "thinking": "Hm."}, *ASKED]}, "messages[1].thinking"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    agent: ScriptedAgent, path: str, more: dict[str, Any], named: str
) -> None:
    asked = {"messages": ASKED} if path == "chat" else {"prompt": "What?"}
    status, error = refusal(agent, f"/api/{path}", asked | more)
    assert status == 400
    assert error == f"the request has what is not served here: {named}; leave these out"
    assert agent.asked == []


def refusal(agent: ScriptedAgent, path: str, asked: object) -> tuple[int, str]:
    """The status and the error that come back; over no socket, which might break before all was sent."""

    async def run() -> tuple[int, str]:
        transport = httpx.ASGITransport(application(agent))
        async with httpx.AsyncClient(transport=transport, base_url="http://agent") as one:
            body = asked if isinstance(asked, bytes) else msgspec.json.encode(asked)
            got = await one.post(path, content=body, headers={"content-type": "application/json"})
            error = got.json()["error"]
            assert isinstance(error, str), "Ollama's clients read a text"
            assert "\n" not in error
            return got.status_code, error

    return asyncio.run(run())


def pictured(*images: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "What?", "images": list(images)}]}


@pytest.mark.threat("late")
@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        (b"{", 400, "does not read"),
        (b"[]", 400, "does not read"),
        ({"messages": [{"role": "teller", "content": "7"}]}, 400, "'teller'"),
        ({"messages": ASKED, "options": {"temperature": "hot"}}, 400, "temperature"),
        ({"messages": ASKED, "options": {"temperature": 0.001}}, 400, "temperature"),
        ({"messages": ASKED, "options": {"top_p": 2}}, 400, "top_p"),
        ({"messages": ASKED, "options": {"num_predict": -3}}, 400, "num_predict"),
        ({"messages": ASKED, "optoins": {}}, 400, "unknown fields: optoins"),
        ({"messages": ASKED, "options": {"tempreature": 1}}, 400, "unknown fields: options.tempreature"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "7"}]}, 400, "end with one of the user's"),
        ({"messages": [{"role": "system", "content": "x", "images": [sent(ONE)]}, *ASKED]}, 400, "only the user's may"),
        (pictured("no base64 at all!"), 400, "not base64"),
        (pictured(sent(ONE), sent(TWO)[:-1]), 400, "not base64"),
        (pictured("data:image/png;base64," + sent(ONE)), 400, "not base64"),
        (pictured("received:7"), 400, "base64"),
        (pictured(*[sent(ONE)] * (MAX_IMAGES + 1)), 400, f"{MAX_IMAGES} at most"),
        (pictured("A" * (44 << 20)), 413, "32 MiB together"),
        (pictured(*["A" * (4 << 20)] * 12), 413, "MiB"),
        ({"messages": [{"role": "user", "content": "word " * (1 << 19)}]}, 413, "1 MiB beside its images"),
        ({"messages": [{"role": "user", "content": "x"}] * 1001}, 400, "1000 at most"),
        ({"model": "llama3", "messages": ASKED}, 404, "this agent has one model"),
        ({"model": "llama3"}, 404, "this agent has one model"),
    ],
    ids=lambda one: repr(one)[:60],
)
def test_what_is_wrong_is_one_clear_line(agent: ScriptedAgent, asked: object, status: int, said: str) -> None:
    found, error = refusal(agent, "/api/chat", asked)
    assert (found, said in error) == (status, True), error
    assert agent.asked == []


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("the prompt is too long"), 400),
        (WorkerUnavailable("no worker answers"), 503),
        (WorkerBusy("no"), 429),
    ],
)
def test_what_the_agent_raises_has_its_status(
    agent: ScriptedAgent, client: Client, error: Exception, status: int, stream: bool
) -> None:
    agent.always = [error]

    async def run() -> None:
        async with client() as one:
            if stream:
                await anext(aiter(await one.chat("cutline", ASKED, stream=True)))
            else:
                await one.chat("cutline", ASKED)

    with pytest.raises(ollama.ResponseError) as raised:
        asyncio.run(run())
    assert (raised.value.error, raised.value.status_code) == (str(error), status)


def test_a_stream_that_fails_says_so_in_its_last_line(agent: ScriptedAgent, client: Client) -> None:
    agent.always = [*told(ANSWER)[:2], WorkerUnavailable("the worker was lost")]

    async def run() -> None:
        async with client() as one:
            parts = aiter(await one.chat("cutline", ASKED, stream=True))
            assert (await anext(parts)).message.content == "A"
            with pytest.raises(ollama.ResponseError, match="the worker was lost"):
                await anext(parts)

    asyncio.run(run())


def test_a_dropped_stream_takes_its_answer_along(agent: ScriptedAgent, serving: Serving) -> None:
    agent.always = [*told(ANSWER)[:2], math.inf]

    async def run() -> None:
        async with serving() as url:
            reader, writer = await connect(url)
            body = msgspec.json.encode({"messages": ASKED})
            head = f"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            while b'"done"' not in await reader.readline():
                pass
            writer.transport.abort()
            await asyncio.wait_for(agent.reaches(given_up=1), 60)

    asyncio.run(run())


def test_silence_is_filled_with_parts_without_words(agent: ScriptedAgent, client: Client) -> None:
    agent.always = [PLANNED, 0.3, *told(ANSWER)[1:]]

    async def run() -> list[str | None]:
        async with client(http=HttpLimits(silence_seconds=0.05)) as one:
            return [part.message.content async for part in await one.chat("cutline", ASKED, stream=True)]

    said = asyncio.run(run())
    assert said.count("") >= 3  # two of them before the last
    assert "".join(part or "" for part in said) == "A card."


@pytest.mark.parametrize("name", ["{}", "{}:latest", "cutline", "cutline:latest"])
def test_the_model_has_names(agent: ScriptedAgent, client: Client, name: str) -> None:
    agent.always = [ANSWER]
    name = name.format(agent.manifest.name)

    async def run() -> None:
        async with client() as one:
            assert (await one.chat(name, ASKED)).model == name
            assert (await one.show(name)).details is not None
            assert (await one.pull(name)).status == "success"
            assert [part.status async for part in await one.pull(name, stream=True)] == ["success"]

    asyncio.run(run())


def test_another_model_is_not_there(client: Client) -> None:
    async def run() -> list[int]:
        found = []
        async with client() as one:
            for call in (one.show("llama3"), one.pull("llama3"), one.chat("llama3", ASKED), one.generate("llama3")):
                with pytest.raises(
                    ollama.ResponseError, match="this agent has one model, digit-cards-drafter"
                ) as error:
                    await call
                found.append(error.value.status_code)
        return found

    assert asyncio.run(run()) == [404] * 4


def test_the_model_is_listed_and_shown(agent: ScriptedAgent, client: Client) -> None:
    manifest = agent.manifest

    async def run() -> tuple[ollama.ListResponse, ollama.ShowResponse, ollama.ProcessResponse]:
        async with client() as one:
            return await one.list(), await one.show("cutline"), await one.ps()

    listed, shown, running = asyncio.run(run())
    (model,), (loaded,) = listed.models, running.models
    assert model.model == loaded.model == f"{manifest.name}:latest"
    assert model.digest == loaded.digest == manifest.identity
    assert model.size == loaded.size == sum(manifest.parameters), "a byte each in int8"
    assert model.details is not None
    assert model.details.family == "smolvlm"
    assert model.details.parameter_size == "238K"
    assert model.details.quantization_level == manifest.precision
    assert loaded.size_vram == 0
    assert loaded.context_length == manifest.decoder.context
    assert loaded.expires_at is not None
    assert loaded.expires_at > datetime.now(UTC)
    assert shown.capabilities == ["completion", "vision"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "smolvlm"
    assert shown.modelinfo["smolvlm.context_length"] == manifest.decoder.context


def test_who_asks_nothing_has_the_model_loaded(agent: ScriptedAgent, client: Client) -> None:
    async def run() -> tuple[ollama.ChatResponse, ollama.GenerateResponse]:
        async with client() as one:
            return await one.chat("cutline"), await one.generate("cutline", keep_alive="1h")

    for got in asyncio.run(run()):
        assert (got.done, got.done_reason) == (True, "load")
    assert agent.asked == []


def test_what_no_agent_does_is_refused_by_name(client: Client) -> None:
    async def run() -> None:
        async with client() as one:
            for call, said in (
                (one.delete("cutline"), "keeps it"),
                (one.copy("cutline", "other"), "no copies"),
                (one.push("cutline"), "to nobody"),
                (one.create("other", from_="cutline"), "makes no models"),
            ):
                with pytest.raises(ollama.ResponseError, match=said) as error:
                    await call
                assert error.value.status_code == 400

    asyncio.run(run())


def test_it_says_that_it_runs(serving: Serving) -> None:
    async def run() -> None:
        async with serving() as url, httpx.AsyncClient(base_url=url, trust_env=False) as one:
            assert (await one.get("/")).text == "Ollama is running"
            head = await one.head("/")
            assert (head.status_code, head.text) == (200, "")
            page = await one.get("/", headers={"accept": "text/html,*/*;q=0.8"})
            assert page.headers["content-type"].startswith("text/html")
            found = (await one.get("/api/version")).json()["version"]
            assert all(part.isdecimal() for part in found.split(".")[:2])

    asyncio.run(run())


def test_it_is_counted_named_and_logged(agent: ScriptedAgent, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    agent.enqueue(ANSWER)
    agent.enqueue(*told(ANSWER))
    agent.enqueue(WorkerBusy("no room"))

    async def run() -> str:
        async with client(headers={"x-request-id": "mine"}) as one:
            await one.chat("cutline", ASKED)
            _ = [part async for part in await one.generate("cutline", "What?", stream=True)]
            with pytest.raises(ollama.ResponseError, match="no room"):
                await one.chat("cutline", ASKED)
            return str((await one._client.get("/metrics")).text)

    with caplog.at_level(logging.INFO, logger="cutline.edge.api.request_log"):
        counts = asyncio.run(run())
    assert 'cutline_agent_requests_total{mode="draft",status="200"} 2.0' in counts
    assert 'cutline_agent_requests_total{mode="auto",status="429"} 1.0' in counts
    assert "cutline_agent_requests_in_work 0.0" in counts
    assert [one.request_id for one in agent.asked] == ["mine"] * 3
    lines: list[Any] = [getattr(record, "fields", None) for record in caplog.records]
    assert [(one["path"], one["status"]) for one in lines] == [
        ("/api/chat", 200),
        ("/api/generate", 200),
        ("/api/chat", 429),
    ]
    assert [one.get("promised") for one in lines] == [0.02, 0.02, None]


@pytest.mark.threat("doors")
def test_it_wants_the_same_token(agent: ScriptedAgent, client: Client, tmp_path: Path) -> None:
    agent.always = [ANSWER]
    file, token = tmp_path / "tokens.toml", "a-token"
    file.write_text(token_entry("ann", token))

    async def run() -> None:
        async with client(tokens=Tokens(file)) as one:
            with pytest.raises(ollama.ResponseError, match="wants a token") as error:
                await one.chat("cutline", ASKED)
            assert error.value.status_code == 401
            with pytest.raises(ollama.ResponseError, match="wants a token"):
                await one.list()
            url, headers = str(one._client.base_url), {"authorization": f"Bearer {token}"}
            async with ollama.AsyncClient(url, headers=headers, trust_env=False) as known:
                assert (await known.chat("cutline", ASKED)).message.content == "A card."

    asyncio.run(run())
    assert [one.tenant for one in agent.asked] == ["ann"]


def test_the_demos_drafter_answers_both_apis_alike() -> None:
    """A real picture, a real model: Ollama's clients get what OpenAI's do."""
    request = next(requests(Split.EVALUATION, 1, seed=4))
    words, picture = request.question.text, sent(request.image)
    how = {"cutline": {"mode": "edge"}, "stream": False}

    async def run() -> list[Any]:
        async with Agent(Bundle.open(DRAFTER), worker=None, threads=1) as agent:
            transport = httpx.ASGITransport(application(agent))
            async with httpx.AsyncClient(transport=transport, base_url="http://agent") as one:
                content = [
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
                    {"type": "text", "text": words},
                ]
                asked = {"messages": [{"role": "user", "content": content}], "max_tokens": 512}
                openai = (await one.post("/v1/chat/completions", json=asked | how)).json()
                turn = {"role": "user", "content": words, "images": [picture]}
                chat = (await one.post("/api/chat", json={"messages": [turn]} | how)).json()
                prompt = (await one.post("/api/generate", json={"prompt": words, "images": [picture]} | how)).json()
                return [openai, chat, prompt]

    openai, chat, prompt = asyncio.run(run())
    text = openai["choices"][0]["message"]["content"]
    assert text
    assert chat["message"]["content"] == prompt["response"] == text
    for got in (chat, prompt):
        assert got["prompt_eval_count"] == openai["usage"]["prompt_tokens"]
        assert got["eval_count"] == openai["usage"]["completion_tokens"]
        spent = got["load_duration"] + got["prompt_eval_duration"] + got["eval_duration"]
        assert abs(spent - got["total_duration"]) <= 2, "but for rounding"
        assert got["prompt_eval_duration"] > 0
