"""Pages of other servers: those that are named may ask, as browsers ask for it, and no others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cutline.protos.channel.token_file import Tokens, token_entry
from cutline.testing.agent import ScriptedAgent, spoken
from cutline.testing.raw_http import BODY, PATH

Serving = Callable[..., AbstractAsyncContextManager[str]]
APP, OTHER = "https://app.example", "https://other.example"
ALLOW = "access-control-allow-origin"


def asked(serving: Serving, *calls: dict[str, Any], **options: Any) -> list[httpx.Response]:
    async def run() -> list[httpx.Response]:
        async with serving(**options) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
            return [await client.request(**call) for call in calls]

    return asyncio.run(run())


def preflight(origin: str, path: str = PATH) -> dict[str, Any]:
    wants = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, x-stainless-os"}
    return {"method": "OPTIONS", "url": path, "headers": {"origin": origin} | wants}


def post(origin: str, path: str = PATH, **headers: str) -> dict[str, Any]:
    return {"method": "POST", "url": path, "content": BODY, "headers": {"origin": origin} | headers}


def test_a_page_that_is_named_may_ask_and_read(agent: ScriptedAgent, serving: Serving) -> None:
    agent.always = [spoken("7", stop=2)]
    calls = preflight(APP), post(APP), {"method": "GET", "url": "/v1/models", "headers": {"origin": APP}}
    before, answer, models = asked(serving, *calls, allow_origins=["https://App.example"])
    assert before.status_code == 200
    assert "POST" in before.headers["access-control-allow-methods"]
    assert "x-stainless-os" in before.headers["access-control-allow-headers"]
    for one in (before, answer, models):
        assert (one.status_code, one.headers[ALLOW]) == (200, APP)
        assert "origin" in one.headers["vary"].lower()
        assert "access-control-allow-credentials" not in one.headers, "no cookie is asked for"
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert answer.json()["choices"][0]["message"]["content"] == "7"


@pytest.mark.parametrize("origins", [(), (APP,)])
@pytest.mark.parametrize("origin", [OTHER, "null", "https://app.example.evil", "http://app.example"])
def test_any_other_may_not(agent: ScriptedAgent, serving: Serving, origin: str, origins: tuple[str, ...]) -> None:
    agent.always = [spoken("7", stop=2)]
    before, answer = asked(serving, preflight(origin), post(origin), allow_origins=origins)
    assert (before.status_code in (400, 403), answer.status_code) == (True, 403)
    assert ALLOW not in before.headers
    assert ALLOW not in answer.headers
    assert agent.asked == []


def test_what_is_the_agents_own_stays_so(agent: ScriptedAgent, serving: Serving) -> None:
    """Its switches, and what it tells of itself, are not those of another page."""
    own = asked(serving, post(APP, "/cutline/state"), post(APP, "/metrics"), allow_origins=[APP])
    assert [one.status_code for one in own] == [403, 403]
    assert not agent.offline


def test_a_name_that_leads_here_is_still_refused(agent: ScriptedAgent, serving: Serving) -> None:
    (found,) = asked(serving, post(APP, host="app.example"), allow_origins=[APP])
    assert found.status_code == 421
    assert agent.asked == []


def test_a_page_that_is_named_needs_a_token_where_others_do(
    agent: ScriptedAgent, serving: Serving, tmp_path: Path
) -> None:
    """And is told so: a refusal is readable, or nobody could know."""
    agent.always = [spoken("7", stop=2)]
    file = tmp_path / "tokens.toml"
    token = "a-token"
    file.write_text(token_entry("operator", token))
    calls = preflight(APP), post(APP), post(APP, authorization=f"Bearer {token}")
    before, nobody, known = asked(serving, *calls, allow_origins=[APP], tokens=Tokens(file, agent=True))
    assert [one.status_code for one in (before, nobody, known)] == [200, 401, 200]
    assert nobody.headers[ALLOW] == APP
