"""Who may ask an agent that others can reach: the holder of a token, on every path but /healthz."""

from __future__ import annotations

import base64
import binascii

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from cutline.edge.api.access.limits import CLOSE, refuse
from cutline.edge.api.access.login import PATH, LogIn, LoginCode, token_in
from cutline.edge.api.errors import Fault
from cutline.errors import AccessDenied
from cutline.protos.channel.token_file import Tokens

OPEN = frozenset({"/healthz"})  # what restarts a dead agent has no token, and learns no more than that it lives
TENANT = "cutline.tenant"
# The same whether there was a token or not: what nearly was one is nobody's to learn.
UNKNOWN = Fault(
    "this agent wants a token that it knows; give it with --token-file, or as `Authorization: Bearer TOKEN`",
    AccessDenied.__name__,
)


class Entrance:
    """An application that takes who has one of the `tokens` alone, whatever the path or the method.

    It finds in its scope whose token that was, under TENANT. A person whose browser has none gets a form to log in, and
    a `link` is another way in.
    """

    def __init__(self, app: ASGIApp, tokens: Tokens, link: LoginCode | None = None) -> None:
        self._app = app
        self._log_in = LogIn(tokens, link)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # the agent speaks nothing else
        request = Request(scope, receive)
        # The path as it was sent: what is not spelt just so is not open.
        if scope.get("raw_path") in _RAW:
            await self._app(scope, receive, send)
        elif (tenant := self._tenant(request)) is not None:
            await self._app({**scope, TENANT: tenant}, receive, send)
        elif (request.method, request.url.path) == ("POST", PATH):
            response = await self._log_in.enter(request)
            await response(scope, receive, send)
        elif (request.method, request.url.path) == ("GET", "/") and "text/html" in request.headers.get("accept", ""):
            await self._log_in.form(request)(scope, receive, send)
        else:
            # To a script of the page's own, a browser would show its own box for what Basic asks.
            by_script = request.headers.get("sec-fetch-dest") == "empty"
            await refuse(scope, send, 401, UNKNOWN, *(_ASKING[1:] if by_script else _ASKING))

    def _tenant(self, request: Request) -> str | None:
        given = request.headers.getlist("authorization")
        if not given:
            token = token_in(request)
            return None if token is None else self._log_in.tenant(token)
        if len(given) != 1:
            return None
        scheme, _, token = given[0].partition(" ")
        match scheme.lower():
            case "bearer":
                return self._log_in.tenant(token)
            case "basic":  # a browser asks its person for a name, which may be any, and a password: the token
                try:
                    _, _, password = base64.b64decode(token, validate=True).decode("ascii").partition(":")
                except (binascii.Error, ValueError):
                    return None
                return self._log_in.tenant(password)
            case _:
                return None


_RAW = frozenset(path.encode() for path in OPEN)
# A line each: of two in one line Chromium understands neither.
_ASKING = (
    (b"www-authenticate", b'Basic realm="cutline"'),
    (b"www-authenticate", b'Bearer realm="cutline"'),
    CLOSE,
)
