"""The server as strangers meet it: raw connections, slow ones, browsers, and clients that vanish."""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client import Gauge

from cutline.bench.scripted import ScriptedAgent, spoken, told
from cutline.cli.certificates import SERVER, Authority
from cutline.edge.answer import Source, Token
from cutline.edge.api import guarding, secured, streaming
from cutline.edge.api import serving as server
from cutline.edge.api.faults import Refused
from cutline.edge.api.requests import ChatRequest
from cutline.edge.api.serving import names_of
from cutline.edge.events import Planned, Settled
from cutline.edge.question import Mode, Question
from cutline.edge.state import Breaker, WorkerState
from cutline.errors import InputError, WorkerUnavailable
from cutline.protos.security import ServerKeys
from cutline.protos.tokens import Limits, Tokens, token_entry

Serving = Callable[..., AbstractAsyncContextManager[str]]

PATH = "/v1/chat/completions"
BODY = msgspec.json.encode(ChatRequest.asking(Question.about(b"any", "What?", mode=Mode.DRAFT)))
STREAMED = msgspec.json.encode(msgspec.json.decode(BODY) | {"stream": True})
PLANNED = Planned(mode=Mode.DRAFT, cut="image", wire=None)


def request(body: bytes, *more: str, length: int | None = None, host: str = "localhost") -> bytes:
    lines = [f"POST {PATH} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, *more, "", ""]).encode() + body


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def reply(url: str, sent: bytes) -> tuple[int, bytes]:
    """The status and the body that come back for `sent`; the connection must be closed by the server."""
    reader, writer = await connect(url)
    writer.write(sent)
    got = b""
    with suppress(ConnectionResetError):  # a server that does not want the rest may say so as well
        got = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    head, _, body = got.partition(b"\r\n\r\n")
    return (int(head.split()[1]), body) if head else (0, b"")


CLOSE = "Connection: close"


@pytest.mark.threat("doors")
@pytest.mark.parametrize(
    ("host", "more", "status"),
    [
        ("localhost:8080", [], 200),
        ("127.0.0.1", [], 200),
        ("[::1]:1", [], 200),
        ("LOCALHOST", [], 200),
        ("rebound.example", [], 421),
        ("localhost.example:80", [], 421),
        ("127.0.0.1.example", [], 421),
        ("", [], 421),
        ("localhost", ["Origin: https://other.example"], 403),
        ("localhost", ["Origin: null"], 403),
        ("localhost:1", ["Origin: http://localhost:2"], 403),
        ("localhost:1", ["Origin: http://localhost:1"], 200),
        ("localhost", ["Content-Type: text/plain"], 415),
        ("localhost", ["Content-Type: application/x-www-form-urlencoded"], 415),
        ("localhost", ["Content-Type: application/json; charset=utf-8"], 200),
    ],
)
def test_who_may_ask(agent: ScriptedAgent, serving: Serving, host: str, more: list[str], status: int) -> None:
    agent.always = [spoken("7")]

    async def run() -> None:
        async with serving() as url:
            got, body = await reply(url, request(BODY, CLOSE, *more, host=host))
        assert got == status
        if status != 200:
            assert msgspec.json.decode(body)["error"]["message"]
            assert agent.asked == []

    asyncio.run(run())


def test_names_are_held_to_where_only_this_machine_can_ask() -> None:
    assert names_of("127.0.0.1") == names_of("localhost") == names_of("[::1]")
    assert "127.0.0.2" in (names_of("127.0.0.2") or ())
    assert names_of("0.0.0.0") is None  # noqa: S104 - an address, not a listener
    assert names_of("192.168.1.7") is None


@pytest.mark.threat("floods")
@pytest.mark.parametrize(
    ("sent", "constant", "status"),
    [
        (b"", "HEAD_SECONDS", 0),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Sl", "HEAD_SECONDS", 0),
        (request(BODY[:10], length=len(BODY)), "BODY_SECONDS", 408),
        (request(b"", length=guarding.MAX_BODY + 1, host="localhost") + b"x" * 10, "BODY_SECONDS", 408),
    ],
    ids=["nothing", "half a head", "half a body", "a large body that does not come"],
)
def test_the_slow_are_not_waited_for(
    agent: ScriptedAgent,
    serving: Serving,
    monkeypatch: pytest.MonkeyPatch,
    sent: bytes,
    constant: str,
    status: int,
) -> None:
    monkeypatch.setattr(server if constant == "HEAD_SECONDS" else guarding, constant, 0.1)

    async def run() -> None:
        async with serving() as url:
            got, _ = await asyncio.wait_for(reply(url, sent), 5)
        assert got == status

    asyncio.run(run())


@pytest.mark.threat("floods")
@pytest.mark.parametrize("count", [200, 1000, 5000])
def test_a_head_without_end_is_refused(agent: ScriptedAgent, serving: Serving, count: int) -> None:
    async def run() -> int:
        async with serving() as url:
            many = [f"X-{index}: {'y' * 100}" for index in range(count)]
            return (await reply(url, request(BODY, CLOSE, *many)))[0]

    assert asyncio.run(run()) in (0, 400, 431)  # by whether it came in one piece, or was still coming
    assert agent.asked == []


@pytest.mark.threat("floods")
def test_connections_are_bounded(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 2)

    async def run() -> None:
        async with serving() as url:
            held = [await connect(url) for _ in range(2)]
            assert (await _get(url, "/healthz")).status_code == 200, "the silent do not keep others out"
            await ended(held[0][0])
            for _, one in held:
                one.close()

    asyncio.run(run())


async def ended(reader: asyncio.StreamReader) -> None:
    """Waits until the server has closed a connection."""
    with suppress(ConnectionResetError):  # an end is as good
        assert await asyncio.wait_for(reader.read(), 5) == b""


@pytest.mark.threat("floods")
def test_who_waits_for_an_answer_keeps_the_connection(
    agent: ScriptedAgent, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 2)
    agent.always = [PLANNED, math.inf]

    async def run() -> None:
        async with serving() as url:
            asking = [await connect(url) for _ in range(2)]
            for count, (_, writer) in enumerate(asking, start=1):
                writer.write(request(STREAMED))
                await agent.reaches(asked=count)
            late, writer = await connect(url)
            await ended(late)
            assert agent.given_up == 0
            for _, one in [*asking, (late, writer)]:
                one.close()

    asyncio.run(run())


@pytest.mark.threat("floods")
def test_a_connection_counts_before_its_handshake(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 3)
    authority = Authority.make(tmp_path)
    pair = authority.sign("server", SERVER, hosts=["127.0.0.1"])
    keys = ServerKeys(certificate=pair.certificate, key=pair.key)
    context = ssl.create_default_context(cafile=tmp_path / "ca.crt")

    async def run() -> None:
        async with serving(keys=keys) as url:
            silent = [await connect(url) for _ in range(5)]
            for reader, _ in silent[:2]:
                await ended(reader)
            secure = url.replace("http:", "https:")
            async with httpx.AsyncClient(base_url=secure, verify=context, trust_env=False) as client:
                assert (await client.get("/healthz")).status_code == 200
            await ended(silent[2][0])
            for _, one in silent:
                one.close()
        monkeypatch.setattr(secured, "HANDSHAKE_SECONDS", 0.1)
        async with serving(keys=keys) as url:
            reader, writer = await connect(url)
            await ended(reader)
            writer.close()

    asyncio.run(run())


def holders(tmp_path: Path, limits: str = "") -> Tokens:
    """Two tenants, each of whom has its name as token; `limits` stand in the file, too."""
    file = tmp_path / "tokens.toml"
    file.write_text(token_entry("one", "one") + token_entry("other", "other") + limits)
    return Tokens(file, agent=True)


def bearing(url: str, tenant: str) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {tenant}"}
    return httpx.AsyncClient(base_url=url, headers=headers, trust_env=False)


@pytest.mark.threat("caches")
def test_whose_question_it_is_goes_along(agent: ScriptedAgent, serving: Serving, tmp_path: Path) -> None:
    agent.always = [spoken("7")]

    async def run() -> None:
        async with serving(tokens=holders(tmp_path)) as url:
            for tenant in ("one", "other"):
                async with bearing(url, tenant) as client:
                    assert (await client.post(PATH, content=BODY)).status_code == 200
                    forged = msgspec.json.decode(BODY) | {"tenant": "other"}
                    assert (await client.post(PATH, json=forged)).status_code == 400
        async with serving() as url, bearing(url, "one") as client:
            await client.post(PATH, content=BODY)

    asyncio.run(run())
    assert [one.tenant for one in agent.asked] == ["one", "other", ""]


def test_each_tenant_has_what_its_limits_say(agent: ScriptedAgent, serving: Serving, tmp_path: Path) -> None:
    agent.enqueue(math.inf)
    agent.always = [spoken("7")]

    async def run() -> tuple[httpx.Response, httpx.Response]:
        async with (
            serving(tokens=holders(tmp_path, "[tenant.one]\nsessions = 1\n")) as url,
            bearing(url, "one") as first,
            bearing(url, "other") as second,
        ):
            long = asyncio.create_task(first.post(PATH, content=BODY))
            await agent.reaches(asked=1)
            found = await first.post(PATH, content=BODY), await second.post(PATH, content=BODY)
            long.cancel()
            await asyncio.wait([long])
            await agent.reaches(given_up=1)
            return found

    refused, answered = asyncio.run(run())
    assert (refused.status_code, answered.status_code) == (429, 200)
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "WorkerBusy"


def test_openings_are_held_to_their_rate() -> None:
    now = 100.0
    desk = guarding.Desk(8, Gauge("g", "g", registry=None), lambda tenant: Limits(openings_per_minute=12), lambda: now)

    def opened(tenant: str) -> bool:
        try:
            with desk.place(tenant):
                return True
        except Refused:
            return False

    began = sum(opened("one") for _ in range(50))
    assert began == 3, "what ten seconds give, and the one that goes over it"
    assert opened("other")
    later = 0
    for _ in range(600):
        now += 1.0
        later += opened("one")
    assert later == pytest.approx(120, abs=1)


@pytest.mark.threat("floods")
def test_a_body_that_does_not_come_takes_no_place(
    agent: ScriptedAgent, serving: Serving, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(guarding, "MOST_BODIES", 4)
    agent.always = [spoken("7")]

    async def slow(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await connect(url)
        writer.write(request(BODY[:10], "Authorization: Bearer one", length=len(BODY)))
        await asyncio.sleep(0.05)
        return reader, writer

    async def run() -> None:
        async with serving(most=1, tokens=holders(tmp_path)) as url:
            held = [await slow(url) for _ in range(2)]
            async with bearing(url, "other") as client:
                assert (await client.post(PATH, content=BODY)).status_code == 200
            status, body = await reply(url, request(BODY, "Authorization: Bearer one"))
            assert status == 429, "one tenant reads half of them at most"
            assert msgspec.json.decode(body)["error"]["code"] == "rate_limit_exceeded"
            for _, writer in held:
                writer.close()
            await asyncio.sleep(0.05)
            async with bearing(url, "one") as client:
                assert (await client.post(PATH, content=BODY)).status_code == 200

    asyncio.run(run())


@pytest.mark.threat("floods")
def test_all_bodies_together_have_a_size(
    agent: ScriptedAgent, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarding, "BODIES", 3000)
    agent.always = [spoken("7")]

    async def run() -> None:
        async with serving() as url:
            _, writer = await connect(url)
            writer.write(request(b" " * 2900, length=3000))
            await asyncio.sleep(0.05)
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                assert (await client.post(PATH, content=BODY + b" " * 200)).status_code == 429
                writer.close()
                await asyncio.sleep(0.05)
                assert (await client.post(PATH, content=BODY + b" " * 200)).status_code == 200

    asyncio.run(run())


@pytest.mark.threat("doors")
def test_what_was_started_offline_stays_so(agent: ScriptedAgent, serving: Serving) -> None:
    agent.offline = True

    async def run() -> list[httpx.Response]:
        async with serving() as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
            changes = [await client.post("/cutline/state", json={"offline": offline}) for offline in (False, True)]
            return [*changes, await client.get("/cutline/state")]

    undone, same, state = asyncio.run(run())
    assert (undone.status_code, same.status_code) == (409, 200)
    assert "started with --offline" in undone.json()["error"]["message"]
    assert agent.offline
    assert (state.json()["offline"], state.json()["switchable"]) == (True, False)


@pytest.mark.threat("doors")
def test_no_tenant_takes_the_agent_offline_for_all(agent: ScriptedAgent, serving: Serving, tmp_path: Path) -> None:
    async def run() -> list[httpx.Response]:
        async with serving(tokens=holders(tmp_path)) as url, bearing(url, "one") as client:
            return [await client.post("/cutline/state", json={"offline": True}), await client.get("/cutline/state")]

    refused, state = asyncio.run(run())
    assert refused.status_code == 403
    assert not agent.offline
    assert state.json()["switchable"] is False


@pytest.mark.parametrize("body", [BODY, STREAMED], ids=["whole", "streamed"])
def test_a_client_that_vanishes_takes_its_answer_along(agent: ScriptedAgent, serving: Serving, body: bytes) -> None:
    agent.always = [PLANNED, math.inf]

    async def run() -> None:
        async with serving() as url:
            _, writer = await connect(url)
            writer.write(request(body))
            await agent.reaches(asked=1)
            writer.close()
            await asyncio.wait_for(agent.reaches(given_up=1), 5)
            counts = (await _get(url, "/metrics")).text
        assert 'cutline_agent_requests_total{mode="draft",status="499"} 1.0' in counts
        assert "cutline_agent_requests_in_work 0.0" in counts

    asyncio.run(run())


async def _get(url: str, path: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        return await client.get(path)


def test_silence_is_filled(agent: ScriptedAgent, serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE", 0.05)
    agent.enqueue(PLANNED, 0.3, *told(spoken("7"))[1:])

    async def run() -> str:
        async with serving() as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
            response = await client.post(PATH, content=STREAMED)
            assert response.headers["content-type"].startswith("text/event-stream")
            return response.text

    text = asyncio.run(run())
    assert text.count(": waiting\n\n") >= 2
    assert text.endswith("data: [DONE]\n\n")


def test_a_reader_that_does_not_read_is_left(
    agent: ScriptedAgent, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "STALL_SECONDS", 1)
    long = Settled(0, tuple(Token(100, "x" * 1000, Source.EDGE) for _ in range(200)))
    agent.always = [PLANNED, *[long] * 200, math.inf]

    async def run() -> None:
        async with serving() as url:
            _, writer = await connect(url)
            writer.write(request(STREAMED))
            await asyncio.wait_for(agent.reaches(given_up=1), 20)
            writer.transport.abort()

    asyncio.run(run())


def test_a_server_that_stops_says_so_in_the_stream(
    agent: ScriptedAgent, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "STOP_SECONDS", 0.1)
    agent.always = [PLANNED, math.inf]

    async def run() -> bytes:
        async with serving() as url:
            reader, writer = await connect(url)
            writer.write(request(STREAMED))
            await agent.reaches(asked=1)
        got = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        return got

    got = asyncio.run(run())
    assert b'"type":"WorkerUnavailable"' in got
    assert b"[DONE]" not in got
    assert agent.given_up == 1


def test_no_piece_waits_for_the_one_before_to_be_acknowledged(agent: ScriptedAgent, serving: Serving) -> None:
    """As Nagle's rule would have it, for 40 ms each: asyncio does not switch it off for a socket that it was given."""
    agent.always = told(spoken(*"a card with digits on it"))

    async def run() -> float:
        async with serving() as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
            times = []
            for _ in range(20):
                began = time.perf_counter()
                await client.post(PATH, content=STREAMED)
                times.append(time.perf_counter() - began)
            return min(times)

    assert asyncio.run(run()) < 0.035


def test_the_page_runs_nothing_but_itself(serving: Serving) -> None:
    async def run() -> list[httpx.Response]:
        async with serving() as url:
            return [await _get(url, path) for path in ("/", "/page.css", "/page.js")]

    page, css, script = asyncio.run(run())
    assert page.status_code == css.status_code == script.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert css.headers["content-type"].startswith("text/css")
    assert script.headers["content-type"].startswith("text/javascript")
    policy = dict(one.split(" ", 1) for one in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["x-frame-options"] == "DENY"
    assert "<script>" not in page.text
    assert "style=" not in page.text


def test_the_state_and_its_switch(agent: ScriptedAgent, serving: Serving) -> None:
    far = WorkerState(address="a:1", connected=False, breaker=Breaker.OPEN, retry_seconds=3.0, rtt_ms=9.0)
    near = WorkerState(address="b:1", connected=True, rtt_ms=40.0, uplink_mbps=3.5)
    agent.now = msgspec.structs.replace(agent.now, workers=(far, near))
    agent.always = [spoken("a", "b", stop=2)]

    async def run() -> tuple[Any, ...]:
        async with serving() as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
            await client.post(PATH, content=BODY)
            before = (await client.get("/cutline/state")).json()
            after = (await client.post("/cutline/state", json={"offline": True})).json()
            wrong = await client.post("/cutline/state", json={"offline": True, "fast": True})
            origin = {"origin": "http://other.example"}
            foreign = await client.post("/cutline/state", json={"offline": False}, headers=origin)
            ready = await client.get("/readyz")
            agent.now = msgspec.structs.replace(agent.now, ready=False)
            return before, after, wrong.status_code, foreign.status_code, ready, await client.get("/readyz")

    before, after, wrong, foreign, ready, unready = asyncio.run(run())
    assert before["link"] == {"rtt_ms": 40.0, "uplink_mbps": 3.5}
    assert before["workers"][0]["breaker"] == "open"
    tokens = {"edge": 0, "draft": 3, "cloud": 0}
    assert before["totals"] == {
        "answers": 1, "tokens": tokens, "bytes_up": 100, "bytes_down": 20, "joules": None, "lost": 0
    }  # fmt: skip
    assert (before["offline"], after["offline"], agent.offline) == (False, True, True)
    assert before["switchable"]
    assert after["switchable"]
    assert (wrong, foreign) == (400, 403)
    assert (ready.status_code, unready.status_code) == (200, 503)
    assert unready.json()["ready"] is False
    assert ready.json()["workers"][1]["address"] == "b:1"


def test_what_is_counted(agent: ScriptedAgent, serving: Serving) -> None:
    kept = msgspec.structs.replace(spoken("a", source=Source.EDGE), mode=Mode.AUTO, confidence=0.9, worker=None)
    agent.enqueue(kept)
    agent.enqueue(*told(msgspec.structs.replace(spoken("a", "b"), mode=Mode.AUTO, confidence=0.2)))
    agent.enqueue(WorkerUnavailable("nobody there"))

    async def run() -> str:
        async with serving() as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
            for body in (BODY, STREAMED, BODY, b"{"):
                await client.post(PATH, content=body)
            return (await client.get("/metrics")).text

    text = asyncio.run(run())
    for line in (
        'cutline_agent_requests_total{mode="auto",status="200"} 2.0',
        'cutline_agent_requests_total{mode="draft",status="503"} 1.0',
        'cutline_agent_requests_total{mode="none",status="400"} 1.0',
        'cutline_agent_gate_total{kept="yes"} 1.0',
        'cutline_agent_gate_total{kept="no"} 1.0',
        'cutline_agent_tokens_total{source="edge"} 1.0',
        'cutline_agent_tokens_total{source="draft"} 2.0',
        'cutline_agent_bytes_total{direction="up"} 200.0',
        'cutline_agent_latency_seconds_count{mode="auto"} 2.0',
        'cutline_agent_first_token_seconds_count{mode="auto"} 2.0',
        "cutline_agent_rounds_total 2.0",
    ):
        assert line in text, text


@pytest.mark.parametrize("options", [{"most": 0}, {"listen": "127.0.0.1"}, {"allow_urls": ["http://host/"]}])
def test_what_cannot_be_served(serving: Serving, options: dict[str, Any]) -> None:
    async def run() -> None:
        async with serving(**options):
            pass

    with pytest.raises(InputError):
        asyncio.run(run())
