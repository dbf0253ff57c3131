"""Bundles over HTTP, for devices where nobody exports: each file below the bundle's name, with ranges, and a list."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cutline.edge.api.access.limits import CLOSE, Guard, refuse
from cutline.edge.api.errors import Fault
from cutline.errors import AccessDenied, InputError
from cutline.models.bundle import MANIFEST, Bundle
from cutline.models.encoders.bundle import EncoderBundle
from cutline.protos.channel.token_file import Tokens

_RANGE = re.compile(r"bytes=\d{1,15}-\d{0,15}", re.ASCII)  # of several at once no client of ours asks
_UNKNOWN = Fault("this server wants a token that it knows; give it with --token-file", AccessDenied.__name__)


class ServedBundle(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that is given away, as the list of them shows it; `size` is in bytes."""

    name: str
    role: str
    precision: str
    identity: str
    size: int


def bundle_application(
    bundles: Mapping[str, Bundle | EncoderBundle], *, tokens: Tokens | None, hosts: frozenset[str] | None
) -> ASGIApp:
    """The application that gives `bundles` away by their names, to who has one of the `tokens` if there are any.

    `hosts` are the names by which it may be asked, None any. Nothing but the files that were verified is reached.
    """
    files = {f"{name}/{file}": path for name, bundle in bundles.items() for file, path in _files(bundle).items()}
    listed = [_listed(name, bundle) for name, bundle in bundles.items()]

    async def index(request: Request) -> Response:
        return Response(msgspec.json.encode({"bundles": listed}), media_type="application/json")

    async def file(request: Request) -> Response:
        path = files.get(request.path_params["path"])
        if path is None:
            fault = Fault("no bundle here has such a file; GET / lists what is here", InputError.__name__)
            return Response(msgspec.json.encode({"error": fault}), 404, media_type="application/json")
        headers = MutableHeaders(scope=request.scope)
        if _RANGE.fullmatch(headers.get("range", "")) is None and "range" in headers:
            del headers["range"]
        return FileResponse(path, media_type="application/octet-stream")

    routes = [Route("/", index), Route("/{path:path}", file)]
    app: ASGIApp = Guard(Starlette(routes=routes), hosts)
    return app if tokens is None else _TokenDoor(app, tokens)


class _TokenDoor:
    """An application for who shows one of the tokens."""

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        given = Headers(scope=scope).getlist("authorization")
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() == "bearer" and self._tokens.tenant(token) is not None:
            await self._app(scope, receive, send)
        else:
            await refuse(scope, send, 401, _UNKNOWN, (b"www-authenticate", b'Bearer realm="cutline"'), CLOSE)


def _files(bundle: Bundle | EncoderBundle) -> dict[str, Path]:
    names = bundle.names if isinstance(bundle, Bundle) else bundle.manifest.files
    return {MANIFEST: bundle.path / MANIFEST} | {name: bundle.file(name) for name in names}


def _listed(name: str, bundle: Bundle | EncoderBundle) -> ServedBundle:
    manifest = bundle.manifest
    size = sum(path.stat().st_size for path in _files(bundle).values())
    return ServedBundle(
        name=name, role=manifest.role, precision=manifest.precision, identity=manifest.identity, size=size
    )
