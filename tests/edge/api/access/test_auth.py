"""Every path that the agent serves, to who has a token and to who has none."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from cutline.demo.bundles import DRAFTER
from cutline.edge.api import app as app_module
from cutline.edge.api.access.auth import TENANT, Entrance
from cutline.edge.api.access.login import LINK_SECONDS, LoginCode
from cutline.edge.api.app import application
from cutline.models.bundle import Bundle
from cutline.protos.channel.token_file import Tokens, token_entry

TOKEN = "a-token"


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    file = tmp_path / "tokens.toml"
    file.write_text(token_entry("operator", TOKEN))
    return Tokens(file)


def routes(monkeypatch: pytest.MonkeyPatch) -> list[Route]:
    """Those of the application, as it makes them."""
    made: list[Route] = []

    def starlette(*, routes: list[Route], **rest: Any) -> Starlette:
        made.extend(routes)
        return Starlette(routes=routes, **rest)

    monkeypatch.setattr(app_module, "Starlette", starlette)
    application(SimpleNamespace(manifest=Bundle.open(DRAFTER).manifest, offline=False))  # is not asked
    return made


async def reached(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers everything."""
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def ask(tokens: Tokens, method: str, path: str, *headers: tuple[str, str]) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(Entrance(reached, tokens))
        async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
            return await client.request(method, path, headers=list(headers))

    return asyncio.run(run())


@pytest.mark.threat("doors")
def test_every_path_wants_a_token_but_health(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    found = routes(monkeypatch)
    paths = {route.path.replace("{model:path}", "any") for route in found}
    assert {"/v1/chat/completions", "/healthz", "/", "/metrics"} <= paths
    for path in (
        *paths,
        "/none",
        "//healthz",
        "/healthz/",
        "/healthz/x",
        "/%68ealthz",
        "/v1/../healthz/..",
        "/HEALTHZ",
    ):
        for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE", "TRACE", "MADE-UP"):
            expected = 299 if path == "/healthz" else 401
            assert ask(tokens, method, path).status_code == expected, (method, path)
            assert ask(tokens, method, path, ("authorization", f"Bearer {TOKEN}")).status_code == 299
    assert ask(tokens, "GET", "/healthz?x=/v1/models").status_code == 299


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer other")],
        [("authorization", TOKEN)],
        [("authorization", f"Digest {TOKEN}")],
        [("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {TOKEN}")],
        [("authorization", basic(TOKEN))],
        [("authorization", basic(f"{TOKEN}:x"))],
        [("authorization", "Basic ***")],
        [("authorization", "Basic /w==")],
        [("x-api-key", TOKEN)],
        [("cookie", f"token={TOKEN}")],
    ],
    ids=repr,
)
def test_what_is_no_token(tokens: Tokens, headers: list[tuple[str, str]]) -> None:
    refused = ask(tokens, "POST", "/v1/chat/completions", *headers)
    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "AccessDenied"
    assert "Bearer" in refused.headers["www-authenticate"]
    assert TOKEN not in refused.text
    assert refused.text == ask(tokens, "POST", "/v1/chat/completions").text, "which was no token does not show"
    assert "--token-file" in refused.json()["error"]["message"]
    assert "Authorization: Bearer" in refused.json()["error"]["message"]


def test_whose_token_it_is_is_found_in_the_scope(tokens: Tokens) -> None:
    found: list[object] = []

    async def look(scope: Any, receive: Any, send: Any) -> None:
        found.append(scope.get(TENANT))
        await reached(scope, receive, send)

    async def run() -> None:
        transport = httpx.ASGITransport(Entrance(look, tokens))
        async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
            await client.get("/", headers={"authorization": f"Bearer {TOKEN}"})
            await client.get("/", headers={"authorization": basic(f"someone else:{TOKEN}")})
            await client.get("/healthz", headers={TENANT: "operator"})

    asyncio.run(run())
    assert found == ["operator", "operator", None]


def test_a_browser_gives_the_token_as_password(tokens: Tokens) -> None:
    assert ask(tokens, "GET", "/", ("authorization", basic(f"me:{TOKEN}"))).status_code == 299


def test_each_way_to_ask_for_a_token_has_a_line(tokens: Tokens) -> None:
    """Chromium understands neither of two in one line."""
    found = ask(tokens, "GET", "/metrics").headers.get_list("www-authenticate")
    assert found == ['Basic realm="cutline"', 'Bearer realm="cutline"']
    script = ask(tokens, "GET", "/cutline/state", ("sec-fetch-dest", "empty"))
    assert script.headers.get_list("www-authenticate") == ['Bearer realm="cutline"'], "no box over the page"


FORM = ("content-type", "application/x-www-form-urlencoded")
HOME = ("origin", "http://agent")


def sent(app: Entrance, content: str, *headers: tuple[str, str]) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
            return await client.post("/log-in", content=content, headers=[FORM, *headers])

    return asyncio.run(run())


@pytest.mark.threat("doors")
@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (f"token={TOKEN}", []),
        (f"token={TOKEN}", [("origin", "http://other")]),
        (f"token={TOKEN}", [("origin", "null")]),
        ("token=other", [HOME]),
        ("token=", [HOME]),
        (f"token={TOKEN}&token={TOKEN}", [HOME]),
        (f"x={'y' * 5000}&token={TOKEN}", [HOME]),
        ("&" * 100, [HOME]),
        ("token=%ff%fe\u00e9", [HOME]),
    ],
)
def test_a_form_that_lets_nobody_in(tokens: Tokens, content: str, headers: list[tuple[str, str]]) -> None:
    refused = sent(Entrance(reached, tokens), content, *headers)
    assert refused.status_code == 401
    assert "set-cookie" not in refused.headers
    assert TOKEN not in refused.text


@pytest.mark.threat("doors")
def test_a_cookie_asks_for_nothing_on_behalf_of_another_page(tokens: Tokens) -> None:
    let_in = sent(Entrance(reached, tokens), f"token={TOKEN}", HOME)
    assert (let_in.status_code, let_in.headers["location"]) == (303, "/")
    kept, *flags = let_in.headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(flags)
    cookie = ("cookie", kept)
    assert ask(tokens, "GET", "/", cookie).status_code == 299
    assert ask(tokens, "POST", "/v1/chat/completions", cookie, HOME).status_code == 299
    for origin in ([], [("origin", "null")], [("origin", "http://other")]):
        assert ask(tokens, "POST", "/v1/chat/completions", cookie, *origin).status_code == 401
    assert ask(tokens, "GET", "/", ("cookie", kept[:-2])).status_code == 401
    wrong = ("authorization", "Bearer other")
    assert ask(tokens, "GET", "/", cookie, wrong).status_code == 401


def test_a_link_works_once_and_not_for_long(tokens: Tokens) -> None:
    now = 0.0
    link = LoginCode(lambda: now)
    assert link.redeem("") is link.redeem(link.code + "x") is None
    assert sent(Entrance(reached, tokens), f"token={link.code}", HOME).status_code == 401, "another agent's"
    app = Entrance(reached, tokens, link)
    first, again = sent(app, f"token={link.code}", HOME), sent(app, f"token={link.code}", HOME)
    assert (first.status_code, again.status_code) == (303, 401)
    late = LoginCode(lambda: now)
    now = LINK_SECONDS + 1
    assert late.redeem(late.code) is None


@pytest.mark.threat("words")
def test_a_code_is_nothing_but_a_code(tokens: Tokens) -> None:
    html = ("accept", "text/html")
    assert 'value="abc-_1"' in ask(tokens, "GET", "/?code=abc-_1", html).text
    for code in ('"><script>', "a b", "x" * 65, "%22"):
        shown = ask(tokens, "GET", f"/?code={code}", html)
        assert shown.status_code == 401
        assert 'value=""' in shown.text
        assert "script" not in shown.text
