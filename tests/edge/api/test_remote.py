"""Cutline's own client: what it asks and reads comes through whole, and what went wrong is raised anew."""

from __future__ import annotations

import asyncio

import httpx
import msgspec
import pytest

from cutline.core.request import Mode, Request
from cutline.core.sampling import Sampling
from cutline.core.wire import Wire
from cutline.edge.api import client as remote
from cutline.edge.api.app import application
from cutline.edge.api.errors import STATUS
from cutline.edge.generation.events import Event, Guessed, Settled
from cutline.edge.generation.result import Answer, Believed, Energy, Forecast, Likely, Lost, Provenance, Tail, Token
from cutline.errors import BundleError, CutlineError, ImageError, InputError, PromptError, WorkerBusy, WorkerUnavailable
from cutline.testing.agent import ScriptedAgent, spoken


def ask_over(agent: ScriptedAgent, question: Request) -> Answer:
    """Ask through the client: its request goes to the application of `agent`."""

    return asked_over(httpx.ASGITransport(application(agent), raise_app_exceptions=False), question)


def asked_over(transport: httpx.AsyncBaseTransport, question: Request) -> Answer:
    async def ask() -> Answer:
        async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
            return await remote.ask_over(client, question)

    return asyncio.run(ask())


QUESTION = Request.about(
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
ANSWER = msgspec.structs.replace(
    spoken("7", source=Provenance.DRAFT),
    tokens=[Token(12, "7", Provenance.DRAFT), Token(2, "", Provenance.CLOUD)],
    cut="decoder.2",
    wire=Wire.INT8,
    complete=True,
)


def test_question_and_answer_go_there_and_back_whole(agent: ScriptedAgent) -> None:
    agent.enqueue(ANSWER)
    assert ask_over(agent, QUESTION) == ANSWER
    (asked,) = agent.asked
    assert asked.request_id
    assert msgspec.structs.replace(asked, request_id="") == QUESTION


def test_an_answer_is_told_as_it_comes(agent: ScriptedAgent) -> None:
    async def told() -> list[Event]:
        transport = httpx.ASGITransport(application(agent), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
            return [event async for event in remote.stream_over(client, QUESTION)]

    tokens = (Token(12, "7", Provenance.EDGE), Token(13, " 8", Provenance.CLOUD))
    agent.enqueue(Guessed(0, "7"), Settled(0, tokens[:1]), Settled(1, tokens[1:]), ANSWER)
    *events, last = asyncio.run(told())
    assert last == ANSWER
    assert events == [Guessed(0, "7"), Settled(0, tokens[:1]), Settled(1, tokens[1:])]
    agent.enqueue(WorkerBusy("no room", retry_seconds=2.0))
    with pytest.raises(WorkerBusy, match="no room"):
        asyncio.run(told())


def test_all_that_an_answer_may_hold_comes_back_whole(agent: ScriptedAgent) -> None:
    answer = msgspec.structs.replace(
        ANSWER,
        tokens=[Token(12, "7", Provenance.EDGE, -0.5, (Likely(13, "8", -1.5),))],
        lost=(Lost(worker="w:1", why="silent", position=1, silent_ms=900.0, next=None),),
        alone_from=1,
        tail=Tail.CORRECTED,
        energy=Energy(joules=0.25, estimated=True),
        parts_ms={"prepare": 1.0, "upload": 2.0},
        reused_images=1,
        reused_tokens=64,
    )
    agent.enqueue(answer)
    assert ask_over(agent, QUESTION) == answer


def test_what_bounds_a_plan_and_the_plan_go_there_and_back_whole(agent: ScriptedAgent) -> None:
    asked = Request.about(
        b"any", "What?", exact=True, image_must_stay=True, max_latency_ms=250.0, min_agreement=0.75, max_leak=0.5
    )
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
    agent.enqueue(msgspec.structs.replace(ANSWER, plan=plan))
    assert ask_over(agent, asked).plan == plan
    assert [msgspec.structs.replace(one, request_id="") for one in agent.asked] == [asked]


@pytest.mark.parametrize("kind", list(STATUS))
def test_the_client_raises_what_the_agent_raised(agent: ScriptedAgent, kind: type[CutlineError]) -> None:
    agent.enqueue(kind("what was wrong; what to do"))
    with pytest.raises(CutlineError) as raised:
        ask_over(agent, QUESTION)
    assert type(raised.value) is kind
    assert str(raised.value) == "what was wrong; what to do"


def test_when_to_try_again_comes_back(agent: ScriptedAgent) -> None:
    agent.enqueue(WorkerBusy("no room", retry_seconds=2.3))
    with pytest.raises(WorkerBusy) as raised:
        ask_over(agent, QUESTION)
    assert raised.value.retry_seconds == 3.0


def test_an_agent_is_waited_for_as_long_as_it_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = list[float | None]()

    async def noted(client: httpx.AsyncClient, question: Request) -> Answer:
        waits.append(client.timeout.read)
        return ANSWER

    monkeypatch.setattr(remote, "ask_over", noted)
    for more in (0.0, 300.0):
        asked = msgspec.structs.replace(QUESTION, correct_seconds=more)
        asyncio.run(remote.ask_agent("http://127.0.0.1:1", asked))
    first, later = (wait or 0.0 for wait in waits)
    assert later - first == 300.0
    assert first >= QUESTION.timeout + 60.0, "a board drafts outside what a worker is allowed"


def leaves(kind: type[CutlineError]) -> set[type[CutlineError]]:
    below = kind.__subclasses__()
    return {kind} if not below else set().union(*map(leaves, below))


def test_every_exception_of_an_answer_has_a_status() -> None:
    ours = {kind for kind in leaves(CutlineError) if kind.__module__ == "cutline.errors"}
    assert {kind.__name__ for kind in ours - set(STATUS)} == {"ProfileError", "StorageError", "NotBetter"}, (
        "an agent that answers reads no profiles, writes no files, and teaches no drafter"
    )
    assert {InputError, BundleError, ImageError, PromptError, WorkerUnavailable} <= set(STATUS)


def test_a_kind_of_its_own_is_raised_as_what_it_is_a_kind_of(agent: ScriptedAgent) -> None:
    class Silent(WorkerUnavailable):
        pass

    agent.enqueue(Silent("nothing was heard"))
    with pytest.raises(WorkerUnavailable, match="nothing was heard"):
        ask_over(agent, QUESTION)


@pytest.mark.parametrize(
    "answer",
    [httpx.Response(200, content=b"<html>"), httpx.Response(200, content=b"{}"), httpx.Response(502, content=b"oops")],
)
def test_another_servers_answer(answer: httpx.Response) -> None:
    with pytest.raises(InputError, match="not a Cutline agent"):
        asked_over(httpx.MockTransport(lambda _: answer), QUESTION)


def test_an_agents_bug_is_no_input_error(agent: ScriptedAgent) -> None:
    agent.enqueue(RuntimeError("secret"))
    with pytest.raises(CutlineError) as raised:
        ask_over(agent, QUESTION)
    assert raised.value.exit_code == 1


@pytest.mark.parametrize("url", ["127.0.0.1:1", "", "http://[::1", "ftp://127.0.0.1", "http://\x00"])
def test_what_is_no_url_of_an_agent(url: str) -> None:
    with pytest.raises(InputError, match="agent"):
        asyncio.run(remote.ask_agent(url, QUESTION))


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://a b"])
def test_no_agent_at_the_address(url: str) -> None:
    with pytest.raises(WorkerUnavailable, match="no agent answers"):
        asyncio.run(remote.ask_agent(url, QUESTION))


def test_a_question_that_no_message_can_carry() -> None:
    with pytest.raises(PromptError):
        Request.about(b"", "\udcff")
