"""The OpenAPI document, made from the types that requests and responses are read and written with."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from importlib.metadata import version
from typing import Any

import msgspec

from cutline.edge.api.chat.completions import ChatChunk, ChatCompletion
from cutline.edge.api.embeddings.schema import EmbeddingList, EmbeddingRequest
from cutline.edge.api.errors import STATUS, Failed, OllamaFailed
from cutline.edge.api.introspection import Health, Model, Models, Props, Readiness, State, Switches
from cutline.edge.api.ollama.answers import OllamaAnswer
from cutline.edge.api.ollama.catalogue import (
    OllamaLoaded,
    OllamaModels,
    OllamaNamed,
    OllamaShown,
    OllamaStatus,
    OllamaVersion,
)
from cutline.edge.api.ollama.embeddings import OllamaEmbed, OllamaEmbedded, OllamaEmbeddedOne, OllamaEmbedOne
from cutline.edge.api.ollama.schema import OllamaChat, OllamaPrompt
from cutline.edge.api.requests.schema import ChatRequest
from cutline.edge.api.responses.objects import ResponseDeleted, ResponseObject
from cutline.edge.api.responses.schema import InputTurn, ResponseRequest

_TYPES = (
    *(EmbeddingList, EmbeddingRequest, OllamaEmbed, OllamaEmbedded, OllamaEmbedOne, OllamaEmbeddedOne),
    *(ChatRequest, ChatCompletion, ChatChunk, Failed, Health, Model, Models, Props),
    *(OllamaAnswer, OllamaChat, OllamaFailed, OllamaLoaded, OllamaModels, OllamaNamed, OllamaPrompt, OllamaShown),
    *(Readiness, State, Switches),
    *(OllamaStatus, OllamaVersion, ResponseDeleted, ResponseObject, ResponseRequest),
)
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
    schemas[InputTurn.__name__]["required"].remove("type")  # a turn of a conversation need not say that it is one
    read = {400, 404, 408, 413, 415, 429}
    rows = {*read, 500}
    asked = {*read, *STATUS.values()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Cutline's agent", "version": version("cutline")},
        "paths": {
            "/v1/chat/completions": {"post": _taking(ChatRequest, _events(_ANSWERED, ChatCompletion), asked)},
            "/v1/responses": {"post": _taking(ResponseRequest, _events("The answer", ResponseObject), asked)},
            "/v1/responses/{name}": {
                "get": _giving("A response that is kept", ResponseObject, {404}) | {"parameters": [_NAME]},
                "delete": _giving("It is kept no more", ResponseDeleted, {404}) | {"parameters": [_NAME]},
            },
            "/v1/embeddings": {"post": _taking(EmbeddingRequest, _json("Rows of the inputs", EmbeddingList), rows)},
            "/v1/models": {"get": _giving("The models that can be asked", Models)},
            "/v1/models/{model}": {"get": _giving("One model", Model, {404}) | {"parameters": [_MODEL]}},
            "/props": {"get": _giving("The model, as clients of llama.cpp look it up", Props)},
            "/cutline/state": {
                "get": _giving("How the agent stands", State),
                "post": _taking(Switches, _json("How the agent stands now", State), {400, 408, 409, 413, 415, 429}),
            },
            "/healthz": {"get": _giving("The agent is alive", Health)},
            "/readyz": {"get": _ready()},
            "/metrics": {"get": _plain("Prometheus' text")},
            "/api/version": {"get": _giving("The agent's version", OllamaVersion, failed=OllamaFailed)},
            "/api/tags": {"get": _giving("The models that are here", OllamaModels, failed=OllamaFailed)},
            "/api/ps": {"get": _giving("The models that are loaded", OllamaLoaded, failed=OllamaFailed)},
            "/api/show": {"post": _taking(OllamaNamed, _json("All about a model", OllamaShown), read, OllamaFailed)},
            "/api/pull": {"post": _taking(OllamaNamed, _lines("It is here", OllamaStatus), read, OllamaFailed)},
            "/api/chat": {"post": _taking(OllamaChat, _lines(_TOLD, OllamaAnswer), asked, OllamaFailed)},
            "/api/embed": {"post": _taking(OllamaEmbed, _json("Rows of texts", OllamaEmbedded), rows, OllamaFailed)},
            "/api/embeddings": {
                "post": _taking(OllamaEmbedOne, _json("A text's row", OllamaEmbeddedOne), rows, OllamaFailed)
            },
            "/api/generate": {"post": _taking(OllamaPrompt, _lines(_TOLD, OllamaAnswer), asked, OllamaFailed)},
        },
        "components": {"schemas": schemas},
    }


_ANSWERED = "The answer, whose events each hold a ChatChunk, and [DONE]"
_TOLD = "The answer; unless `stream` is false in lines that each hold a part"
_MODEL = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
_NAME = _MODEL | {"name": "name"}


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _json(what: str, kind: type) -> dict[str, Any]:
    return {"description": what, "content": {"application/json": {"schema": _ref(kind)}}}


def _events(what: str, kind: type) -> dict[str, Any]:
    whole = _json(f"{what}; with `stream`, in server-sent events", kind)
    whole["content"]["text/event-stream"] = {}  # whose parts no schema of OpenAPI 3.1 has words for
    return whole


def _lines(what: str, kind: type) -> dict[str, Any]:
    whole = _json(what, kind)
    whole["content"]["application/x-ndjson"] = {"schema": {"type": "string"}}
    return whole


def _refusals(statuses: set[int], failed: type = Failed) -> dict[str, Any]:
    return {str(status): _json(_REFUSALS[status], failed) for status in sorted(statuses | _ALWAYS)}


def _giving(what: str, kind: type, statuses: Collection[int] = (), failed: type = Failed) -> dict[str, Any]:
    return {"summary": what, "responses": {"200": _json(what, kind), **_refusals(set(statuses), failed)}}


def _taking(kind: type, answer: dict[str, Any], statuses: set[int], failed: type = Failed) -> dict[str, Any]:
    body = {"required": True, "content": {"application/json": {"schema": _ref(kind)}}}
    return {
        "summary": answer["description"],
        "requestBody": body,
        "responses": {"200": answer, **_refusals(statuses, failed)},
    }


def _ready() -> dict[str, Any]:
    what = "Whether questions are taken"
    responses = {"200": _json(what, Readiness), "503": _json("Not yet", Readiness), **_refusals(set())}
    return {"summary": what, "responses": responses}


def _plain(what: str) -> dict[str, Any]:
    content = {"text/plain": {"schema": {"type": "string"}}}
    return {"summary": what, "responses": {"200": {"description": what, "content": content}, **_refusals(set())}}
