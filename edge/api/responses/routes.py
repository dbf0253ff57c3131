"""What answers at each path of the Responses API."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cutline.edge.api.errors import Fault, Refused
from cutline.edge.api.handler import RequestHandler, as_json, tenant_of
from cutline.edge.api.responses.objects import ResponseDeleted
from cutline.edge.api.responses.schema import ResponseAsked, read_response
from cutline.edge.api.responses.store import ResponseStore
from cutline.edge.api.streams import AnswerStream
from cutline.errors import InputError


def responses(handler: RequestHandler) -> list[Route]:
    """The paths."""
    api = _Responses(handler)
    return [
        Route("/v1/responses", api.create, methods=["POST"]),
        Route("/v1/responses/{name}", api.kept, methods=["GET", "DELETE"]),
    ]


class _Responses:
    def __init__(self, handler: RequestHandler) -> None:
        self._handler = handler
        self._store = ResponseStore()

    async def create(self, request: Request) -> Response | AnswerStream:
        read = partial(read_response, tenant=tenant_of(request), store=self._store)
        return await self._handler.respond(request, read, ResponseAsked.teller)

    async def kept(self, request: Request) -> Response:
        tenant, name = tenant_of(request), request.path_params["name"]
        found = self._store.find(tenant, name)
        if found is None:
            fault = Fault(f"no response {name[:80]!r} is kept", InputError.__name__, "response_id", "not_found")
            raise Refused(404, fault)
        if request.method == "DELETE":
            self._store.drop(tenant, name)
            return as_json(ResponseDeleted(name))
        return as_json(found.response)
