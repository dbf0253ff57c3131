"""The agent's HTTP application: every path there is, and what stands before them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from cutline.core.json_errors import UNREADABLE
from cutline.edge.api.access.limits import HTTP_LIMITS, MOST, UNLIMITED, Guard, HttpLimits
from cutline.edge.api.chat.narrator import teller_of
from cutline.edge.api.errors import Fault, Refused, unreadable
from cutline.edge.api.handler import ALIAS, RequestHandler, ServedAgent, as_json, failure
from cutline.edge.api.introspection import (
    GenerationSettings,
    Health,
    Model,
    Models,
    Props,
    Readiness,
    Switches,
    TemplateAbilities,
    model_of,
    state_of,
)
from cutline.edge.api.request_log import Named, RequestLog
from cutline.edge.api.requests.schema import read_request
from cutline.edge.api.static import pages
from cutline.edge.api.streams import AnswerStream
from cutline.errors import AccessDenied, InputError
from cutline.protos.channel.token_file import Quota

if TYPE_CHECKING:  # an agent that fetches or compares nothing loads nothing of it
    from cutline.edge.api.encoding.embedder import Embedder
    from cutline.edge.api.requests.image_fetcher import Fetcher
    from cutline.edge.inference.encoder import Encoder


def application(
    agent: ServedAgent,
    *,
    most: Callable[[], int] = lambda: MOST,
    fetcher: Fetcher | None = None,
    limits: Callable[[str], Quota] = lambda tenant: UNLIMITED,
    shared: bool = False,
    entrance: Callable[[ASGIApp], ASGIApp] = lambda app: RequestLog(Guard(app, None)),
    encoder: Encoder | None = None,
    http: HttpLimits = HTTP_LIMITS,
) -> ASGIApp:
    """The agent's HTTP application.

    As many questions as `most` says that need a worker may be in work at once, and as many that the device may answer,
    and of each tenant what `limits` say; a `fetcher` gets images that stand elsewhere. An agent that is `shared` none
    who asks may take offline, and one that is offline now stays so. The `entrance` stands before all of it, and checks
    and logs what comes. An `encoder` makes rows of texts and images. `http` says how much of bodies it reads, and how
    long a stream is silent.
    """
    handler = RequestHandler(agent, most=most, limits=limits, fetcher=fetcher, http=http)
    api = _Api(handler, shared=shared)
    embedder = cache(lambda: _embedder(handler, encoder))
    responses, ollama = Later(lambda: _responses(handler)), Later(lambda: _ollama(handler, embedder()))
    embeddings = Later(lambda: _embeddings(embedder()))
    routes = [
        Route("/v1/chat/completions", api.complete, methods=["POST"]),
        Route("/v1/embeddings", embeddings),
        Route("/v1/models", api.models),
        Route("/v1/models/{model:path}", api.model),
        Route("/props", api.props),
        Route("/cutline/state", api.state, methods=["GET", "POST"]),
        Route("/healthz", api.healthy),
        Route("/readyz", api.ready),
        Route("/metrics", api.metrics),
        Route("/openapi.json", api.openapi),
        Route("/v1/responses", responses),
        Route("/v1/responses/{name}", responses),
        Route("/api/{path:path}", ollama),
        *pages(),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: _not_there,
            Refused: _refused,
            ClientDisconnect: _gone,
            Exception: _refused,
        },
    )
    app.router.redirect_slashes = False
    return Named(entrance(app))


class _Api:
    """What answers at each path that is no other API's."""

    def __init__(self, handler: RequestHandler, *, shared: bool) -> None:
        self._handler = handler
        self._agent = handler.agent
        self._shared = shared
        self._begun_offline = self._agent.offline

    async def complete(self, request: Request) -> Response | AnswerStream:
        return await self._handler.respond(request, read_request, teller_of)

    async def models(self, request: Request) -> Response:
        return as_json(Models(data=[self._model()]))

    async def model(self, request: Request) -> Response:
        self._handler.check(request.path_params["model"])
        return as_json(self._model())

    def _model(self) -> Model:
        context = self._agent.manifest.decoder.context
        return model_of(self._agent.state(), self._handler.began, context=context, alias=ALIAS)

    async def props(self, request: Request) -> Response:
        manifest = self._agent.manifest
        settings = GenerationSettings(manifest.decoder.context)
        able = TemplateAbilities(supports_tools=self._agent.state().tools)
        told = Props(default_generation_settings=settings, model_alias=manifest.name, chat_template_caps=able)
        return as_json(told)

    async def state(self, request: Request) -> Response:
        if request.method == "POST":
            body = await self._handler.body(request)
            try:
                self._switch(msgspec.json.decode(body.json, type=Switches))
            except UNREADABLE as error:
                raise unreadable(error) from None
        switchable = not (self._shared or self._begun_offline)
        return as_json(state_of(self._agent.state(), self._handler.counts.totals, switchable=switchable))

    def _switch(self, switches: Switches) -> None:
        if self._shared:
            message = "others ask this agent too, so none of them takes it offline; who runs it may, with --offline"
            raise Refused(403, Fault(message, AccessDenied.__name__))
        if self._begun_offline and not switches.offline:
            message = "the agent was started with --offline, and stays so; who runs it may start it without"
            raise Refused(409, Fault(message, InputError.__name__, "offline"))
        self._agent.offline = switches.offline

    async def healthy(self, request: Request) -> Response:
        return as_json(Health())

    async def ready(self, request: Request) -> Response:
        now = self._agent.state()
        found = Readiness(ready=now.ready, why=now.why, offline=now.offline, workers=now.workers)
        return as_json(found, status=200 if now.ready else 503)

    async def metrics(self, request: Request) -> Response:
        state = self._agent.state()
        shown = self._handler.counts.text(state.audits, state.journal)
        return Response(shown, headers={"content-type": CONTENT_TYPE_LATEST})

    async def openapi(self, request: Request) -> Response:
        from cutline.edge.api.openapi import document

        return as_json(document())


class Later:
    """Paths of an API that many agents are never asked by: nothing of it is loaded before."""

    def __init__(self, make: Callable[[], list[Route]]) -> None:
        self.make = make
        self._router: Router | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._router is None:
            self._router = Router(self.make(), redirect_slashes=False)
        await self._router(scope, receive, send)


def _responses(handler: RequestHandler) -> list[Route]:
    from cutline.edge.api.responses.routes import responses

    return responses(handler)


def _embedder(handler: RequestHandler, encoder: Encoder | None) -> Embedder:
    from cutline.edge.api.encoding.embedder import Embedder

    return Embedder(handler, encoder)


def _embeddings(embedder: Embedder) -> list[Route]:
    from cutline.edge.api.embeddings.routes import embeddings

    return embeddings(embedder)


def _ollama(handler: RequestHandler, embedder: Embedder) -> list[Route]:
    from cutline.edge.api.ollama.routes import ollama

    return ollama(handler, embedder)


async def _not_there(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    fault = Fault(error.detail, InputError.__name__)
    return failure(request, Refused(error.status_code, fault, dict(error.headers or {})))


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # that nobody reads


async def _refused(request: Request, error: Exception) -> Response:
    return failure(request, error)
