"""The page that the agent serves at `/`: the files in `page/`, and what a browser may do with them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "png": "image/png",
    "svg": "image/svg+xml",
}
# Nothing but these files runs, and nobody but this agent is asked; pictures come from the person and the camera.
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data: blob:",
    "media-src": "'self' blob:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
HEADERS = {
    "content-security-policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
    "cache-control": "no-cache",
}
RUNNING = "Ollama is running"


def pages() -> list[Route]:
    """A path for each file, `/` for the first; and one for each card of the demo, where no picture is at hand."""
    cards = (resources.files("cutline.demo") / "examples").iterdir()
    found = [Route(f"/examples/{card.name}", _shown(card.read_bytes(), _TYPES["png"])) for card in cards]
    for file in (resources.files("cutline.edge.api") / "page").iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is not None and file.is_file() and file.name != "log-in.html":  # which strangers get
            show = _shown(file.read_bytes(), kind)
            root = file.name == "index.html"
            found.append(Route("/", _to_people(show)) if root else Route(f"/{file.name}", show))
    return found


def _to_people(show: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """What shows the page to browsers, and to Ollama's clients what they look for before they ask."""

    async def answer(request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return await show(request)
        return Response(RUNNING, media_type="text/plain")

    return answer


def _shown(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def show(request: Request) -> Response:
        return Response(content, headers=HEADERS | {"content-type": kind})

    return show
