"""Servers that fail as real ones do, over HTTP: what they say inside of a 200 is no answer, a dead one costs once."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from cutline.core.request import Mode, Request
from cutline.core.sampling import Sampling
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.generation.events import Corrected
from cutline.edge.generation.result import Answer
from cutline.edge.offload.backends.openai_messages import (
    SAMPLING,
    Trouble,
    also_refused,
    failure_of,
    reason_of,
    refusal_of,
)
from cutline.edge.offload.backends.openai_upstream import Upstream
from cutline.edge.offload.recovery import BACK_SECONDS
from cutline.errors import AccessDenied, CutlineError, WorkerBusy, WorkerFailed, WorkerUnavailable
from cutline.testing.worker import BUNDLE, REQUEST

SSE, JSON, HTML = "text/event-stream", "application/json", "text/html; charset=utf-8"


def event(said: object) -> bytes:
    return b"data: " + (said if isinstance(said, str) else json.dumps(said)).encode() + b"\n\n"


def word(text: str, finish: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})


DONE = event("[DONE]")
END = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}) + DONE
ERROR = {"message": "overloaded", "type": "server_error", "code": 503}


def whole(text: str | None, finish: str = "stop") -> bytes:
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish}]}).encode()


@dataclass
class Server:
    """Says `body` as `kind` with `status` to everybody, or what `decide` makes of a request."""

    body: bytes = b""
    kind: str = SSE
    status: int = 200
    headers: str = ""
    decide: Callable[[dict[str, Any]], tuple[int, str, bytes]] | None = None
    silent: bool = False  # it takes a request, and says nothing
    cuts: bool = False  # it closes the connection before all is said
    asked: list[dict[str, Any]] = field(default_factory=list)
    looked: int = 0  # requests for anything else

    @contextlib.asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[str]:
        over, handlers, writers = asyncio.Event(), set[asyncio.Task[None]](), list[asyncio.StreamWriter]()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            handlers.add(task)
            writers.append(writer)
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while await self._one(reader, writer, over):
                    pass
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", port, limit=1 << 24)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        finally:
            server.close()
            over.set()
            for writer in writers:
                writer.transport.abort()
            await asyncio.gather(*handlers)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, over: asyncio.Event) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        size = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
        body = await reader.readexactly(size)
        status, kind, said = self.status, self.kind, self.body
        if "post /v1/chat/completions" in head:
            self.asked.append(json.loads(body))
            if self.decide is not None:
                status, kind, said = self.decide(self.asked[-1])
        else:
            self.looked += 1
            status, kind, said = 404, JSON, b"{}"
        if self.silent:
            await over.wait()
        more = len(said) + 10 if self.cuts else len(said)
        answer = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {more}\r\n{self.headers}\r\n"
        writer.write(answer.encode() + said)
        await writer.drain()
        return not self.cuts


def asking(mode: Mode, **options: Any) -> Request:
    return Request.about(REQUEST.image, "Which digits?", mode=mode, **options)


def asked_of(server: Server, *questions: Request, key: str | None = None) -> list[Answer | CutlineError]:
    async def run() -> list[Answer | CutlineError]:
        async with server.serving() as url:
            upstream = Upstream(url, model="big", key=key)
            found = list[Answer | CutlineError]()
            async with Agent(BUNDLE, worker=None, threads=1, settings=AgentSettings(upstream=upstream)) as agent:
                for question in questions:
                    try:
                        found.append(await agent.answer(question))
                    except CutlineError as error:
                        found.append(error)
            return found

    return asyncio.run(run())


@functools.cache
def on_the_device() -> Answer:
    """What the drafter says by itself."""
    (edge,) = asked_of(Server(), asking(Mode.EDGE))
    assert isinstance(edge, Answer)
    return edge


FAULTS: dict[str, tuple[Server, type[CutlineError], str]] = {
    "error first in a stream": (Server(event({"error": ERROR}) + DONE), WorkerUnavailable, "overloaded"),
    "error by name": (Server(event({"error": "model not found"})), WorkerFailed, "model not found"),
    "error of its own shape": (Server(event({"object": "error", "message": "no GPU"})), WorkerFailed, "no GPU"),
    "busy inside a stream": (
        Server(event({"error": {"message": "slow down", "code": "429"}})),
        WorkerBusy,
        "slow down",
    ),
    "error with 200": (Server(json.dumps({"error": ERROR}).encode(), JSON), WorkerUnavailable, "overloaded"),
    "login page": (Server(b"<html>please log in</html>", HTML), WorkerFailed, "web page"),
    "no choices": (Server(b'{"answer": "4 3 7"}', JSON), WorkerFailed, "does not speak"),
    "no JSON": (Server(b"4 3 7", JSON), WorkerFailed, "does not speak"),
    "no events": (Server(b"4 3 7\n", "text/plain"), WorkerFailed, "does not speak"),
    "nothing": (Server(b""), WorkerFailed, "does not speak"),
    "empty stream": (Server(END), WorkerFailed, "without a word (stop)"),
    "all thought": (
        Server(event({"choices": [{"delta": {}, "finish_reason": "length"}]}) + DONE),
        WorkerFailed,
        "without a word (length)",
    ),
    "empty content": (Server(whole(None, "content_filter"), JSON), WorkerFailed, "content_filter"),
    "busy": (Server(b"{}", JSON, 429, "retry-after: 7\r\n"), WorkerBusy, "no room"),
    "broken": (Server(b"<h1>Bad gateway</h1>", HTML, 502), WorkerUnavailable, "502"),
    "refused": (Server(json.dumps({"error": {"message": "no images"}}).encode(), JSON, 400), WorkerFailed, "no images"),
    "slow to begin": (Server(silent=True), WorkerUnavailable, "in time"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_no_empty_success_and_the_drafters_answer_stands(name: str) -> None:
    server, kind, said = FAULTS[name]
    seconds = {"timeout": 0.5} if server.silent else {}
    server.asked.clear()
    (auto,) = asked_of(server, asking(Mode.AUTO, **seconds))
    (cloud,) = asked_of(server, asking(Mode.CLOUD, **seconds))
    assert isinstance(auto, Answer)
    assert auto.tokens == on_the_device().tokens
    assert (auto.exact, auto.alone_from, auto.worker, len(auto.lost)) == (False, 0, None, 1)
    assert said in auto.lost[0].why
    assert type(cloud) is kind
    assert said in str(cloud)
    assert len(server.asked) == 2
    if name == "busy":
        assert isinstance(cloud, WorkerBusy)
        assert cloud.retry_seconds == 7.0


@pytest.mark.parametrize(
    ("server", "why"),
    [
        (Server(word("The gate") + event({"error": ERROR}) + DONE), "overloaded"),
        (Server(word("The gate")), "ended its answer early"),
        (Server(word("The gate"), cuts=True), "the link to it broke"),
    ],
    ids=["error later", "ended early", "cut"],
)
def test_half_an_answer_is_none_and_the_drafters_own_stands_for_it(server: Server, why: str) -> None:
    told = list[object]()

    async def run() -> None:
        async with server.serving() as url:
            upstream = Upstream(url, model="big")
            async with Agent(BUNDLE, worker=None, threads=1, settings=AgentSettings(upstream=upstream)) as agent:
                async for event in agent.stream(asking(Mode.AUTO)):
                    told.append(event)

    asyncio.run(run())
    answer = told[-1]
    assert isinstance(answer, Answer)
    assert answer.tokens == on_the_device().tokens
    assert [why in one.why for one in answer.lost] == [True]
    assert (answer.alone_from, answer.exact, answer.worker) == (0, False, None)
    (corrected,) = [event for event in told if isinstance(event, Corrected)]
    assert (corrected.position, list(corrected.tokens)) == (0, answer.tokens), "what was streamed is taken back"
    (failed,) = asked_of(server, asking(Mode.CLOUD))
    assert isinstance(failed, WorkerUnavailable)
    assert why in str(failed)


def test_a_server_that_does_not_stream_is_taken_at_its_word() -> None:
    (answer,) = asked_of(Server(whole("The gate is open."), JSON), asking(Mode.CLOUD))
    assert isinstance(answer, Answer)
    assert (answer.text, answer.complete, answer.lost) == ("The gate is open.", True, ())
    (cut,) = asked_of(Server(whole("The gate is", "length"), JSON), asking(Mode.CLOUD))
    assert isinstance(cut, Answer)
    assert (cut.text, cut.complete) == ("The gate is", False)


def test_a_stream_may_end_with_its_reason_or_with_the_mark() -> None:
    for said in (word("open", "stop"), word("open") + DONE, word("open") + END.rstrip()):
        (answer,) = asked_of(Server(said), asking(Mode.CLOUD))
        assert isinstance(answer, Answer)
        assert (answer.text, answer.lost) == ("open", ())


def reasoning(body: dict[str, Any]) -> tuple[int, str, bytes]:
    """As OpenAI's reasoning models: they name what they do not take, one at a time."""
    for name, wrong in (("max_tokens", True), ("temperature", body.get("temperature", 1) != 1), ("top_p", True)):
        if name in body and wrong:
            said = {"message": f"Unsupported parameter: '{name}'", "param": name, "code": "unsupported_parameter"}
            return 400, JSON, json.dumps({"error": said}).encode()
    return 200, SSE, word("open", "stop") + DONE


def always_max_tokens(body: dict[str, Any]) -> tuple[int, str, bytes]:
    """One that names the same parameter, whatever it was that it did not take."""
    if "max_tokens" in body or body.get("temperature", 1) != 1:
        said = {"message": "Unsupported parameter: 'max_tokens'"}
        return 400, JSON, json.dumps({"error": said}).encode()
    return 200, SSE, word("open", "stop") + DONE


@pytest.mark.parametrize("decide", [reasoning, always_max_tokens])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_what_parameters_a_server_does_not_take_is_learnt_once(
    decide: Callable[[dict[str, Any]], tuple[int, str, bytes]], temperature: float, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(decide=decide)
    question = asking(Mode.CLOUD, sampling=Sampling(temperature=temperature), max_tokens=9)
    first, second = asked_of(server, question, question)
    assert isinstance(first, Answer)
    assert isinstance(second, Answer)
    assert (first.text, second.text) == ("open", "open")
    assert server.asked[-1]["max_completion_tokens"] == 9
    assert "max_tokens" not in server.asked[-1]
    assert decide(server.asked[-2])[0] == 200 or len(server.asked) > 2
    assert sum(decide(body)[0] == 200 for body in server.asked) == 2
    assert decide(server.asked[-2])[0] == 200, "the second question is asked as it is taken, at once"
    assert "it refuses that" in caplog.text


def test_what_is_refused_for_another_reason_is_asked_once() -> None:
    said = json.dumps({"error": {"message": "your max_tokens friends say hello", "param": None}}).encode()
    server = Server(said, JSON, 400)
    (error,) = asked_of(server, asking(Mode.CLOUD))
    assert isinstance(error, WorkerFailed)
    assert len(server.asked) == 1


def test_a_server_that_refuses_everything_is_given_up() -> None:
    named = {name: json.dumps({"error": {"message": f"'{name}' is wrong"}}).encode() for name in ("max_tokens", "seed")}
    for said in named.values():
        server = Server(said, JSON, 400)
        (error,) = asked_of(server, asking(Mode.CLOUD))
        assert isinstance(error, WorkerFailed)
        assert "is wrong" in str(error)
        assert 1 <= len(server.asked) <= 3


def test_a_reason_is_one_plain_line_without_the_key() -> None:
    trouble = Trouble(message="your key\nsk-1234 \x1b[2J is" + " long" * 200)
    said = reason_of(trouble, "sk-1234")
    assert "sk-1234" not in said
    assert said.isprintable()
    assert len(said) <= 300
    assert isinstance(denied := refusal_of("u", 401, trouble), AccessDenied)
    assert "long" not in str(denied), "what is said to a wrong key may repeat a part of it"
    assert isinstance(failure_of("u", Trouble(message="x", code="503")), WorkerUnavailable)
    assert isinstance(failure_of("u", Trouble(message="x", code="unsupported_value")), WorkerFailed)


def test_what_is_left_out_grows_until_nothing_is_left_to_leave_out() -> None:
    before, seen = frozenset[str](), list[frozenset[str]]()
    while (after := also_refused(Trouble(message="no 'temperature'"), before)) != before:
        before = after
        seen.append(after)
    assert seen == [{"temperature"}, SAMPLING]


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_server_that_is_away_costs_once_and_is_asked_again_once_it_answers() -> None:
    """The clock stands still: nothing but a probe that is answered can end the rest."""

    async def run() -> None:
        server = Server(word("open", "stop") + DONE)
        async with server.serving() as url:
            port = int(url.rpartition(":")[2].removesuffix("/v1"))
        upstream = Upstream(url, model="big", clock=Time())
        async with (
            Agent(BUNDLE, worker=None, threads=1, settings=AgentSettings(upstream=upstream)) as agent,
            asyncio.timeout(60),
        ):
            with pytest.raises(WorkerUnavailable, match="no server answers") as raised:
                await agent.answer(asking(Mode.CLOUD))
            assert raised.value.retry_seconds == BACK_SECONDS
            for _ in range(3):
                with pytest.raises(WorkerUnavailable, match="failed lately") as raised:
                    await agent.answer(asking(Mode.CLOUD))
                assert raised.value.retry_seconds == BACK_SECONDS
            auto = await agent.answer(asking(Mode.AUTO))
            assert (auto.alone_from, len(auto.lost), auto.bytes_up) == (0, 1, 0)
            async with server.serving(port):
                while not upstream.reachable:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                assert (server.looked, server.asked) == (1, []), "a probe sends no picture"
                assert (await agent.answer(asking(Mode.CLOUD))).text == "open"

    asyncio.run(run())
