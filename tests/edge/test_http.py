from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import httpx
import msgspec
import pytest
from PIL import Image

from cutline.demo.bundles import DRAFTER
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge import http, remote
from cutline.edge.agent import Agent
from cutline.edge.answer import Answer, Believed, Forecast, Source, Token
from cutline.edge.chat import STATUS, Completion
from cutline.edge.http import application
from cutline.edge.question import Mode, Question
from cutline.errors import BundleError, CutlineError, ImageError, InputError, PromptError, WorkerUnavailable
from cutline.models.bundle import Bundle
from cutline.models.sampling import Sampling
from cutline.models.wire import Wire

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


def post(content: object, *, agent: object = None, path: str = PATH, method: str = "POST") -> httpx.Response:
    """What the demo's drafter, alone, or another `agent` answers to a body of JSON or of bytes."""

    async def run() -> httpx.Response:
        async with Agent(Bundle.open(DRAFTER), worker="127.0.0.1:1", threads=1) as alone:
            served: Any = agent or alone
            transport = httpx.ASGITransport(application(served), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
                sent = content if isinstance(content, bytes) else msgspec.json.encode(content)
                return await client.request(method, path, content=sent)

    return asyncio.run(run())


def test_a_question_is_answered_in_openais_shape() -> None:
    response = post(body(model="whatever", max_tokens=32, temperature=0.5, top_p=0.9, seed=3))
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    completion = response.json()
    assert completion["object"] == "chat.completion"
    assert completion["model"] == Bundle.open(DRAFTER).manifest.name
    assert completion["id"].startswith("chatcmpl-")
    (choice,) = completion["choices"]
    answer = msgspec.convert(completion["cutline"], Answer)
    assert choice["message"] == {"role": "assistant", "content": answer.text}
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
        (body(messages=message(WORDS)), "InputError", 400),
        (body(messages=message(PICTURE, PICTURE, WORDS)), "InputError", 400),
        (body(messages=message(PICTURE, WORDS) * 2), "InputError", 400),
        (body(messages=[{"role": "system", "content": [WORDS]}]), "InputError", 400),
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
        (body(stream=True), "InputError", 400),
        (body(tools=[]), "InputError", 400),
        (body(max_tokens=0), "InputError", 400),
        (body(max_tokens="many"), "InputError", 400),
        (body(temperature=-1), "InputError", 400),
        (body(temperature=float("nan")), "InputError", 400),
        (body(top_p=0), "InputError", 400),
        (body(seed=-1), "InputError", 400),
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
    assert set(error) == {"message", "type"}
    assert error["message"]
    assert "Traceback" not in error["message"]
    assert "/" + "etc" not in error["message"], "nothing of the request's addresses is repeated"


def test_a_body_is_refused_once_it_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_BODY", 1 << 20)
    response = post(b" " * ((1 << 20) + 1))
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "InputError"
    assert "1 MiB" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/", "GET", 404), (PATH, "GET", 405), ("/healthz", "PUT", 405)]
)
def test_what_is_not_there(path: str, method: str, status: int) -> None:
    response = post(b"", path=path, method=method)
    assert response.status_code == status
    assert response.json()["error"]["message"]


class Scripted:
    """An agent that answers, or fails, as it was told."""

    manifest = Bundle.open(DRAFTER).manifest

    def __init__(self, outcome: Answer | Exception) -> None:
        self.asked: Question | None = None
        self._outcome = outcome

    async def answer(self, question: Question) -> Answer:
        self.asked = question
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


def test_a_bug_tells_strangers_nothing() -> None:
    response = post(body(), agent=Scripted(RuntimeError("secret")))
    assert response.status_code == 500
    assert "secret" not in response.text
    assert set(response.json()["error"]) == {"message", "type"}


def ask_over(agent: Scripted, question: Question) -> Answer:
    """Ask through the client: its request goes to the application of `agent`."""

    def relay(request: httpx.Request) -> httpx.Response:
        answered = post(request.read(), agent=agent, path=request.url.path, method=request.method)
        return httpx.Response(answered.status_code, content=answered.content)

    with httpx.Client(transport=httpx.MockTransport(relay), base_url="http://agent") as client:
        return remote.ask_over(client, question)


QUESTION = Question.about(
    b"\x00\xff any bytes",
    "Which digit is at the top left? Ünïcödé 🙂",
    mode=Mode.DRAFT,
    cut="decoder.2",
    wire=Wire.INT8,
    keep_image_tokens=0.75,
    sampling=Sampling(temperature=0.7, top_k=5, top_p=0.9, seed=12),
    max_tokens=17,
    effort=0.25,
    timeout=33.0,
)
ANSWER = Answer(
    text="7",
    tokens=[Token(12, "7", Source.DRAFT), Token(2, "", Source.CLOUD)],
    mode=Mode.DRAFT,
    latency_ms=12.5,
    ttft_ms=3.25,
    bytes_up=100,
    bytes_down=20,
    rounds=1,
    drafted=3,
    accepted=1,
    exact=True,
    worker="127.0.0.1:50051",
    cut="decoder.2",
    wire=Wire.INT8,
    confidence=None,
    complete=True,
)


def test_question_and_answer_go_there_and_back_whole() -> None:
    agent = Scripted(ANSWER)
    assert ask_over(agent, QUESTION) == ANSWER
    assert agent.asked == QUESTION
    assert Completion.asking(QUESTION).question() == QUESTION


def test_what_bounds_a_plan_and_the_plan_go_there_and_back_whole() -> None:
    asked = Question.about(b"any", "What?", exact=True, image_must_stay=True, max_latency_ms=250.0, min_agreement=0.75)
    believed = Believed(rtt_ms=40.0, uplink_mbps=3.5, queue_ms=0.5, acceptance=0.9, answer_tokens=12, throttled=False)
    plan = Forecast(
        mode=Mode.DRAFT,
        cut="decoder.0",
        wire=Wire.INT8,
        effort=1.0,
        predicted_ms=84.0,
        uncorrected_ms=70.0,
        correction=1.2,
        hindsight_ms=81.0,
        measured_ms=80.0,
        cold=False,
        why="It is quickest",
        believed=believed,
    )
    agent = Scripted(msgspec.structs.replace(ANSWER, plan=plan))
    assert ask_over(agent, asked).plan == plan
    assert agent.asked == asked


@pytest.mark.parametrize("kind", list(STATUS))
def test_the_client_raises_what_the_agent_raised(kind: type[CutlineError]) -> None:
    with pytest.raises(CutlineError) as raised:
        ask_over(Scripted(kind("what was wrong; what to do")), QUESTION)
    assert type(raised.value) is kind
    assert str(raised.value) == "what was wrong; what to do"
    response = post(body(), agent=Scripted(kind("words")))
    assert response.status_code == STATUS[kind]


def leaves(kind: type[CutlineError]) -> set[type[CutlineError]]:
    below = kind.__subclasses__()
    return {kind} if not below else set().union(*map(leaves, below))


def test_every_exception_of_an_answer_has_a_status() -> None:
    missing = {kind.__name__ for kind in leaves(CutlineError)} - {kind.__name__ for kind in STATUS}
    assert missing == {"ProfileError"}, "an agent that answers reads no profiles"
    assert {InputError, BundleError, ImageError, PromptError, WorkerUnavailable} <= set(STATUS)


@pytest.mark.parametrize(
    "answer",
    [httpx.Response(200, content=b"<html>"), httpx.Response(200, content=b"{}"), httpx.Response(502, content=b"oops")],
)
def test_another_servers_answer(answer: httpx.Response) -> None:
    with (
        httpx.Client(transport=httpx.MockTransport(lambda _: answer), base_url="http://other") as client,
        pytest.raises(InputError, match="not a Cutline agent"),
    ):
        remote.ask_over(client, QUESTION)


def test_an_agents_bug_is_no_input_error() -> None:
    with pytest.raises(CutlineError) as raised:
        ask_over(Scripted(RuntimeError("secret")), QUESTION)
    assert raised.value.exit_code == 1


@pytest.mark.parametrize("url", ["127.0.0.1:1", "", "http://[::1", "ftp://127.0.0.1", "http://\x00"])
def test_what_is_no_url_of_an_agent(url: str) -> None:
    with pytest.raises(InputError, match="agent"):
        remote.ask_agent(url, QUESTION)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://a b"])
def test_no_agent_at_the_address(url: str) -> None:
    with pytest.raises(WorkerUnavailable, match="no agent answers"):
        remote.ask_agent(url, QUESTION)


def test_a_question_that_no_message_can_carry() -> None:
    with pytest.raises(PromptError):
        Question.about(b"", "\udcff")
