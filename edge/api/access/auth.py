"""Authentication of the agent's HTTP API: a token is needed on every path but /healthz."""

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

OPEN = frozenset({"/healthz"})  # a supervisor has no token, and learns only that the agent is alive
TENANT = "cutline.tenant"
# The same with a wrong token as without one, so that nobody learns more about a token.
UNKNOWN = Fault(
    "this agent wants a token that it knows; give it with --token-file, or as `Authorization: Bearer TOKEN`",
    AccessDenied.__name__,
)


class Entrance:
    """Middleware that requires one of the `tokens` on every path and method.

    It puts the token's tenant into the scope under TENANT. A browser without a token gets a login form; a `link` with a
    code is an alternative to a token.
    """

    def __init__(self, app: ASGIApp, tokens: Tokens, link: LoginCode | None = None) -> None:
        self._app = app
        self._log_in = LogIn(tokens, link)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # the agent has no other protocol
        request = Request(scope, receive)
        # The raw path: another spelling of an open path is not open.
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
            # For a request of the page's script, Basic would make the browser show its own dialog.
            by_script = request.headers.get("sec-fetch-dest") == "empty"
            await refuse(scope, send, 401, UNKNOWN, *(_CHALLENGES[1:] if by_script else _CHALLENGES))

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
            case "basic":  # from a browser's dialog: the token is the password, the user name is ignored
                try:
                    _, _, password = base64.b64decode(token, validate=True).decode("ascii").partition(":")
                except (binascii.Error, ValueError):
                    return None
                return self._log_in.tenant(password)
            case _:
                return None


_RAW = frozenset(path.encode() for path in OPEN)
# As separate headers: Chromium understands neither if both are in one.
_CHALLENGES = (
    (b"www-authenticate", b'Basic realm="cutline"'),
    (b"www-authenticate", b'Bearer realm="cutline"'),
    CLOSE,
)
