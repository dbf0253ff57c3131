"""Login of browsers: a form for a token, or a link with a one-time code; then a cookie."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from importlib import resources
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Scope

from cutline.protos.channel.token_file import MAX_TOKEN, Tokens

PATH = "/log-in"
TENANT_OF_LINK = "page"
LINK_SECONDS = 900.0
COOKIE_SECONDS = 30 * 24 * 3600
MAX_FORM = 4 * MAX_TOKEN  # bytes
FORM_SECONDS = 5.0

_FORM = (resources.files("cutline.edge.api") / "page" / "log-in.html").read_text("utf-8")
_STYLE = re.search(r"<style>(.*?)</style>", _FORM, re.DOTALL)
_WRONG = '<p class="wrong" role="alert">That is no token of this agent, nor a code that is still good.</p>'
_CODE = re.compile(r"[A-Za-z0-9_-]{1,64}")


class LoginCode:
    """A one-time code that expires after LINK_SECONDS, to exchange for a token that is valid while the agent runs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.code = secrets.token_urlsafe(12)
        self._clock = clock
        self._until = clock() + LINK_SECONDS
        self._token = secrets.token_urlsafe(32)
        self._used = False

    def redeem(self, code: str) -> str | None:
        """The token for the right `code`; None if it is wrong, used or expired."""
        if self._used or self._clock() > self._until or not _same(code, self.code):
            return None
        self._used = True
        return self._token

    def tenant(self, token: str) -> str | None:
        """The tenant of `token`, if it was given for the code; else None."""
        return TENANT_OF_LINK if self._used and _same(token, self._token) else None


class LogIn:
    """The login form and its handler. A `link` accepts a code instead of a token."""

    def __init__(self, tokens: Tokens, link: LoginCode | None) -> None:
        self._tokens = tokens
        self._link = link

    def tenant(self, token: str) -> str | None:
        """The tenant of `token`, None if it is unknown."""
        found = self._tokens.tenant(token)
        return self._link.tenant(token) if found is None and self._link is not None else found

    def form(self, request: Request, *, wrong: bool = False) -> Response:
        """The page with the form. A code from a link is filled in, and used only when the form is sent."""
        code = request.query_params.get("code", "")
        shown = _FORM.replace("<!--wrong-->", _WRONG) if wrong else _FORM
        if _CODE.fullmatch(code):
            shown = shown.replace('value=""', f'value="{code}"')
        return Response(shown, 401, _HEADERS)

    async def enter(self, request: Request) -> Response:
        """The response to a sent form."""
        if not same_origin(request.headers):
            return self.form(request, wrong=True)
        try:
            given = await _token(request)
        except (ClientDisconnect, TimeoutError):
            return self.form(request, wrong=True)
        redeemed = None if self._link is None else self._link.redeem(given)
        token = redeemed or (given if self.tenant(given) is not None else None)
        if token is None:
            return self.form(request, wrong=True)
        response = Response(
            status_code=303, headers={"location": "/", "cache-control": "no-store", "connection": "close"}
        )
        response.set_cookie(
            _cookie(request.scope),
            base64.urlsafe_b64encode(token.encode()).decode(),  # a token may have characters that a cookie may not
            max_age=COOKIE_SECONDS,
            secure=request.scope["scheme"] == "https",
            httponly=True,
            samesite="strict",
        )
        return response


def token_in(request: Request) -> str | None:
    """The token in a request's cookie; for methods other than GET and HEAD only if the agent's own page sent it."""
    cookie = request.cookies.get(_cookie(request.scope))
    if cookie is None or (request.method not in ("GET", "HEAD") and not same_origin(request.headers)):
        return None
    try:
        return base64.urlsafe_b64decode(cookie.encode("ascii")).decode()
    except ValueError:
        return None


def same_origin(headers: Headers) -> bool:
    """Whether the Origin header is this agent."""
    return headers.get("origin", "").partition("://")[2].lower() == headers.get("host", "").lower() != ""


async def _token(request: Request) -> str:
    """The token in the sent form, "" if the body is malformed or too long. Raises TimeoutError."""
    body = bytearray()
    async with asyncio.timeout(FORM_SECONDS):
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_FORM:
                return ""
    try:
        found = parse_qs(body.decode("ascii"), max_num_fields=4).get("token", [])
    except ValueError:
        return ""
    return found[0].strip() if len(found) == 1 else ""


def _cookie(scope: Scope) -> str:
    """The cookie's name. With the prefix `__Host-` a browser accepts it over TLS only, and from this host only."""
    return "__Host-cutline" if scope["scheme"] == "https" else "cutline"


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


def _policy() -> str:
    style = "" if _STYLE is None else base64.b64encode(hashlib.sha256(_STYLE[1].encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; img-src data:; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )


_HEADERS = {
    "content-type": "text/html; charset=utf-8",
    "content-security-policy": _policy(),
    "referrer-policy": "same-origin",  # without it a browser does not say which page sends the form
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "www-authenticate": 'Bearer realm="cutline"',  # with Basic a browser would show its own dialog first
    "connection": "close",
}
