"""Another server than a worker: what it is asked, what is made of what it says, and how it may fail."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from PIL import Image

from cutline.core.conversation import ImagePart, Message, TextPart
from cutline.core.request import Mode, Request
from cutline.core.sampling import Sampling
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.generation.detokenizer import Transcript
from cutline.edge.generation.events import Settled
from cutline.edge.generation.gate import upstream_named
from cutline.edge.generation.generation import Execution, Generation, Prepared
from cutline.edge.generation.result import Answer, Provenance
from cutline.edge.generation.semantic_cache import SemanticCache
from cutline.edge.offload.backends.openai_upstream import KEY, Upstream, open_key
from cutline.edge.offload.backends.upstream_backend import UpstreamBackend
from cutline.errors import AccessDenied, CutlineError, InputError, WorkerBusy, WorkerFailed, WorkerUnavailable
from cutline.models.bundle import Bundle
from cutline.models.vocabulary import Vocabulary
from cutline.testing.worker import gated, keeps_from

BUNDLE = Bundle.open(DRAFTER)
VOCABULARY = Vocabulary.open(BUNDLE)
STOP = BUNDLE.manifest.stop_tokens[0]
REQUEST = next(iter(requests(Split.EVALUATION, 1, seed=3)))
Handler = Callable[[httpx.Request], httpx.Response]


def events(*texts: str, finish: str | None = "stop") -> bytes:
    """A stream as OpenAI's servers send it."""
    chunks: list[object] = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}]
    chunks += [{"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} for text in texts]
    chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}, {"choices": [], "usage": {}}]
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def before(upstream: Upstream, question: Request) -> UpstreamBackend:
    """A question before an upstream."""
    prepared = Prepared(question, (), (), (1,), (1,), question.max_tokens or 64)
    return UpstreamBackend(upstream, prepared, Execution.unplanned(question), VOCABULARY, stop=STOP, seconds=60.0)


def answered(handler: Handler, question: Request, *, key: str | None = None) -> tuple[Generation, UpstreamBackend]:
    """What an answer becomes when `handler` is the server."""
    progress = Generation(time.perf_counter(), Transcript(VOCABULARY, question.stop))
    upstream = Upstream("https://there/v1", model="big", key=key, transport=httpx.MockTransport(handler))

    session = before(upstream, question)

    async def run() -> None:
        await session.extend(progress)
        await upstream.close()

    asyncio.run(run())
    progress.finish()
    return progress, session


def asking(**options: object) -> Request:
    return Request.about(REQUEST.image, "Which digits?", **options)


def test_what_it_is_asked() -> None:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=events("4 ", "3 7"))

    turns = (
        Message("system", (TextPart("Be brief."),)),
        Message("user", (ImagePart(), TextPart("Which digits?"))),
        Message("assistant", (TextPart("4 3 7"),)),
        Message("user", (TextPart("And their sum?"),)),
    )
    sampling = Sampling(temperature=0.5, top_p=0.9, seed=8)
    question = Request(messages=turns, images=(REQUEST.image,), sampling=sampling, max_tokens=12, stop=("!",))
    progress, session = answered(handle, question, key="secret")
    (request,) = seen
    assert str(request.url) == "https://there/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer secret"
    body = json.loads(request.content)
    picture = body["messages"][1]["content"][0]["image_url"]["url"]
    assert picture.startswith("data:image/png;base64,")
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
    assert body["messages"][3] == {"role": "user", "content": "And their sum?"}
    wanted = {"model": "big", "max_tokens": 12, "temperature": 0.5, "top_p": 0.9, "seed": 8, "stop": ["!"]}
    assert wanted.items() <= body.items()
    assert progress.transcript.text == "4 3 7"
    assert progress.tokens[-1] == STOP
    assert (session.bytes_up, session.bytes_down) == (len(request.content), len(events("4 ", "3 7")))


@pytest.mark.parametrize("kind", ["BMP", "GIF", "AVIF", "HEIF"])
def test_an_image_of_another_kind_goes_to_it_whole_as_one_that_it_reads(kind: str) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=events("4 3 7"))

    photograph = Image.linear_gradient("L").resize((400, 300)).convert("RGB")
    photograph.save(file := io.BytesIO(), kind)
    answered(handle, Request.about(file.getvalue(), "Which digits?"))
    body = json.loads(seen[0].content)
    label, _, content = body["messages"][0]["content"][0]["image_url"]["url"].partition(";base64,")
    sent = Image.open(io.BytesIO(base64.b64decode(content)))
    assert (label, sent.format) == ("data:image/png", "PNG")
    assert sent.convert("RGB").tobytes() == Image.open(file).convert("RGB").tobytes()


@pytest.mark.parametrize(
    "texts", [("The card ", "shows Ünïcödé 🙂."), ("<|im_end|> is ", "no mark here"), ("a" * 500,)]
)
def test_its_words_come_through_whole(texts: tuple[str, ...]) -> None:
    progress, _ = answered(lambda request: httpx.Response(200, content=events(*texts)), asking(max_tokens=600))
    assert progress.transcript.text == "".join(texts)


def test_an_answer_that_was_cut_short_is_not_whole() -> None:
    progress, _ = answered(lambda request: httpx.Response(200, content=events("The card", finish="length")), asking())
    assert progress.transcript.text == "The card"
    assert STOP not in progress.tokens


def test_one_that_says_more_than_it_was_asked_for_is_cut_short() -> None:
    progress, _ = answered(
        lambda request: httpx.Response(200, content=events("one two ", "three " * 90)), asking(max_tokens=5)
    )
    assert len(progress.tokens) == 5
    assert STOP not in progress.tokens


def test_its_answer_ends_when_the_agent_goes_offline() -> None:
    sent = list[int]()

    class Slow(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for index in range(100):
                sent.append(index)
                yield events("one ", finish=None).partition(b"data: [DONE]")[0]
                await asyncio.sleep(0.02)

    async def run() -> None:
        transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Slow()))
        upstream = Upstream("https://there/v1", model="big", transport=transport)
        async with Agent(BUNDLE, worker=None, threads=1, settings=AgentSettings(upstream=upstream)) as agent:
            told = list[object]()
            async for event in agent.stream(asking(mode=Mode.CLOUD)):
                if isinstance(event, Settled):
                    agent.offline = True
                told.append(event)
            answer = told[-1]
            assert isinstance(answer, Answer)
            assert answer.alone_from is not None
            assert "closed" in answer.lost[0].why
            assert len(sent) < 5
            agent.offline = False
            assert (await agent.answer(asking(mode=Mode.CLOUD, max_tokens=3))).alone_from is None

    asyncio.run(run())


def test_stop_words_end_it_here_too() -> None:
    texts = ("one tw", "o three", " four")
    progress, _ = answered(lambda request: httpx.Response(200, content=events(*texts)), asking(stop=("three",)))
    assert progress.transcript.text == "one two"
    assert progress.over


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (httpx.Response(401, text="secret detail"), AccessDenied),
        (httpx.Response(403), AccessDenied),
        (httpx.Response(429, headers={"retry-after": "7"}), WorkerBusy),
        (httpx.Response(400, text="secret detail"), WorkerFailed),
        (httpx.Response(302, headers={"location": "http://elsewhere"}), WorkerFailed),
        (httpx.Response(503), WorkerUnavailable),
        (httpx.Response(200, content=b"data: {not json\n\n"), WorkerFailed),
        (httpx.Response(200, content=b"data: \xff\n\n"), WorkerFailed),
        (httpx.Response(200, content=b"data: " + b"x" * (3 << 20)), WorkerFailed),
    ],
)
def test_how_it_may_refuse(response: httpx.Response, kind: type[CutlineError]) -> None:
    with pytest.raises(kind) as raised:
        answered(lambda request: response, asking(), key="secret")
    assert "secret" not in str(raised.value)
    if isinstance(raised.value, WorkerBusy):
        assert raised.value.retry_seconds == 7.0


def test_a_link_that_breaks_keeps_what_came() -> None:
    class Breaking(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield events("The card", finish=None).partition(b"data: [DONE]")[0]
            raise httpx.ReadError("gone")

    progress = Generation(time.perf_counter(), Transcript(VOCABULARY))
    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Breaking()))

    async def run() -> None:
        upstream = Upstream("https://there/v1", model="big", transport=transport)
        with pytest.raises(WorkerUnavailable):
            await before(upstream, asking()).extend(progress)

    asyncio.run(run())
    assert progress.transcript.text == "The card"


def test_nobody_there_is_said_in_one_line() -> None:
    async def run() -> None:
        upstream = Upstream("http://127.0.0.1:1/v1", model="big")
        progress = Generation(time.perf_counter(), Transcript(VOCABULARY))
        with pytest.raises(WorkerUnavailable, match="no server answers"):
            await before(upstream, asking()).extend(progress)
        await upstream.close()

    asyncio.run(run())


def test_what_a_connection_takes_is_seen_where_one_is_made() -> None:
    """A server of its own, over TCP: the first question makes a connection, the second goes into the same one."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(size.partition(b":")[2]))
                said = events("4 ", "3 7")
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(said) + said)
                await writer.drain()
        writer.close()

    async def run() -> list[Generation]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        upstream = Upstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", model="big")
        seen = []
        for _ in range(2):
            seen.append(progress := Generation(time.perf_counter(), Transcript(VOCABULARY)))
            await before(upstream, asking()).extend(progress)
        await upstream.close()
        server.close()
        await server.wait_closed()
        return seen

    first, second = asyncio.run(run())
    assert first.connecting is not None
    assert first.connecting > 0
    assert second.connecting is None
    assert (first.cold, second.cold) == (True, False)
    assert set(first.parts.seconds) == {"link", "cloud"}
    assert set(second.parts.seconds) == {"cloud"}
    for progress in (first, second):
        ((at, size),) = progress.sent
        assert progress.first is not None
        assert progress.last is not None
        assert progress.began < at < progress.first <= progress.last
        assert size > 4 * len(REQUEST.image) / 3


@pytest.mark.parametrize(
    "url",
    ["http://192.0.2.1/v1", "http://there/v1", "there/v1", "ftp://there", "http://", "http://me:pass@there/v1", ""],
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(InputError):
        Upstream(url, model="big")


def test_a_key_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text("from-file\n")
    monkeypatch.setenv(KEY, "from-environment")
    assert open_key(file) == "from-file"
    assert open_key(None) == "from-environment"
    for wrong in ("two\nlines", "ключ", " "):
        monkeypatch.setenv(KEY, wrong)
        with pytest.raises(InputError, match=KEY):
            open_key(None)
    monkeypatch.delenv(KEY)
    assert open_key(None) is None
    for content in (b"", b"two\nlines", b"\xff\xfe", "ключ".encode()):
        file.write_bytes(content)
        with pytest.raises(InputError):
            open_key(file)
    with pytest.raises(InputError, match="cannot be read"):
        open_key(tmp_path / "none")


def agent_asks(
    handler: Handler, *questions: Request, gate: float = 2.0, memory: SemanticCache | None = None
) -> list[Answer | CutlineError]:
    """What an agent with an upstream answers; its gate keeps what has more confidence than `gate`."""

    async def run() -> list[Answer | CutlineError]:
        upstream = Upstream("https://there/v1", model="big", transport=httpx.MockTransport(handler))
        answers: list[Answer | CutlineError] = []
        async with Agent(
            gated(BUNDLE, keeps_from(gate, against=upstream_named("big"))),
            threads=1,
            target=Bundle.open(TARGET),
            settings=AgentSettings(upstream=upstream, memory=memory),
        ) as agent:
            for question in questions:
                try:
                    answers.append(await agent.answer(question))
                except CutlineError as error:
                    answers.append(error)
        return answers

    return asyncio.run(run())


def test_an_agent_asks_it_where_the_gate_does_not_keep() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=events("4 ", "3 7"))

    for mode in (Mode.CLOUD, Mode.AUTO):
        (answer,) = agent_asks(handle, asking(mode=mode))
        assert isinstance(answer, Answer)
        assert (answer.text, answer.exact, answer.worker) == ("4 3 7", None, "https://there/v1")
        assert {token.source for token in answer.tokens} == {Provenance.CLOUD}
        assert answer.complete
        assert min(answer.bytes_up, answer.bytes_down) > 0
    (kept,) = agent_asks(handle, asking(), gate=0.0)
    assert isinstance(kept, Answer)
    assert (kept.exact, kept.worker, kept.bytes_up) == (False, None, 0)


def test_where_it_fails_the_drafter_goes_on_and_says_so() -> None:
    handle = httpx.Response(503)
    (alone,) = agent_asks(lambda request: handle, asking())
    (edge,) = agent_asks(lambda request: handle, asking(mode=Mode.EDGE))
    assert isinstance(alone, Answer)
    assert isinstance(edge, Answer)
    assert alone.tokens == edge.tokens
    assert (alone.exact, alone.alone_from, alone.worker) == (False, 0, None)
    assert [one.worker for one in alone.lost] == ["https://there/v1"]
    (failed,) = agent_asks(lambda request: handle, asking(mode=Mode.CLOUD))
    assert isinstance(failed, WorkerUnavailable)


def test_what_only_a_worker_can_do_is_refused() -> None:
    (refused,) = agent_asks(lambda request: httpx.Response(500), asking(mode=Mode.DRAFT))
    assert isinstance(refused, InputError)
    assert "needs a worker of the target" in str(refused)
    asked: list[httpx.Request] = []
    (hidden,) = agent_asks(asked.append, asking(cut="decoder.0", noise=1.0))  # type: ignore[arg-type]
    assert isinstance(hidden, InputError)
    assert "the cut decoder.0 needs a worker of the target" in str(hidden)
    assert not asked, "the picture stays"
    for sampling in (
        Sampling(min_p=0.1),
        Sampling(repetition_penalty=1.0),
        Sampling(logit_bias=((5, 1.0),)),
        Sampling(stop_token_ids=(5,)),
    ):
        (refused,) = agent_asks(asked.append, asking(mode=Mode.CLOUD, sampling=sampling))  # type: ignore[arg-type]
        assert isinstance(refused, InputError)
        assert "needs a worker of the target; an upstream is asked for nothing of the kind" in str(refused)
    assert not asked
    with pytest.raises(InputError, match="one or the other"):
        Agent(
            BUNDLE,
            worker="127.0.0.1:1",
            threads=1,
            settings=AgentSettings(upstream=Upstream("https://there", model="big")),
        )


def test_an_answer_in_memory_is_given_again() -> None:
    asked: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, content=events("4 3 7"))

    question = asking(mode=Mode.CLOUD)
    first, second = agent_asks(handle, question, question, memory=SemanticCache(60.0))
    assert len(asked) == 1
    assert isinstance(first, Answer)
    assert isinstance(second, Answer)
    assert first.recalled is None
    assert second.recalled is not None
    assert (second.text, second.tokens) == (first.text, first.tokens)
    assert (second.bytes_up, second.worker, second.exact, second.recalled.distance) == (0, None, False, 0.0)
