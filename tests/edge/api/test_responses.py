"""OpenAI's own client asks for responses: what it reads is what was answered, and a question may go on from one."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgspec
import openai
import pytest

from cutline.core.conversation import ImagePart, Message, TextPart
from cutline.core.request import Mode
from cutline.core.sampling import Sampling
from cutline.edge.api.responses import store as stores
from cutline.edge.api.responses.objects import ResponseObject
from cutline.edge.api.responses.store import KeptResponse, ResponseStore
from cutline.edge.generation.result import Answer
from cutline.errors import InputError, WorkerBusy, WorkerUnavailable
from cutline.protos.channel.token_file import Tokens, token_entry
from cutline.testing.agent import ScriptedAgent, spoken, told

Serving = Callable[..., AbstractAsyncContextManager[str]]

ONE, TWO = b"\xff\xd8 one", b"\x89PNG two"
STOP = 2  # a stop token of the demo's drafter
ANSWER = spoken("A", " card.", stop=STOP)


def picture(image: bytes) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(image).decode()
    return {"type": "input_image", "image_url": url, "detail": "auto"}


def asking(*images: bytes, words: str = "What?") -> list[Any]:
    return [{"role": "user", "content": [*map(picture, images), {"type": "input_text", "text": words}]}]


@pytest.fixture
def client(serving: Serving) -> Callable[..., AbstractAsyncContextManager[openai.AsyncOpenAI]]:
    @asynccontextmanager
    async def run(key: str = "none", **options: Any) -> AsyncIterator[openai.AsyncOpenAI]:
        async with (
            serving(**options) as url,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as one,
        ):
            yield one

    return run


Client = Callable[..., AbstractAsyncContextManager[openai.AsyncOpenAI]]


def test_a_question_with_pictures_is_answered(agent: ScriptedAgent, client: Client) -> None:
    agent.always = [ANSWER]

    async def run() -> Any:
        async with client() as one:
            return await one.responses.create(
                model="cutline",
                input=asking(ONE, TWO),
                instructions="Be brief.",
                max_output_tokens=17,
                temperature=0.5,
                top_p=0.9,
                metadata={"run": "7"},
                text={"format": {"type": "text"}},
                tools=[],
                extra_body={"cutline": {"mode": "edge", "seed": 7, "top_k": 20}},
            )

    got = asyncio.run(run())
    assert (got.output_text, got.status, got.error, got.incomplete_details) == ("A card.", "completed", None, None)
    assert (got.id[:5], got.object, got.instructions, got.metadata) == ("resp_", "response", "Be brief.", {"run": "7"})
    assert (got.usage.input_tokens, got.usage.output_tokens, got.usage.total_tokens) == (40, 3, 43)
    assert got.usage.input_tokens_details.cached_tokens == 8
    assert (got.temperature, got.top_p, got.max_output_tokens) == (0.5, 0.9, 17)
    assert msgspec.convert(got.cutline, Answer) == ANSWER
    (asked,) = agent.asked
    assert asked.messages == (
        Message("system", (TextPart("Be brief."),)),
        Message("user", (ImagePart(), ImagePart(), TextPart("What?"))),
    )
    assert (asked.images, asked.max_tokens, asked.mode) == ((ONE, TWO), 17, Mode.EDGE)
    assert asked.sampling == Sampling(temperature=0.5, top_p=0.9, top_k=20, seed=7)


def test_words_alone_are_asked_greedily_to_the_end(agent: ScriptedAgent, client: Client) -> None:
    agent.always = [spoken("A", " card")]

    async def run() -> Any:
        async with client() as one:
            return await one.responses.create(model="cutline", input="What?")

    got = asyncio.run(run())
    assert (got.status, got.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    (asked,) = agent.asked
    assert asked.messages == (Message("user", (TextPart("What?"),)),)
    assert (asked.sampling, asked.max_tokens) == (Sampling(), None)


@pytest.mark.parametrize("complete", [True, False])
def test_events_tell_the_answer(agent: ScriptedAgent, client: Client, complete: bool) -> None:
    answer = spoken(" A", " ", "card", ". ", stop=STOP if complete else None)
    agent.always = told(answer)

    async def run() -> list[Any]:
        async with client() as one:
            stream = await one.responses.create(model="cutline", input=asking(ONE), stream=True)
            return [event async for event in stream]

    events = asyncio.run(run())
    last = "response.completed" if complete else "response.incomplete"
    kinds = [event.type for event in events]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        last,
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert len(deltas) > 1
    assert "".join(event.delta for event in deltas) == events[-4].text == events[-1].response.output_text == "A card."
    assert events[0].response.id == events[-1].response.id
    assert events[-1].response.usage.output_tokens == len(answer.tokens)
    assert msgspec.convert(events[-1].response.cutline, Answer) == answer


def test_the_clients_own_stream_gathers_it(agent: ScriptedAgent, client: Client) -> None:
    agent.always = told(ANSWER)

    async def run() -> Any:
        async with client() as one, one.responses.stream(model="cutline", input="What?") as stream:
            return await stream.get_final_response()

    assert asyncio.run(run()).output_text == "A card."


@pytest.mark.parametrize("stream", [True, False])
def test_a_question_goes_on_from_a_response(agent: ScriptedAgent, client: Client, stream: bool) -> None:
    agent.always = told(ANSWER)

    async def run() -> None:
        async with client() as one:

            async def ask(**asked: Any) -> Any:
                if not stream:
                    return await one.responses.create(model="cutline", **asked)
                return [event async for event in await one.responses.create(model="cutline", stream=True, **asked)][
                    -1
                ].response

            first = await ask(input=asking(ONE), instructions="Be brief.")
            second = await ask(input=asking(TWO, words="And now?"), previous_response_id=first.id)
            third = await ask(input="Sure?", previous_response_id=second.id, instructions="Be kind.")
            assert third.previous_response_id == second.id

    asyncio.run(run())
    assert agent.asked[1].images == (ONE, TWO)
    said = Message("assistant", (TextPart("A card."),))
    assert agent.asked[2].messages == (
        Message("system", (TextPart("Be kind."),)),  # instructions are of one answer
        Message("user", (ImagePart(), TextPart("What?"))),
        said,
        Message("user", (ImagePart(), TextPart("And now?"))),
        said,
        Message("user", (TextPart("Sure?"),)),
    )


def test_an_answer_may_be_sent_back(agent: ScriptedAgent, client: Client) -> None:
    agent.always = [ANSWER]

    async def run() -> None:
        async with client() as one:
            first = await one.responses.create(model="cutline", input=asking(ONE))
            again: list[Any] = [*asking(ONE), *first.output, {"role": "developer", "content": "Be brief."}]
            await one.responses.create(model="cutline", input=[*again, *asking(words="Sure?")])

    asyncio.run(run())
    assert [message.role for message in agent.asked[1].messages] == ["user", "assistant", "system", "user"]
    assert agent.asked[1].messages[1] == Message("assistant", (TextPart("A card."),))


def test_what_is_kept_is_given_and_dropped(agent: ScriptedAgent, client: Client) -> None:
    agent.always = [ANSWER]

    async def run() -> None:
        async with client() as one:
            kept = await one.responses.create(model="cutline", input="What?")
            assert (await one.responses.retrieve(kept.id)).output_text == "A card."
            await one.responses.delete(kept.id)
            declined = await one.responses.create(model="cutline", input="What?", store=False)
            for gone in (kept.id, declined.id, "resp_none"):
                with pytest.raises(openai.NotFoundError, match="is kept"):
                    await one.responses.retrieve(gone)
                with pytest.raises(openai.NotFoundError, match="is kept"):
                    await one.responses.delete(gone)
                with pytest.raises(openai.BadRequestError) as error:
                    await one.responses.create(model="cutline", input="And?", previous_response_id=gone)
                assert (error.value.param, error.value.code) == (
                    "previous_response_id",
                    "previous_response_not_found",
                )

    asyncio.run(run())
    assert len(agent.asked) == 2


@pytest.mark.threat("doors")
def test_what_a_tenant_has_is_nobody_elses(agent: ScriptedAgent, client: Client, tmp_path: Any) -> None:
    agent.always = [ANSWER]
    file = tmp_path / "tokens.toml"
    file.write_text(token_entry("ann", "anns") + token_entry("bob", "bobs"))

    async def run() -> None:
        async with client("anns", tokens=Tokens(file)) as ann:
            hers = await ann.responses.create(model="cutline", input="What?")
            bob = ann.with_options(api_key="bobs")
            with pytest.raises(openai.NotFoundError):
                await bob.responses.retrieve(hers.id)
            with pytest.raises(openai.BadRequestError):
                await bob.responses.create(model="cutline", input="And?", previous_response_id=hers.id)
            assert (await ann.responses.retrieve(hers.id)).id == hers.id

    asyncio.run(run())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}}, "with not are not served"),
        ({"tools": [{"type": "web_search", "name": "f"}]}, "web_search"),
        ({"reasoning": {"effort": "low"}}, "not served here: reasoning"),
        ({"background": True}, "not served here: background"),
        ({"truncation": "auto"}, "not served here: truncation"),
        ({"top_logprobs": 3}, "not served here: top_logprobs"),
        ({"extra_body": {"inptu": 1}}, "unknown fields: inptu"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [picture(ONE) | {"image_url": "data:;base64,?"}]}]}, "not base64"),
        ({"input": [{"role": "system", "content": [picture(ONE)]}, *asking()]}, "only the user's may"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 0.001}, "temperature"),
        ({"input": [{"role": "user", "content": "x"}] * 1001}, "1000 at most"),
    ],
    ids=repr,
)
def test_what_is_not_served_is_refused(agent: ScriptedAgent, client: Client, more: dict[str, Any], said: str) -> None:
    async def run() -> None:
        async with client() as one:
            await one.responses.create(**{"model": "cutline", "input": "What?"} | more)

    with pytest.raises(openai.BadRequestError, match=said):
        asyncio.run(run())
    assert agent.asked == []


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "status"), [(InputError("too long"), 400), (WorkerUnavailable("nobody"), 503), (WorkerBusy("full"), 429)]
)
def test_what_the_agent_raises_has_its_status(
    agent: ScriptedAgent, client: Client, error: Exception, status: int, stream: bool
) -> None:
    agent.always = [error]

    async def run() -> None:
        async with client() as one:
            await one.responses.create(model="cutline", input="What?", stream=stream)

    with pytest.raises(openai.APIStatusError, match=str(error)) as raised:
        asyncio.run(run())
    assert raised.value.status_code == status


def test_a_stream_that_fails_says_so(agent: ScriptedAgent, client: Client) -> None:
    agent.always = [*told(ANSWER)[:2], WorkerUnavailable("the worker was lost")]

    async def run() -> None:
        async with client() as one:
            _ = [event async for event in await one.responses.create(model="cutline", input="What?", stream=True)]

    with pytest.raises(openai.APIError, match="the worker was lost"):
        asyncio.run(run())


class Clock:
    """A clock that stands until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def conversation(name: str, size: int = 0) -> KeptResponse:
    made = ResponseObject(id=name, created_at=0, status="completed", model="m", store=True, temperature=0.0, top_p=1.0)
    return KeptResponse(made, 0, (), (bytes(size),) if size else ())


@pytest.mark.threat("floods")
def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MOST", 8)
    monkeypatch.setattr(stores, "MOST_BYTES", 400_000)
    clock = Clock()
    store = ResponseStore(clock)

    def kept(tenant: str) -> list[int]:
        return [index for index in range(10) if store.find(tenant, str(index))]

    for index in range(10):
        store.keep("ann", conversation(str(index)))
    assert kept("ann") == [6, 7, 8, 9], "half of the number"
    store.keep("bob", conversation("0", 90_000))
    store.keep("bob", conversation("1", 90_000))
    assert kept("bob") == [0, 1]
    store.keep("bob", conversation("2", 90_000))
    assert kept("bob") == [1, 2], "half of the bytes"
    store.keep("bob", conversation("3", 200_000))
    assert kept("bob") == [1, 2], "what is larger than all of it is not kept at all"
    assert kept("ann") == [6, 7, 8, 9], "one tenant's cost the other none"
    for tenant in ("cid", "dan", "eve"):
        store.keep(tenant, conversation("0"))
    assert (kept("ann"), kept("bob")) == ([7, 8, 9], [1, 2]), "the oldest of all goes"
    clock.now = stores.SECONDS
    assert not any(kept(tenant) for tenant in ("ann", "bob", "cid", "dan", "eve"))
    assert not store.drop("ann", "9")
