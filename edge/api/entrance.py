"""Who may ask an agent that others can reach: the holder of a token, on every path but /healthz."""

from __future__ import annotations

import base64
import binascii

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from cutline.edge.api.faults import Fault
from cutline.edge.api.guarding import refuse
from cutline.errors import AccessDenied
from cutline.protos.tokens import Tokens

OPEN = frozenset({"/healthz"})  # what restarts a dead agent has no token, and learns no more than that it lives
TENANT = "cutline.tenant"
# The same whether there was a token or not: what nearly was one is nobody's to learn.
UNKNOWN = Fault(
    "this agent wants a token that it knows; give it with --token-file, or as `Authorization: Bearer TOKEN`",
    AccessDenied.__name__,
)


class Entrance:
    """An application that takes who has one of the `tokens` alone, whatever the path or the method.

    It finds in its scope whose token that was, under TENANT.
    """

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # the agent speaks nothing else
        # The path as it was sent: what is not spelt just so is not open.
        if scope.get("raw_path") in _RAW:
            await self._app(scope, receive, send)
        elif (tenant := self._tenant(Headers(scope=scope))) is not None:
            await self._app({**scope, TENANT: tenant}, receive, send)
        else:
            await refuse(send, 401, UNKNOWN, *_ASKING)

    def _tenant(self, headers: Headers) -> str | None:
        given = headers.getlist("authorization")
        if len(given) != 1:
            return None
        scheme, _, token = given[0].partition(" ")
        match scheme.lower():
            case "bearer":
                return self._tokens.tenant(token)
            case "basic":  # a browser asks its person for a name, which may be any, and a password: the token
                try:
                    _, _, password = base64.b64decode(token, validate=True).decode("ascii").partition(":")
                except (binascii.Error, ValueError):
                    return None
                return self._tokens.tenant(password)
            case _:
                return None


_RAW = frozenset(path.encode() for path in OPEN)
_ASKING = (
    (b"www-authenticate", b'Bearer realm="cutline", Basic realm="cutline"'),
    (b"connection", b"close"),  # whose body is not read
)
