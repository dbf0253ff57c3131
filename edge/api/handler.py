"""What a question passes whichever API it came by: it is read, given a place, answered, told, counted and noted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive

from cutline.core.request import Request
from cutline.edge.api.access.auth import TENANT
from cutline.edge.api.access.limits import Desk, HttpLimits, RequestPlace
from cutline.edge.api.errors import Fault, Refused, body_of, headers_of, kind_of, status_of
from cutline.edge.api.metrics import CANCELLED, AgentMetrics
from cutline.edge.api.request_log import note, request_id, trace
from cutline.edge.api.requests.body import Bodies
from cutline.edge.api.requests.images import filmed, pictures
from cutline.edge.api.requests.scanner import Body
from cutline.edge.api.streams import STOPPED, AnswerStream, Teller, disconnected, end
from cutline.edge.generation.events import Event
from cutline.edge.generation.result import Answer
from cutline.edge.offload.status import AgentState
from cutline.edge.video.reader import AT_ONCE
from cutline.edge.video.sampled import SampledVideo
from cutline.errors import CutlineError, InputError, WorkerUnavailable
from cutline.models.bundle import Manifest
from cutline.protos.channel.token_file import Quota

if TYPE_CHECKING:  # an agent that fetches nothing loads nothing of it
    from cutline.edge.api.requests.image_fetcher import Fetcher

P = ParamSpec("P")
T = TypeVar("T")

ALIAS = "cutline"  # a name that every agent's model answers to
LATEST = ":latest"  # what Ollama's clients may put behind any
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


class ApiRequest(Protocol):
    """A request of some API, as it was read."""

    @property
    def model(self) -> str | None:
        """The name that it asks for."""

    @property
    def needs_worker(self) -> bool:
        """Whether nothing but a worker can answer."""

    @property
    def streamed(self) -> bool:
        """Whether the answer is told as it happens."""

    @property
    def urls(self) -> tuple[str, ...]:
        """Where its images and videos are, in order."""

    @property
    def videos(self) -> frozenset[int]:
        """Which of them are videos."""

    def question(self, media: Sequence[bytes | SampledVideo], *, tenant: str, request_id: str, trace: str) -> Request:
        """The question about the `media` that its `urls` stand for. Raises InputError."""


A = TypeVar("A", bound=ApiRequest)


@dataclass(slots=True)
class Attempt:
    """A request in the making; its `mode`, by which it is counted, is not known before it is read."""

    mode: str | None = None


class RequestHandler:
    """Answers questions by an `agent`: at once as many that need a worker as `most` says, and as many others."""

    def __init__(
        self,
        agent: ServedAgent,
        *,
        most: Callable[[], int],
        limits: Callable[[str], Quota],
        fetcher: Fetcher | None,
        http: HttpLimits,
    ) -> None:
        self.agent = agent
        self.began = int(time.time())
        self.counts = AgentMetrics()
        self._fetcher = fetcher
        self._desk = Desk(most, self.counts.working, limits)
        self._videos = asyncio.Semaphore(AT_ONCE)
        self._bodies = Bodies(lambda: self._desk.busy, http)
        self._silence = http.silence_seconds

    async def body(self, request: HttpRequest) -> Body:
        """The whole body of a request. Raises Refused and ClientDisconnect."""
        return await self._bodies.read(request, tenant_of(request))

    def check(self, model: str | None) -> None:
        """That the agent's model goes by this name, or none is given. Raises Refused."""
        name = self.agent.manifest.name
        if model and model.removesuffix(LATEST) not in (ALIAS, name):
            message = f"this agent has one model, {name}; ask for that, or for {ALIAS}"
            raise Refused(404, Fault(message, InputError.__name__, "model", "model_not_found"))

    def place(self, tenant: str) -> AbstractContextManager[RequestPlace]:
        """A place for one request of `tenant`, whose kind is set once it is read. Raises Refused."""
        return self._desk.place(tenant)

    async def pictures(self, urls: Sequence[str], body: Body) -> list[bytes]:
        """The images behind `urls`: those that came in the `body`, or fetched. Raises InputError."""
        return await pictures(urls, body.pictures, self._fetcher, offline=lambda: self.agent.offline)

    async def _media(self, asked: ApiRequest, body: Body) -> Sequence[bytes | SampledVideo]:
        """The images behind a request's URLs, and of its videos the frames. Raises InputError."""
        return await filmed(
            await self.pictures(asked.urls, body), asked.videos, self.agent.manifest.family, self._videos
        )

    async def respond(
        self,
        request: HttpRequest,
        read: Callable[[bytes], A | Response],
        tell: Callable[[A, Manifest, Request], Teller],
    ) -> Response | AnswerStream:
        """The response to a request that `read` takes from its JSON, or answers itself.

        Else it is told in the words of what `tell` gives for the request, the drafter's manifest and the question.
        """
        return await self.attempt(request, partial(self._respond, request, read, tell))

    async def attempt(
        self, request: HttpRequest, work: Callable[[Attempt], Awaitable[Response | AnswerStream]]
    ) -> Response | AnswerStream:
        """What `work` responds to a request; what goes wrong is told, counted and noted."""
        attempt = Attempt()
        try:
            return await work(attempt)
        except ClientDisconnect:
            self.counts.failed(attempt.mode, CANCELLED)
            note(request, GONE)
            return Response(status_code=400)  # that nobody reads
        except (Refused, CutlineError) as error:
            self.counts.failed(attempt.mode, status_of(error))
            note(request, kind_of(error))
            return failure(request, error)
        except asyncio.CancelledError:  # the server stops, and has waited long enough
            return failure(request, WorkerUnavailable(STOPPED))
        except Exception:
            self.counts.failed(attempt.mode, 500)
            raise

    async def _respond(
        self,
        request: HttpRequest,
        read: Callable[[bytes], A | Response],
        tell: Callable[[A, Manifest, Request], Teller],
        attempt: Attempt,
    ) -> Response | AnswerStream:
        with ExitStack() as stack:
            body = await self.body(request)
            place = stack.enter_context(self.place(tenant_of(request)))
            large = len(body.json) > LARGE
            asked = await in_thread(large, read, body.json)
            if isinstance(asked, Response):
                return asked
            self.check(asked.model)
            place.settle(needs_worker=asked.needs_worker)
            media = await unless_gone(request.receive, self._media(asked, body))
            named = {"tenant": tenant_of(request), "request_id": request_id(request), "trace": trace(request)}
            question = await in_thread(large, asked.question, media, **named)
            question = place.ordered(question)
            attempt.mode = question.mode
            teller = tell(asked, self.agent.manifest, question)
            if asked.streamed:
                return await self._stream(request, question, teller, stack)
            answer = await unless_gone(request.receive, self.agent.answer(question))
            self.counts.answered(answer)
            note(request, answer)
            return as_json(teller.whole(answer))

    async def _stream(self, request: HttpRequest, question: Request, teller: Teller, stack: ExitStack) -> AnswerStream:
        """The response that tells an answer as it happens, once it has begun to: what is wrong by then has a status."""
        events = self.agent.stream(question)
        try:
            first = await unless_gone(request.receive, anext(events))
        except BaseException:
            await events.aclose()
            raise
        kept = stack.pop_all()

        def over(outcome: Answer | Exception | None) -> None:
            kept.close()
            if isinstance(outcome, Answer):
                self.counts.answered(outcome)
                note(request, outcome)
            else:
                self.counts.failed(question.mode, CANCELLED if outcome is None else status_of(outcome))
                note(request, GONE if outcome is None else kind_of(outcome))

        return AnswerStream(teller, first, events, over, silence=self._silence)


def as_json(content: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response of JSON."""
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def failure(request: HttpRequest, error: Exception) -> Response:
    """The response that is an error, as clients of the API that was asked read it."""
    return as_json(body_of(error, request.scope["path"]), status=status_of(error), headers=headers_of(error))


def tenant_of(request: HttpRequest) -> str:
    """Who asks, "" where nobody knows."""
    return str(request.scope.get(TENANT, ""))


async def in_thread(large: bool, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """What `work` gives, from a thread if it is `large`: others go on meanwhile."""
    return await asyncio.to_thread(work, *given, **named) if large else work(*given, **named)


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
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
