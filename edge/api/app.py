"""The agent's HTTP application: every path there is, and what stands before them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive

from cutline.core.json_errors import UNREADABLE
from cutline.core.request import Mode, Request
from cutline.edge.api.access.auth import TENANT
from cutline.edge.api.access.limits import MOST, UNLIMITED, Desk, Guard
from cutline.edge.api.errors import Failed, Fault, Refused, fault_of, headers_of, kind_of, status_of, unreadable
from cutline.edge.api.introspection import ALIAS, Health, Models, Readiness, Switches, model_of, state_of
from cutline.edge.api.metrics import CANCELLED, AgentMetrics
from cutline.edge.api.openapi import document
from cutline.edge.api.request_log import Named, RequestLog, note, request_id, trace
from cutline.edge.api.requests.body import Bodies
from cutline.edge.api.requests.images import pictures
from cutline.edge.api.requests.scanner import Body
from cutline.edge.api.requests.schema import ChatRequest, read_request
from cutline.edge.api.responses import Heading, completion_of
from cutline.edge.api.sse import STOPPED, EventStream, Narrator, disconnected, end
from cutline.edge.api.static import pages
from cutline.edge.generation.events import Event
from cutline.edge.generation.result import Answer
from cutline.edge.offload.status import AgentState
from cutline.errors import AccessDenied, CutlineError, InputError, WorkerUnavailable
from cutline.models.bundle import Manifest
from cutline.protos.channel.token_file import Quota

if TYPE_CHECKING:  # an agent that fetches nothing loads nothing of it
    from cutline.edge.api.requests.image_fetcher import Fetcher

P = ParamSpec("P")
T = TypeVar("T")

GONE = "gone"  # the client is
LARGE = 64 << 10  # bytes: a body that takes long enough to read that others should not wait for it


class ServedAgent(Protocol):
    """An agent, as far as its HTTP application knows it."""

    @property
    def manifest(self) -> Manifest: ...

    async def answer(self, question: Request) -> Answer: ...

    def stream(self, question: Request) -> AsyncGenerator[Event]: ...

    def state(self) -> AgentState: ...

    offline: bool  # nothing leaves the device


def application(
    agent: ServedAgent,
    *,
    hosts: Collection[str] | None = None,
    most: Callable[[], int] = lambda: MOST,
    fetcher: Fetcher | None = None,
    limits: Callable[[str], Quota] = lambda tenant: UNLIMITED,
    shared: bool = False,
    entrance: Callable[[ASGIApp], ASGIApp] = lambda app: app,
) -> ASGIApp:
    """The agent's HTTP application.

    `hosts` are the names it may be asked by, None for any; as many questions as `most` says that need a worker may be
    in work at once, and as many that the device may answer, and of each tenant what `limits` say; a `fetcher` gets
    images that stand elsewhere. An agent that is `shared` none who asks may take offline, and one that is offline now
    stays so. The `entrance` stands before all of it.
    """
    api = _Api(agent, most=most, limits=limits, fetcher=fetcher, shared=shared)
    routes = [
        Route("/v1/chat/completions", api.complete, methods=["POST"]),
        Route("/v1/models", api.models),
        Route("/v1/models/{model:path}", api.model),
        Route("/cutline/state", api.state, methods=["GET", "POST"]),
        Route("/healthz", api.healthy),
        Route("/readyz", api.ready),
        Route("/metrics", api.metrics),
        Route("/openapi.json", api.openapi),
        *pages(),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _not_there, Exception: _broken})
    app.router.redirect_slashes = False
    return Named(entrance(RequestLog(Guard(app, None if hosts is None else frozenset(hosts)))))


class _Api:
    """What answers at each path."""

    def __init__(
        self,
        agent: ServedAgent,
        *,
        most: Callable[[], int],
        limits: Callable[[str], Quota],
        fetcher: Fetcher | None,
        shared: bool,
    ) -> None:
        self._agent = agent
        self._fetcher = fetcher
        self._shared = shared
        self._begun_offline = agent.offline
        self._counts = AgentMetrics()
        self._desk = Desk(most, self._counts.working, limits)
        self._bodies = Bodies(lambda: self._desk.busy)
        self._began = int(time.time())
        self._fingerprint = f"fp_{agent.manifest.identity[:12]}"
        self._stops = frozenset(agent.manifest.stop_tokens)

    async def complete(self, request: HttpRequest) -> Response | EventStream:
        mode: Mode | None = None
        try:
            with ExitStack() as stack:
                asked, body = await self._read(request, stack)
                getting = pictures(asked.urls, body.pictures, self._fetcher, offline=lambda: self._agent.offline)
                images = await _unless_gone(request.receive, getting)
                named = {"tenant": _tenant(request), "request_id": request_id(request), "trace": trace(request)}
                question = await _in_thread(len(body.json) > LARGE, asked.question, images, **named)
                mode = question.mode
                heading = Heading.of(self._agent.manifest, self._fingerprint)
                if asked.stream:
                    return await self._stream(request, asked, question, heading, stack)
                answer = await _unless_gone(request.receive, self._agent.answer(question))
                self._counts.answered(answer)
                note(request, answer)
                logprobs = question.logprobs is not None
                return _json(completion_of(heading, answer, logprobs=logprobs, stops=self._stops))
        except ClientDisconnect:
            self._counts.failed(mode, CANCELLED)
            note(request, GONE)
            return Response(status_code=400)  # that nobody reads
        except (Refused, CutlineError) as error:
            self._counts.failed(mode, status_of(error))
            note(request, kind_of(error))
            return _failure(error)
        except asyncio.CancelledError:  # the server stops, and has waited long enough
            return _failure(WorkerUnavailable(STOPPED))
        except Exception:
            self._counts.failed(mode, 500)
            raise

    async def _read(self, request: HttpRequest, stack: ExitStack) -> tuple[ChatRequest, Body]:
        """The request, for which `stack` keeps a place until it is closed. Raises Refused."""
        body = await self._bodies.read(request, _tenant(request))
        place = stack.enter_context(self._desk.place(_tenant(request)))
        asked = await _in_thread(len(body.json) > LARGE, read_request, body.json)
        self._check(asked.model)
        place.settle(needs_worker=asked.cutline.needs_worker)
        return asked, body

    async def _stream(
        self, request: HttpRequest, asked: ChatRequest, question: Request, heading: Heading, stack: ExitStack
    ) -> EventStream:
        """The response that tells an answer as it happens, once it has begun to: what is wrong by then has a status."""
        narrator = Narrator(
            heading,
            limit=question.max_tokens,
            stops=self._stops,
            logprobs=question.logprobs is not None,
            guesses=asked.cutline.guesses,
            usage=bool(asked.stream_options and asked.stream_options.include_usage),
        )
        events = self._agent.stream(question)
        try:
            first = await _unless_gone(request.receive, anext(events))
        except BaseException:
            await events.aclose()
            raise
        kept = stack.pop_all()

        def over(outcome: Answer | Exception | None) -> None:
            kept.close()
            if isinstance(outcome, Answer):
                self._counts.answered(outcome)
                note(request, outcome)
            else:
                self._counts.failed(question.mode, CANCELLED if outcome is None else status_of(outcome))
                note(request, GONE if outcome is None else kind_of(outcome))

        return EventStream(narrator, first, events, over)

    def _check(self, model: str | None) -> None:
        if model and model not in (ALIAS, self._agent.manifest.name):
            name = self._agent.manifest.name
            message = f"this agent has one model, {name}; ask for that, or for {ALIAS}"
            raise Refused(404, Fault(message, InputError.__name__, "model", "model_not_found"))

    async def models(self, request: HttpRequest) -> Response:
        return _json(Models(data=[model_of(self._agent.state(), self._began)]))

    async def model(self, request: HttpRequest) -> Response:
        try:
            self._check(request.path_params["model"])
        except Refused as error:
            return _failure(error)
        return _json(model_of(self._agent.state(), self._began))

    async def state(self, request: HttpRequest) -> Response:
        if request.method == "POST":
            try:
                body = await self._bodies.read(request, _tenant(request))
                self._switch(msgspec.json.decode(body.json, type=Switches))
            except UNREADABLE as error:
                return _failure(unreadable(error))
            except Refused as error:
                return _failure(error)
            except ClientDisconnect:
                return Response(status_code=400)  # that nobody reads
        switchable = not (self._shared or self._begun_offline)
        return _json(state_of(self._agent.state(), self._counts.totals, switchable=switchable))

    def _switch(self, switches: Switches) -> None:
        if self._shared:
            message = "others ask this agent too, so none of them takes it offline; who runs it may, with --offline"
            raise Refused(403, Fault(message, AccessDenied.__name__))
        if self._begun_offline and not switches.offline:
            message = "the agent was started with --offline, and stays so; who runs it may start it without"
            raise Refused(409, Fault(message, InputError.__name__, "offline"))
        self._agent.offline = switches.offline

    async def healthy(self, request: HttpRequest) -> Response:
        return _json(Health())

    async def ready(self, request: HttpRequest) -> Response:
        now = self._agent.state()
        found = Readiness(ready=now.ready, why=now.why, offline=now.offline, workers=now.workers)
        return _json(found, status=200 if now.ready else 503)

    async def metrics(self, request: HttpRequest) -> Response:
        return Response(self._counts.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    async def openapi(self, request: HttpRequest) -> Response:
        return _json(document())


def _tenant(request: HttpRequest) -> str:
    """Who asks, "" where nobody knows."""
    return str(request.scope.get(TENANT, ""))


async def _in_thread(large: bool, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """What `work` gives, from a thread if it is `large`: others go on meanwhile."""
    return await asyncio.to_thread(work, *given, **named) if large else work(*given, **named)


async def _unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """What `work` gives; it is cancelled once the client is gone. Raises ClientDisconnect then."""
    working = asyncio.ensure_future(work)
    gone = asyncio.create_task(disconnected(receive))
    try:
        await asyncio.wait([working, gone], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        await end(working, gone)


async def _not_there(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _failure(Refused(error.status_code, Fault(error.detail, InputError.__name__), dict(error.headers or {})))


async def _broken(request: HttpRequest, error: Exception) -> Response:
    return _failure(error)


def _failure(error: Exception) -> Response:
    return _json(Failed(fault_of(error)), status=status_of(error), headers=headers_of(error))


def _json(content: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")
