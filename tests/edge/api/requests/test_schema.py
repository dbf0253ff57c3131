"""What is refused, and how: bodies that are not right, too large, nested, or of fields that nobody serves."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from PIL import Image

from cutline.core.conversation import Message, TextPart
from cutline.core.request import MAX_IMAGES, Mode
from cutline.core.sampling import Sampling
from cutline.demo.bundles import DRAFTER
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.agent import Agent
from cutline.edge.api import app as app_module
from cutline.edge.api.access.limits import HTTP_LIMITS, HttpLimits
from cutline.edge.api.app import application
from cutline.edge.api.errors import Refused
from cutline.edge.api.requests import fields as requests_module
from cutline.edge.api.requests.schema import ChatRequest, read_request
from cutline.edge.generation.result import Answer
from cutline.models.bundle import Bundle
from cutline.testing.agent import ScriptedAgent, spoken

REQUEST = next(requests(Split.EVALUATION, 1, seed=4))
PATH = "/v1/chat/completions"


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def body(**changes: Any) -> dict[str, Any]:
    """A request that is right but for `changes`; None takes a field away."""
    content = [
        {"type": "image_url", "image_url": {"url": data_url(REQUEST.image)}},
        {"type": "text", "text": REQUEST.question.text},
    ]
    whole = {"messages": [{"role": "user", "content": content}], "cutline": {"mode": "edge"}} | changes
    return {key: value for key, value in whole.items() if value is not None}


def message(*content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": list(content)}]


def image_part(url: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


WORDS = {"type": "text", "text": "What?"}
PICTURE = image_part(data_url(REQUEST.image))


def post(
    content: object,
    *,
    agent: object = None,
    path: str = PATH,
    method: str = "POST",
    http: HttpLimits = HTTP_LIMITS,
) -> httpx.Response:
    """What the demo's drafter, alone, or another `agent` answers to a body of JSON or of bytes."""

    async def run() -> httpx.Response:
        async with Agent(Bundle.open(DRAFTER), worker="127.0.0.1:1", threads=1) as alone:
            served: Any = agent or alone
            transport = httpx.ASGITransport(application(served, http=http), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
                sent = content if isinstance(content, bytes) else msgspec.json.encode(content)
                return await client.request(method, path, content=sent)

    return asyncio.run(run())


def test_a_question_is_answered_in_openais_shape() -> None:
    response = post(body(model="cutline", max_tokens=32, temperature=0.5, top_p=0.9, seed=3))
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    completion = response.json()
    assert completion["object"] == "chat.completion"
    assert completion["model"] == Bundle.open(DRAFTER).manifest.name
    assert completion["id"].startswith("chatcmpl-")
    (choice,) = completion["choices"]
    answer = msgspec.convert(completion["cutline"], Answer)
    assert choice["message"] == {"role": "assistant", "content": answer.text, "refusal": None}
    assert choice["finish_reason"] == ("stop" if answer.complete else "length")
    assert answer.mode is Mode.EDGE


def test_a_limit_is_told_from_an_end() -> None:
    (choice,) = post(body(max_tokens=1)).json()["choices"]
    assert choice["finish_reason"] == "length"


def test_it_says_that_it_is_well() -> None:
    response = post(b"", path="/healthz", method="GET")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def png(size: tuple[int, int], mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


NESTED = b'{"messages": [{"role": "user", "more": ' + b"[" * 100_000


@pytest.mark.threat("fetching", "late")
@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", "InputError", 400),
        (b"{", "InputError", 400),
        (b"[]", "InputError", 400),
        (b"\xff\xfe", "InputError", 400),
        (NESTED, "InputError", 400),
        (body(messages=None), "InputError", 400),
        (body(messages=[]), "InputError", 400),
        (body(messages="What?"), "InputError", 400),
        (body(messages=message(*[PICTURE] * (MAX_IMAGES + 1), WORDS)), "InputError", 400),
        (body(messages=[{"role": "system", "content": [WORDS]}]), "PromptError", 400),
        (body(messages=[{"role": "system", "content": [PICTURE]}, *message(WORDS)]), "InputError", 400),
        (body(messages=[{"role": "tool", "content": "7"}, *message(WORDS)]), "InputError", 400),
        (body(messages=[*message(WORDS), {"role": "assistant", "content": "A"}]), "PromptError", 400),
        (body(messages=message(PICTURE, {"type": "audio"})), "InputError", 400),
        (body(messages=message(PICTURE)), "PromptError", 400),
        (body(messages=message(PICTURE, {"type": "text", "text": "  "})), "PromptError", 400),
        (body(messages=message(PICTURE, {"type": "text", "text": "why " * 900})), "PromptError", 400),
        (body(messages=message(image_part("http://127.0.0.1/card.png"), WORDS)), "ImageError", 400),
        (body(messages=message(image_part("file:///etc/passwd"), WORDS)), "ImageError", 400),
        (body(messages=message(image_part("data:image/png;base64"), WORDS)), "ImageError", 400),
        (body(messages=message(image_part("data:image/png,abc"), WORDS)), "ImageError", 400),
        (body(messages=message(image_part("data:image/png;base64,a-b_"), WORDS)), "ImageError", 400),
        (body(messages=message(image_part("data:image/png;base64,ä"), WORDS)), "ImageError", 400),
        (body(messages=message(image_part("data:image/png;base64,"), WORDS)), "ImageError", 400),
        (body(messages=message(image_part(data_url(REQUEST.image[:200])), WORDS)), "ImageError", 400),
        (body(messages=message(image_part(data_url(png((1, 1)))), WORDS)), "ImageError", 400),
        (body(messages=message(image_part(data_url(png((5000, 5000), "1"))), WORDS)), "ImageError", 400),
        (body(tools=[{"type": "function"}]), "InputError", 400),
        (body(n=2), "InputError", 400),
        (body(response_format={"type": "xml"}), "InputError", 400),
        (body(response_format={"type": "json_schema"}), "InputError", 400),
        (body(response_format={"type": "json_schema", "json_schema": {"schema": {"not": {}}}}), "InputError", 400),
        (body(response_format={"type": "json_schema", "json_schema": {"schema": {"type": "no"}}}), "InputError", 400),
        (body(response_format={"type": "regex", "regex": "(a"}), "InputError", 400),
        (body(response_format={"type": "choice", "choice": []}), "InputError", 400),
        (body(response_format={"type": "lark", "lark": "start: missing"}), "InputError", 400),
        (body(presence_penalty=2.5), "InputError", 400),
        (body(logit_bias={"five": 1}), "InputError", 400),
        (body(logit_bias={"5": 101}), "InputError", 400),
        (body(logit_bias={"999999999": 1}), "InputError", 400),
        (body(cutline={"mode": "edge", "min_p": 1.5}), "InputError", 400),
        (body(cutline={"mode": "edge", "repetition_penalty": 0}), "InputError", 400),
        (body(top_logprobs=3), "InputError", 400),
        (body(logprobs=True, top_logprobs=2000), "InputError", 400),
        (body(max_tokens=3, max_completion_tokens=4), "InputError", 400),
        (body(stop=["a", "b", "c", "d", "e"]), "InputError", 400),
        (body(stop=""), "InputError", 400),
        (body(max_tokens=0), "InputError", 400),
        (body(max_tokens="many"), "InputError", 400),
        (body(temperature=-1), "InputError", 400),
        (body(top_p=0), "InputError", 400),
        (body(seed=-2), "InputError", 400),
        (body(seed=2**63), "InputError", 400),
        (body(cutline={"mode": "magic"}), "InputError", 400),
        (body(cutline={"mode": "edge", "effort": 2}), "InputError", 400),
        (body(cutline={"mode": "edge", "timeout": 0}), "InputError", 400),
        (body(cutline={"mode": "edge", "timeout": 1e9}), "InputError", 400),
        (body(cutline={"mode": "edge", "hurry": True}), "InputError", 400),
        (body(cutline={"mode": "split"}), "InputError", 400),
        (body(cutline={"mode": "cloud", "cut": "decoder.1"}), "InputError", 400),
        (body(cutline={"mode": "draft", "cut": "decoder.1"}), "InputError", 400),
        (body(cutline={"mode": "draft", "cut": "decoder.1", "keep_image_tokens": 2}), "InputError", 400),
        (body(cutline={"mode": "draft", "cut": "decoder.1", "keep_image_tokens": "half"}), "InputError", 400),
        (body(cutline={"mode": "cloud"}), "WorkerUnavailable", 503),
    ],
)
def test_what_cannot_be_answered(content: object, kind: str, status: int) -> None:
    response = post(content)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (status, kind)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in error["message"]
    assert "/" + "etc" not in error["message"], "nothing of the request's addresses is repeated"


@pytest.mark.threat("late")
def test_a_body_is_refused_once_it_is_too_large() -> None:
    response = post(b" " * ((1 << 20) + 1), http=HttpLimits(body=1 << 20))
    assert response.status_code == 413
    assert response.json()["error"]["type"] == "InputError"
    assert "1 MiB" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/page", "GET", 404),
        ("/v1", "GET", 404),
        ("/healthz/", "GET", 404),
        ("/docs", "GET", 404),
        (PATH, "GET", 405),
        (PATH, "OPTIONS", 405),
        ("/healthz", "PUT", 405),
        ("/cutline/state", "DELETE", 405),
        ("/v1/models", "POST", 405),
    ],
)
def test_what_is_not_there(path: str, method: str, status: int) -> None:
    response = post(b"", path=path, method=method)
    assert response.status_code == status
    assert response.json()["error"]["message"]
    assert not any(name.startswith("access-control") for name in response.headers)


def scripted() -> ScriptedAgent:
    return ScriptedAgent(Bundle.open(DRAFTER).manifest, always=[spoken("7")])


@pytest.mark.threat("words")
def test_a_bug_tells_strangers_nothing() -> None:
    agent = scripted()
    agent.enqueue(RuntimeError("secret"))
    response = post(body(), agent=agent)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.json()["error"]["type"] == "CutlineError"


def refused(**changes: Any) -> Refused:
    with pytest.raises(Refused) as found:
        read_request(msgspec.json.encode(body(**changes)))
    return found.value


def test_every_unknown_field_is_named() -> None:
    messages = message(PICTURE | {"alt": "a"}, WORDS)
    messages[0]["mood"] = "good"
    error = refused(hurry=1, messages=messages, cutline={"mode": "edge", "speed": 2}, stream_options={"often": True})
    for name in ("hurry", "messages[0].mood", "messages[0].content[0].alt", "cutline.speed", "stream_options.often"):
        assert name in str(error)
    assert "not served" not in str(error)
    assert error.fault.code == "unsupported_parameter"


def test_what_is_not_served_is_named_apart() -> None:
    error = refused(functions=[{}], verbosity="low", hurry=1)
    assert "what is not served here: functions, verbosity, and unknown fields: hurry" in str(error)
    assert "\n" not in str(error)


def test_names_do_not_flood_the_answer() -> None:
    error = refused(**{f"x{i}\n" + "y" * 500: 1 for i in range(1000)})
    assert len(str(error)) < 3000
    assert str(error).isprintable()


def test_the_wrong_field_is_told() -> None:
    assert refused(max_tokens="many").fault.param == "max_tokens"
    assert refused(messages=[{"role": "user", "content": 7}]).fault.param == "messages[0].content"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            ("temperature", b"1e999"),
            ("temperature", b"-1"),
            ("temperature", b"0.005"),
            ("temperature", b"1e-300"),
            ("top_p", b"0"),
            ("seed", b"-2"),
            ("seed", b"1" + b"0" * 30),
        ),
        *(("max_tokens", b"0"), ("cutline.effort", b"1e999"), ("cutline.effort", b"2"), ("cutline.timeout", b"0")),
        *(("cutline.top_k", b"-1"), ("cutline.max_leak", b"1.5"), ("cutline.max_latency_ms", b"-1e999")),
        *(("cutline.noise", b"1e9"), ("cutline.keep_image_tokens", b"0"), ("cutline.correct_seconds", b"601")),
    ],
)
def test_the_number_out_of_range_is_told(field: str, value: bytes) -> None:
    where, _, name = field.rpartition(".")
    given = b'"%b": %b' % (name.encode(), value)
    given = b'"cutline": {%b}' % given if where else given
    with pytest.raises(Refused) as found:
        read_request(b'{"messages": [{"role": "user", "content": "What?"}], %b}' % given)
    assert (found.value.status, found.value.fault.param) == (400, field)


@pytest.mark.parametrize("name", ["n", "tools", "store"])
def test_what_only_equals_nothing_is_refused(name: str) -> None:
    wrong = {"n": True, "tools": False, "store": 0}
    assert refused(**{name: wrong[name]}).fault.param == name


@pytest.mark.threat("late")
@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b'{"messages": [' + b"{}," * 349_000 + b"{}]}", "values"),
        (b'{"messages": [' + b"{}," * 20_000 + b"{}]}", "20001 messages are too many"),
        (b'{"messages": [{"role": "user", "content": [' + b"{}," * 20_000 + b"{}]}]}", "20001 parts are too many"),
        (b"[" * (48 << 20), "values"),
        (b'{"x": [' + b"1," * (24 << 20), "values"),
    ],
    ids=["objects", "messages", "parts", "depth", "commas"],
)
def test_a_bad_body_is_refused_before_it_costs(raw: bytes, match: str) -> None:
    began = time.process_time()
    with pytest.raises(Refused, match=match) as found:
        read_request(raw)
    assert found.value.status == 400
    assert time.process_time() - began < 0.5


def test_unknown_fields_are_looked_for_until_enough_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    unknown = requests_module._unknown

    def counted(*given: Any) -> Iterator[str]:
        for one in unknown(*given):
            found.append(one)
            yield one

    monkeypatch.setattr(requests_module, "_unknown", counted)
    assert refused(**{f"x{i}": 1 for i in range(5000)}).fault.message.endswith("x19, ...; leave these out")
    assert len(found) == requests_module.MAX_NAMED + 1


def test_what_takes_long_to_read_is_read_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []

    def read(raw: bytes) -> ChatRequest:
        threads.append(threading.current_thread() is threading.main_thread())
        return read_request(raw)

    monkeypatch.setattr(app_module, "read_request", read)
    for size in (10, 64 << 10):
        assert post(body(messages=message(WORDS), user="x" * size), agent=scripted()).status_code == 200
    assert threads == [True, False]


@pytest.mark.parametrize(
    "neutral",
    [
        {"n": 1, "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}},
        {"store": True, "modalities": ["text"], "logit_bias": None, "presence_penalty": None},
        {"seed": None, "stop": None, "tools": None, "top_p": None, "max_tokens": None},
    ],
)
def test_what_asks_for_nothing_is_taken(neutral: dict[str, Any]) -> None:
    asked, plain = (read_request(msgspec.json.encode(one)) for one in (body() | neutral, body()))
    images = [b"any"] * len(plain.urls)
    assert asked.question(images) == plain.question(images)


def test_penalties_and_biases_are_a_part_of_the_sampling() -> None:
    asked = body(
        presence_penalty=0.5,
        frequency_penalty=-0.25,
        logit_bias={"7": 2, "5": -100},
        cutline={"min_p": 0.1, "repetition_penalty": 1.1, "stop_token_ids": [7, 5]},
    )
    question = read_request(msgspec.json.encode(asked)).question([REQUEST.image])
    assert question.sampling == Sampling(
        presence_penalty=0.5,
        frequency_penalty=-0.25,
        logit_bias=((5, -100.0), (7, 2.0)),
        min_p=0.1,
        repetition_penalty=1.1,
        stop_token_ids=(7, 5),
    )
    neutral = body(presence_penalty=0, frequency_penalty=0.0, logit_bias={})
    assert read_request(msgspec.json.encode(neutral)).question([REQUEST.image]).sampling == Sampling()


def test_words_alone_are_a_string_or_parts() -> None:
    one, other = (body(messages=[{"role": "user", "content": content}]) for content in ("What?", [WORDS]))
    first, second = (read_request(msgspec.json.encode(raw)).question([]) for raw in (one, other))
    assert first == second
    assert first.messages == (Message("user", (TextPart("What?"),)),)
