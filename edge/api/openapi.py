"""The OpenAPI document, made from the types that requests and responses are read and written with."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

import msgspec

from cutline.edge.api.errors import STATUS, Failed
from cutline.edge.api.introspection import Health, Model, Models, Readiness, State, Switches
from cutline.edge.api.requests.schema import ChatRequest
from cutline.edge.api.responses import ChatChunk, ChatCompletion

_TYPES = (ChatRequest, ChatCompletion, ChatChunk, Failed, Health, Model, Models, Readiness, State, Switches)
_REFUSALS = {
    400: "What was asked cannot be answered",
    401: "The agent takes who has a token alone",
    403: "A page of another server asked, or for what others share",
    404: "There is no such model",
    409: "The agent was started offline",
    408: "The request did not arrive in time",
    413: "The request is too large",
    415: "The request is not JSON",
    421: "The agent was asked by a name that is not its own",
    431: "The request's headers are too large",
    424: "The workers that were named serve another model",
    429: "The agent, or the worker, has too much in work; `retry-after` says when to try again",
    500: "The agent failed, or its bundle is broken",
    501: "The worker is of another version, and one of the two lacks what the question takes",
    502: "The worker failed, or does not take this agent",
    503: "No worker answers, and none else may",
}
_ALWAYS = {401, 403, 421, 431}


@cache
def document() -> dict[str, Any]:
    """The document."""
    _, schemas = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
    asked = {400, 404, 408, 413, 415, *STATUS.values()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Cutline's agent", "version": version("cutline")},
        "paths": {
            "/v1/chat/completions": {"post": _taking(ChatRequest, _completed(), asked)},
            "/v1/models": {"get": _giving("The models that can be asked", Models)},
            "/v1/models/{model}": {"get": _giving("One model", Model, {404}) | {"parameters": [_MODEL]}},
            "/cutline/state": {
                "get": _giving("How the agent stands", State),
                "post": _taking(Switches, _json("How the agent stands now", State), {400, 408, 409, 413, 415, 429}),
            },
            "/healthz": {"get": _giving("The agent is alive", Health)},
            "/readyz": {"get": _ready()},
            "/metrics": {"get": _plain("Prometheus' text")},
        },
        "components": {"schemas": schemas},
    }


_MODEL = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _json(what: str, kind: type) -> dict[str, Any]:
    return {"description": what, "content": {"application/json": {"schema": _ref(kind)}}}


def _completed() -> dict[str, Any]:
    whole = _json("The answer; with `stream`, events that each hold a ChatChunk, and [DONE]", ChatCompletion)
    whole["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return whole


def _refusals(statuses: set[int]) -> dict[str, Any]:
    return {str(status): _json(_REFUSALS[status], Failed) for status in sorted(statuses | _ALWAYS)}


def _giving(what: str, kind: type, statuses: set[int] = frozenset()) -> dict[str, Any]:  # type: ignore[assignment]
    return {"summary": what, "responses": {"200": _json(what, kind), **_refusals(set(statuses))}}


def _taking(kind: type, answer: dict[str, Any], statuses: set[int]) -> dict[str, Any]:
    body = {"required": True, "content": {"application/json": {"schema": _ref(kind)}}}
    return {
        "summary": answer["description"],
        "requestBody": body,
        "responses": {"200": answer, **_refusals(statuses)},
    }


def _ready() -> dict[str, Any]:
    what = "Whether questions are taken"
    responses = {"200": _json(what, Readiness), "503": _json("Not yet", Readiness), **_refusals(set())}
    return {"summary": what, "responses": responses}


def _plain(what: str) -> dict[str, Any]:
    content = {"text/plain": {"schema": {"type": "string"}}}
    return {"summary": what, "responses": {"200": {"description": what, "content": content}, **_refusals(set())}}
