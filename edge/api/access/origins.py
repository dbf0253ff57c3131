"""Pages of other servers that may ask the agent: none, but for those that its owner names."""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from cutline.errors import InputError

OPEN = ("/v1/", "/api/")  # paths that they may ask; the agent's own page, its switches and figures are not theirs
READABLE = ("x-request-id", "retry-after")  # headers of a response

_ORIGIN = re.compile(r"https?://(?:\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::[0-9]{1,5})?")


def check_origins(origins: Collection[str]) -> frozenset[str]:
    """The origins as a browser writes them. Raises InputError for what is none, or would be all."""
    for origin in origins:
        if _ORIGIN.fullmatch(origin.lower()) is None:
            raise InputError(f"{origin[:80]!r} is no origin; give one as https://app.example or http://host:3000")
    return frozenset(origin.lower() for origin in origins)


def allowing(app: ASGIApp, origins: Collection[str]) -> ASGIApp:
    """An application that tells browsers which pages may read its answers. No cookie of theirs is asked for."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=sorted(origins),
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=("*",),
        expose_headers=READABLE,
    )
