"""Several tenants of one agent: what goes along with their questions, and what each may take."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx
import msgspec
import pytest
from prometheus_client import Gauge

from cutline.core.request import is_request_id
from cutline.edge.api.access import limits as guarding
from cutline.edge.api.access.limits import HttpLimits
from cutline.edge.api.errors import Refused
from cutline.protos.channel.token_file import Quota, Tokens, token_entry
from cutline.testing.agent import ScriptedAgent, spoken
from cutline.testing.raw_http import BODY, PATH, connect, reply, request

Serving = Callable[..., AbstractAsyncContextManager[str]]


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
    desk = guarding.Desk(
        lambda: 8, Gauge("g", "g", registry=None), lambda tenant: Quota(openings_per_minute=12), lambda: now
    )

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


@pytest.mark.parametrize("how", [{"mode": "cloud"}, {"mode": "draft"}, {"exact": True}], ids=str)
def test_while_a_worker_is_waited_for_the_device_goes_on_answering(
    agent: ScriptedAgent, serving: Serving, how: dict[str, object]
) -> None:
    def body(**how: object) -> dict[str, object]:
        found: dict[str, object] = msgspec.json.decode(BODY)
        return found | {"cutline": how}

    async def run() -> None:
        async with (
            serving(most=lambda: 2) as url,
            httpx.AsyncClient(base_url=url, trust_env=False, timeout=None) as client,  # noqa: S113 (it waits on purpose)
            asyncio.timeout(60),
        ):

            async def long(asked: int, **how: object) -> list[asyncio.Task[httpx.Response]]:
                for _ in range(2):
                    agent.enqueue(math.inf)
                tasks = [asyncio.create_task(client.post(PATH, json=body(**how))) for _ in range(2)]
                await agent.reaches(asked=asked)
                return tasks

            waiting = await long(2, **how)
            agent.always = [spoken("7")]
            refused = await client.post(PATH, json=body(**how))
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert "need a worker" in refused.json()["error"]["message"]
            for mode in ("auto", "edge"):
                assert (await client.post(PATH, json=body(mode=mode))).status_code == 200
            drafting = await long(6, mode="auto")
            refused = await client.post(PATH, json=body(mode="edge"))
            assert refused.status_code == 429
            assert "in work" in refused.json()["error"]["message"]
            for one in (*waiting, *drafting):
                one.cancel()
            await asyncio.wait([*waiting, *drafting])
            await agent.reaches(given_up=4)
            assert (await client.post(PATH, json=body(**how))).status_code == 200, "places are given back"

    asyncio.run(run())


@pytest.mark.threat("floods")
def test_a_body_that_does_not_come_takes_no_place(agent: ScriptedAgent, serving: Serving, tmp_path: Path) -> None:
    agent.always = [spoken("7")]

    async def slow(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await connect(url)
        writer.write(request(BODY[:10], "Authorization: Bearer one", length=len(BODY)))
        return reader, writer

    async def run() -> None:
        async with serving(most=lambda: 1, tokens=holders(tmp_path), http=HttpLimits(bodies=4)) as url:
            held = [await slow(url) for _ in range(2)]
            async with bearing(url, "other") as client:
                assert (await client.post(PATH, content=BODY)).status_code == 200
            status, body = 0, b""
            async with asyncio.timeout(60):
                while status != 429:  # once both are read: one tenant reads half of them at most
                    status, body = await reply(url, request(BODY, "Authorization: Bearer one"))
            assert msgspec.json.decode(body)["error"]["code"] == "rate_limit_exceeded"
            for _, writer in held:
                writer.close()
            async with bearing(url, "one") as client, asyncio.timeout(60):
                while (await client.post(PATH, content=BODY)).status_code != 200:  # once they are gone
                    pass

    asyncio.run(run())


@pytest.mark.threat("doors")
def test_no_tenant_takes_the_agent_offline_for_all(agent: ScriptedAgent, serving: Serving, tmp_path: Path) -> None:
    async def run() -> list[httpx.Response]:
        async with serving(tokens=holders(tmp_path)) as url, bearing(url, "one") as client:
            return [await client.post("/cutline/state", json={"offline": True}), await client.get("/cutline/state")]

    refused, state = asyncio.run(run())
    assert refused.status_code == 403
    assert not agent.offline
    assert state.json()["switchable"] is False


def test_who_is_not_let_in_has_a_name_for_that_too(serving: Serving, tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            serving(tokens=holders(tmp_path)) as url,
            httpx.AsyncClient(base_url=url, headers={"x-request-id": "mine"}, trust_env=False) as client,
        ):
            form = await client.get("/", headers={"accept": "text/html"})
            for refused in (await client.post(PATH, content=BODY), form, await client.post("/log-in")):
                assert (refused.status_code, refused.headers["x-request-id"]) == (401, "mine")
            unnamed = await client.get("/metrics", headers={"x-request-id": "two words"})
            assert unnamed.status_code == 401
            assert is_request_id(unnamed.headers["x-request-id"])

    asyncio.run(run())
