"""What answers at each path of Ollama's API."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cutline.edge.api.encoding.embedder import Embedder
from cutline.edge.api.errors import Fault, Refused
from cutline.edge.api.handler import RequestHandler, as_json
from cutline.edge.api.ollama.catalogue import (
    OllamaLoaded,
    OllamaModels,
    OllamaNamed,
    OllamaStatus,
    OllamaVersion,
    listed,
    loaded,
    shown,
)
from cutline.edge.api.ollama.embeddings import OllamaEmbed, OllamaEmbedOne, read_embed, read_embed_one
from cutline.edge.api.ollama.schema import OllamaAsked, read_chat, read_prompt
from cutline.edge.api.requests.fields import Rules, read_body, unfit
from cutline.edge.api.streams import AnswerStream
from cutline.errors import InputError

# What is refused by name: models come and go with `cutline`.
_REFUSED = {
    "create": "this agent makes no models; `cutline export` does",
    "copy": "this agent has one model, and keeps no copies",
    "delete": "this agent has one model, and keeps it",
    "push": "this agent gives its model to nobody",
}


def ollama(handler: RequestHandler, embedder: Embedder) -> list[Route]:
    """The paths."""
    api = _Ollama(handler, embedder)
    return [
        Route("/api/version", api.version),
        Route("/api/tags", api.tags),
        Route("/api/ps", api.running),
        Route("/api/show", api.show, methods=["POST"]),
        Route("/api/pull", api.pull, methods=["POST"]),
        Route("/api/chat", api.chat, methods=["POST"]),
        Route("/api/generate", api.generate, methods=["POST"]),
        Route("/api/embed", api.embed, methods=["POST"]),
        Route("/api/embeddings", api.embed_one, methods=["POST"]),
        *(Route(f"/api/{name}", api.refuse, methods=["POST", "DELETE"]) for name in _REFUSED),
    ]


class _Ollama:
    def __init__(self, handler: RequestHandler, embedder: Embedder) -> None:
        self._handler = handler
        self._embedder = embedder
        self._manifest = handler.agent.manifest
        self._since = datetime.fromtimestamp(handler.began, UTC)

    async def version(self, request: Request) -> Response:
        return as_json(OllamaVersion(version("cutline")))

    async def tags(self, request: Request) -> Response:
        return as_json(OllamaModels((listed(self._manifest, self._since),)))

    async def running(self, request: Request) -> Response:
        return as_json(OllamaLoaded((loaded(self._manifest, self._since),)))

    async def show(self, request: Request) -> Response:
        await self._named(request)
        return as_json(shown(self._manifest, self._since, tools=self._handler.agent.state().tools))

    async def pull(self, request: Request) -> Response:
        asked = await self._named(request)
        if asked.stream is False:
            return as_json(OllamaStatus())
        return Response(msgspec.json.encode(OllamaStatus()) + b"\n", media_type="application/x-ndjson")

    async def chat(self, request: Request) -> Response | AnswerStream:
        return await self._ask(request, read_chat)

    async def generate(self, request: Request) -> Response | AnswerStream:
        return await self._ask(request, read_prompt)

    async def embed(self, request: Request) -> Response | AnswerStream:
        return await self._embedder.respond(request, read_embed, OllamaEmbed.told)

    async def embed_one(self, request: Request) -> Response | AnswerStream:
        return await self._embedder.respond(request, read_embed_one, OllamaEmbedOne.told)

    async def refuse(self, request: Request) -> Response:
        message = _REFUSED[request.scope["path"].rpartition("/")[2]]
        raise Refused(400, Fault(message, InputError.__name__, code="unsupported"), {"connection": "close"})

    async def _named(self, request: Request) -> OllamaNamed:
        """What is asked about the model. Raises Refused for another one."""
        body = await self._handler.body(request)
        asked = read_body(body.json, OllamaNamed, Rules())
        if not (asked.model or asked.name):
            raise unfit("no model is named; give one in `model`", "model")
        self._handler.check(asked.model or asked.name)
        return asked

    async def _ask(self, request: Request, read: Callable[[bytes], OllamaAsked]) -> Response | AnswerStream:
        def asked(body: bytes) -> OllamaAsked | Response:
            found = read(body)
            if found.turns:
                return found
            self._handler.check(found.model)
            return as_json(found.teller(self._manifest).loaded())

        return await self._handler.respond(request, asked, OllamaAsked.teller)
