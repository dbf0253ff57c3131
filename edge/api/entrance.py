"""Who may ask an agent that others can reach: the holder of a token, on every path but /healthz."""

from __future__ import annotations

import base64
import binascii

import msgspec
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from cutline.edge.api.faults import Failed, Fault
from cutline.errors import AccessDenied
from cutline.protos.tokens import Tokens

OPEN = frozenset({"/healthz"})  # what restarts a dead agent has no token, and learns no more than that it lives


class Entrance:
    """An application that takes who has one of the `tokens` alone, whatever the path or the method."""

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # the agent speaks nothing else
        # The path as it was sent: what is not spelt just so is not open.
        if scope.get("raw_path") in _RAW or self._knows(Headers(scope=scope)):
            await self._app(scope, receive, send)
        else:
            await _refuse(send)

    def _knows(self, headers: Headers) -> bool:
        given = headers.getlist("authorization")
        if len(given) != 1:
            return False
        scheme, _, token = given[0].partition(" ")
        match scheme.lower():
            case "bearer":
                return self._tokens.tenant(token) is not None
            case "basic":  # a browser asks its person for a name, which may be any, and a password: the token
                try:
                    _, _, password = base64.b64decode(token, validate=True).decode("ascii").partition(":")
                except (binascii.Error, ValueError):
                    return False
                return self._tokens.tenant(password) is not None
            case _:
                return False


_RAW = frozenset(path.encode() for path in OPEN)


async def _refuse(send: Send) -> None:
    fault = Fault("this agent wants a token; see `cutline keys token`", AccessDenied.__name__)
    body = msgspec.json.encode(Failed(fault))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", b'Bearer realm="cutline", Basic realm="cutline"'),
        (b"connection", b"close"),  # whose body is not read
    ]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})
