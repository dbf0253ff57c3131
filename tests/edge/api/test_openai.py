"""OpenAI's own client against the agent: what it reads is what was answered."""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgspec
import openai
import pytest

from cutline.core.conversation import ImagePart, Message, TextPart
from cutline.core.request import Mode
from cutline.edge.generation.events import Corrected, Event, Guessed, Planned, Settled
from cutline.edge.generation.result import Answer, Lost, Provenance, Token
from cutline.errors import BundleError, ImageError, InputError, WorkerBusy, WorkerUnavailable
from cutline.testing.agent import ScriptedAgent, spoken, told

Serving = Callable[..., AbstractAsyncContextManager[str]]

ONE, TWO = b"\xff\xd8 one", b"\x89PNG two"
STOP = 2  # a stop token of the demo's drafter


def part(image: bytes) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(image).decode()
    return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


ASKED: list[Any] = [{"role": "user", "content": [part(ONE), words("What?")]}]


@pytest.fixture
def client(serving: Serving) -> Callable[..., AbstractAsyncContextManager[openai.AsyncOpenAI]]:
    @asynccontextmanager
    async def run(**options: Any) -> AsyncIterator[openai.AsyncOpenAI]:
        async with (
            serving(**options) as url,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as one,
        ):
            yield one

    return run


Client = Callable[..., AbstractAsyncContextManager[openai.AsyncOpenAI]]


def test_the_demo_drafter_stops_at_the_token_used_here(agent: ScriptedAgent) -> None:
    assert STOP in agent.manifest.stop_tokens


def test_a_conversation_with_images_in_several_turns(agent: ScriptedAgent, client: Client) -> None:
    agent.enqueue(spoken("A ", "card.", stop=STOP))
    agent.enqueue(spoken("Two", " cards"))

    async def run() -> None:
        async with client() as one:
            messages: list[Any] = [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [words("First: "), part(ONE), words("What is it?")]},
            ]
            first = await one.chat.completions.create(model="cutline", messages=messages)
            messages += [first.choices[0].message, {"role": "user", "content": [part(TWO), part(ONE), words("Now?")]}]
            second = await one.chat.completions.create(
                model=agent.manifest.name,
                messages=messages,
                max_completion_tokens=17,
                temperature=0.5,
                top_p=0.9,
                seed=7,
                stop=["\n", "."],
                n=1,
                user="me",
                presence_penalty=0,
                extra_body={"cutline": {"mode": "draft", "effort": 0.5, "top_k": 3}},
            )
        assert first.choices[0].message.content == "A card."
        assert (first.choices[0].finish_reason, second.choices[0].finish_reason) == ("stop", "length")
        assert first.choices[0].logprobs is None
        assert first.model == agent.manifest.name
        assert first.system_fingerprint is not None
        assert first.usage is not None
        usage = first.usage
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (40, 3, 43)
        assert usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens == 8
        answered = msgspec.convert(first.model_extra["cutline"] if first.model_extra else {}, Answer)
        assert answered == spoken("A ", "card.", stop=STOP)

    asyncio.run(run())
    asked = agent.asked[1]
    assert asked.images == (ONE, TWO, ONE)
    assert asked.messages == (
        Message("system", (TextPart("Be brief."),)),
        Message("user", (TextPart("First: "), ImagePart("high"), TextPart("What is it?"))),
        Message("assistant", (TextPart("A card."),)),
        Message("user", (ImagePart("high"), ImagePart("high"), TextPart("Now?"))),
    )
    assert (asked.mode, asked.effort, asked.max_tokens, asked.stop) == (Mode.DRAFT, 0.5, 17, ("\n", "."))
    sampling = asked.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.5, 0.9, 3, 7)


def test_how_likely_each_token_was(agent: ScriptedAgent, client: Client) -> None:
    answer = spoken("Ünï ", "🙂", stop=STOP, logprob=-0.25)
    agent.enqueue(answer)
    agent.enqueue(*told(answer))

    async def run() -> tuple[Any, list[Any]]:
        async with client() as one:
            whole = await one.chat.completions.create(model="cutline", messages=ASKED, logprobs=True, top_logprobs=1)
            stream = await one.chat.completions.create(
                model="cutline", messages=ASKED, logprobs=True, top_logprobs=1, stream=True
            )
            return whole, [chunk async for chunk in stream]

    whole, chunks = asyncio.run(run())
    content = whole.choices[0].logprobs.content
    assert [one.token for one in content] == ["Ünï ", "🙂"], "the token that ends it is none of its words"
    assert bytes(content[0].bytes + content[1].bytes).decode() == "Ünï 🙂"
    assert [one.logprob for one in content] == [-0.25, -0.25]
    (other,) = content[1].top_logprobs
    assert (other.token, other.logprob, bytes(other.bytes)) == ("seven", -1.25, b"seven")
    streamed = [
        one for chunk in chunks for choice in chunk.choices if choice.logprobs for one in choice.logprobs.content
    ]
    assert streamed == content
    assert agent.asked[0].logprobs == 1


@pytest.mark.parametrize(
    "text", [("A", " card", "."), ("  A", " ", " card ", "\n"), ("\n", " "), (), ("a",), ("é ", "\u2003")]
)
@pytest.mark.parametrize("each", [1, 2])
def test_the_deltas_are_the_answer(agent: ScriptedAgent, client: Client, text: tuple[str, ...], each: int) -> None:
    answer = spoken(*text, stop=STOP)
    agent.enqueue(answer)
    agent.enqueue(*told(answer, each=each))

    async def run() -> tuple[Any, list[Any]]:
        async with client() as one:
            whole = await one.chat.completions.create(model="cutline", messages=ASKED)
            options: Any = {"include_usage": True}
            stream = await one.chat.completions.create(
                model="cutline", messages=ASKED, stream=True, stream_options=options
            )
            return whole, [chunk async for chunk in stream]

    whole, chunks = asyncio.run(run())
    said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert said == whole.choices[0].message.content == answer.text
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    *others, finish, last = chunks
    assert [choice.finish_reason for chunk in others for choice in chunk.choices] == [None] * len(others)
    assert finish.choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert msgspec.convert(last.cutline["answer"], Answer) == answer


EVENTS: list[Event] = [
    Planned(mode=Mode.DRAFT, cut="image", wire=None, predicted_ms=80.0, why="It is quickest"),
    Guessed(0, "A cord"),
    Settled(0, (Token(100, "A", Provenance.CLOUD),)),
    Lost(worker="w:1", why="silent", position=1, silent_ms=900.0, next=None),
    Settled(1, (Token(101, " cord", Provenance.EDGE),)),
    Corrected(1, (Token(101, " card", Provenance.CLOUD), Token(STOP, "", Provenance.CLOUD))),
    spoken("A", " card", stop=STOP),
]
NAMES = ["planned", "guessed", "settled", "lost", "settled", None, "corrected", "answer"]


@pytest.mark.parametrize("guesses", [False, True])
@pytest.mark.parametrize("usage", [False, True])
def test_all_that_happens_is_told(agent: ScriptedAgent, client: Client, guesses: bool, usage: bool) -> None:
    agent.enqueue(*EVENTS)

    async def run() -> list[Any]:
        async with client() as one:
            options: Any = {"include_usage": usage}
            stream = await one.chat.completions.create(
                model="cutline",
                messages=ASKED,
                stream=True,
                stream_options=options,
                extra_body={"cutline": {"guesses": guesses, "correct_seconds": 2.0}},
            )
            return [chunk.model_dump(exclude_unset=True) async for chunk in stream]

    chunks = asyncio.run(run())
    events = [chunk.get("cutline") for chunk in chunks]
    assert [None if one is None else next(iter(one)) for one in events] == [
        name for name in NAMES if guesses or name != "guessed"
    ]
    told_of = [event for event in EVENTS if guesses or not isinstance(event, Guessed)]
    for event, was in zip([one for one in events if one], told_of, strict=True):
        ((_, said),) = event.items()
        assert msgspec.convert(said, type(was)) == was
    # The end is told before the correction, which no client must wait for or know of.
    place = [index for index, chunk in enumerate(chunks) if chunk["choices"] and chunk["choices"][0]["finish_reason"]]
    assert place[0] == next(index for index, one in enumerate(events) if one is None)
    said = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert said == "A cord", "what was settled at first"
    assert agent.asked[0].correct_seconds == 2.0


def test_an_end_by_the_limit_before_a_correction(agent: ScriptedAgent, client: Client) -> None:
    settled = Settled(0, (Token(100, "A", Provenance.CLOUD), Token(101, "b", Provenance.EDGE)))
    agent.enqueue(settled, Corrected(1, (Token(102, "c", Provenance.CLOUD),)), spoken("A", "c"))

    async def run() -> list[Any]:
        async with client() as one:
            stream = await one.chat.completions.create(model="cutline", messages=ASKED, stream=True, max_tokens=2)
            return [choice.finish_reason async for chunk in stream for choice in chunk.choices]

    assert asyncio.run(run()) == [None, "length", "length", "length"]


@pytest.mark.parametrize(
    ("error", "raised", "retry"),
    [
        (ImageError("no image"), openai.BadRequestError, None),
        (InputError("no plan"), openai.BadRequestError, None),
        (WorkerBusy("no room", retry_seconds=2.3), openai.RateLimitError, "3"),
        (WorkerBusy("no room"), openai.RateLimitError, "1"),
        (WorkerUnavailable("nobody there"), openai.InternalServerError, None),
        (BundleError("broken"), openai.InternalServerError, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_raised(
    agent: ScriptedAgent,
    client: Client,
    stream: bool,
    error: Exception,
    raised: type[openai.APIStatusError],
    retry: str | None,
) -> None:
    agent.enqueue(error)

    async def run() -> None:
        async with client() as one:
            await one.chat.completions.create(model="cutline", messages=ASKED, stream=stream)

    with pytest.raises(raised) as found:
        asyncio.run(run())
    body: Any = found.value.body
    assert body == {"message": str(error), "type": type(error).__name__, "param": None, "code": None}
    assert found.value.response.headers.get("retry-after") == retry


def test_a_failure_in_the_middle_of_a_stream(agent: ScriptedAgent, client: Client) -> None:
    answer = spoken("A", " card")
    for error in (WorkerUnavailable("the link broke"), RuntimeError("secret")):
        agent.enqueue(*told(answer)[:-1], error)
    found: list[str] = []
    said: list[str] = []

    async def run() -> None:
        async with client() as one:
            for _ in range(2):
                stream = await one.chat.completions.create(model="cutline", messages=ASKED, stream=True)
                try:
                    said.extend([chunk.choices[0].delta.content or "" async for chunk in stream])
                except openai.APIError as error:
                    found.append(f"{error.type}: {error.message}")

    asyncio.run(run())
    assert found[0] == "WorkerUnavailable: the link broke"
    assert found[1].startswith("CutlineError: ")
    assert "secret" not in found[1]


def test_no_more_than_so_many_at_once(agent: ScriptedAgent, client: Client) -> None:
    agent.always = [math.inf]

    async def run() -> None:
        async with client(most=lambda: 2) as one:

            def ask() -> asyncio.Task[Any]:
                return asyncio.create_task(one.chat.completions.create(model="cutline", messages=ASKED, timeout=20))

            first, second = ask(), ask()
            await agent.reaches(asked=2)
            with pytest.raises(openai.RateLimitError) as refused:
                await ask()
            assert refused.value.response.headers["retry-after"] == "1"
            assert refused.value.code == "rate_limit_exceeded"
            first.cancel()
            await asyncio.wait([first])
            await agent.reaches(given_up=1)
            agent.always = [spoken("free")]
            freed = await ask()
            assert freed.choices[0].message.content == "free"
            second.cancel()
            await asyncio.wait([second])

    asyncio.run(run())


def test_the_models(agent: ScriptedAgent, client: Client) -> None:
    async def run() -> None:
        async with client() as one:
            (model,) = [model async for model in one.models.list()]
            assert model.id == agent.manifest.name
            assert (await one.models.retrieve("cutline")).id == model.id
            extra = model.model_extra or {}
            assert extra["cutline"]["modes"] == ["edge", "auto"]
            assert extra["cutline"]["drafter"] == agent.manifest.name
            with pytest.raises(openai.NotFoundError):
                await one.models.retrieve("gpt-4o")
            with pytest.raises(openai.NotFoundError) as found:
                await one.chat.completions.create(model="gpt-4o", messages=ASKED)
            assert found.value.code == "model_not_found"

    asyncio.run(run())
