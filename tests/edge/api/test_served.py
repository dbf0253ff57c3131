"""What is served beside answers: the page, the agent's state and its switch, and what is counted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from cutline.core.escalations.recorder import JournalCounts
from cutline.core.request import Mode
from cutline.edge.api.access.login import PATH as LOG_IN
from cutline.edge.api.app import Later, application
from cutline.edge.api.metrics import AgentMetrics
from cutline.edge.generation.result import Answer, Audited, Decision, Gated, Provenance, Recalled, Tail
from cutline.edge.offload.status import Breaker, WorkerState
from cutline.errors import InputError, WorkerUnavailable
from cutline.testing.agent import ScriptedAgent, spoken, told
from cutline.testing.raw_http import BODY, PATH, STREAMED

Serving = Callable[..., AbstractAsyncContextManager[str]]

API = Path(__file__).parents[3] / "docs/reference/api.md"


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


def test_the_page_runs_nothing_but_itself(serving: Serving) -> None:
    async def run() -> list[httpx.Response]:
        html = {"accept": "text/html"}
        async with serving() as url, httpx.AsyncClient(base_url=url, headers=html, trust_env=False) as browser:
            return [await browser.get(path) for path in ("/", "/page.css", "/page.js")]

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
        "answers": 1, "tokens": tokens, "bytes_up": 100, "bytes_down": 20, "joules": None, "estimated": False,
        "lost": 0
    }  # fmt: skip
    assert (before["offline"], after["offline"], agent.offline) == (False, True, True)
    assert before["switchable"]
    assert after["switchable"]
    assert (wrong, foreign) == (400, 403)
    assert (ready.status_code, unready.status_code) == (200, 503)
    assert unready.json()["ready"] is False
    assert ready.json()["workers"][1]["address"] == "b:1"


def gated(answer: Answer, decision: Decision, group: str = "plain") -> Answer:
    """An answer in mode auto of which the gate decided so."""
    said = Gated(group=group, calibrated=True, decision=decision)
    return msgspec.structs.replace(answer, mode=Mode.AUTO, gate=said)


def test_what_was_recalled_or_finished_alone_no_gate_has_kept() -> None:
    counts = AgentMetrics()
    kept = gated(spoken("a", source=Provenance.EDGE), Decision.KEPT)
    recalled = gated(msgspec.structs.replace(kept, recalled=Recalled(age_ms=1.0, distance=0.0)), Decision.RECALLED)
    alone = gated(msgspec.structs.replace(kept, alone_from=0, tail=Tail.UNVERIFIED), Decision.PASSED)
    for answer in (kept, recalled, alone, gated(kept, Decision.NOT_ASKED), gated(kept, Decision.KEPT, "another")):
        counts.answered(answer)
    audited = {"a": Audited(audited=7, disagreed=2, at_most=0.6, shut=True)}
    lines = counts.text(audited, JournalCounts(kept=3, lost=1, size=9)).decode().splitlines()
    assert 'cutline_agent_audited{agreed="no",group="a"} 2.0' in lines
    assert 'cutline_agent_gate_shut{group="a"} 1.0' in lines
    assert 'cutline_agent_journal{what="lost"} 1.0' in lines
    assert "cutline_agent_journal_bytes 9.0" in lines
    assert sorted(line for line in lines if line.startswith("cutline_agent_gate_total")) == [
        'cutline_agent_gate_total{group="another",kept="yes"} 1.0',
        'cutline_agent_gate_total{group="plain",kept="no"} 1.0',
        'cutline_agent_gate_total{group="plain",kept="yes"} 1.0',
    ]
    assert "cutline_agent_recalled_total 1.0" in lines


def test_who_vanishes_in_the_middle_of_the_switch_breaks_nothing(agent: ScriptedAgent) -> None:
    sent = list[Any]()

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/cutline/state", "query_string": b"", "headers": []}

    async def run() -> None:
        await application(agent)(scope, receive, send)

    asyncio.run(run())
    assert (sent[0]["status"], agent.offline) == (400, False)


def test_every_path_is_in_the_table_of_the_docs(agent: ScriptedAgent) -> None:
    named: Any = application(agent)
    rows = re.findall(r"^\| (`.*?) \|", API.read_text(), re.MULTILINE)
    told = {path for row in rows for path in re.findall(r"(/[\w./{}-]*)`", row)}
    routes = named._app._app._app.routes
    later = [route.app for route in routes if isinstance(route.app, Later)]
    shown = [route.path for route in routes if not isinstance(route.app, Later)]
    paths = {*shown, *(route.path for one in later for route in one.make())}
    ours = {path.replace(":path", "") for path in paths} | {LOG_IN}
    served = {path for path in ours if not path.endswith((".js", ".css", ".svg", ".png", ".ico"))}
    assert {path.replace("{model}", "{id}").replace("{name}", "{id}") for path in served} == told


def test_what_is_counted(agent: ScriptedAgent, serving: Serving) -> None:
    agent.enqueue(gated(spoken("a", source=Provenance.EDGE), Decision.KEPT))
    agent.enqueue(*told(gated(spoken("a", "b"), Decision.PASSED)))
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
        'cutline_agent_gate_total{group="plain",kept="yes"} 1.0',
        'cutline_agent_gate_total{group="plain",kept="no"} 1.0',
        'cutline_agent_tokens_total{source="edge"} 1.0',
        'cutline_agent_tokens_total{source="draft"} 2.0',
        'cutline_agent_bytes_total{direction="up"} 200.0',
        'cutline_agent_latency_seconds_count{mode="auto"} 2.0',
        'cutline_agent_first_token_seconds_count{mode="auto"} 2.0',
        "cutline_agent_rounds_total 2.0",
    ):
        assert line in text, text


@pytest.mark.parametrize(
    "options",
    [
        {"listen": "127.0.0.1"},
        {"allow_urls": ["http://host/"]},
        *(
            {"allow_origins": [one]}
            for one in ("*", "null", "app.example", "https://app.example/", "https://*.example")
        ),
    ],
)
def test_what_cannot_be_served(serving: Serving, options: dict[str, Any]) -> None:
    async def run() -> None:
        async with serving(**options):
            pass

    with pytest.raises(InputError):
        asyncio.run(run())
