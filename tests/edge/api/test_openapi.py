"""The document says what the server does: Schemathesis asks whatever the document allows, and some that it does not."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from cutline.demo.bundles import DRAFTER
from cutline.edge.api.app import application
from cutline.edge.api.openapi import document
from cutline.models.bundle import Bundle
from cutline.testing.agent import ScriptedAgent, spoken

API = Path(__file__).parents[3] / "docs/reference/api.md"
AGENT = ScriptedAgent(Bundle.open(DRAFTER).manifest, always=[spoken("Se", "ven", stop=2, logprob=-0.5)])
ENCODER: Any = SimpleNamespace(
    manifest=SimpleNamespace(name="rows", dimensions=4, patches=9),
    count_tokens=len,
    embed_images=lambda images: np.ones((len(images), 4), np.float32),
    embed_texts=lambda texts, *, fresh: np.ones((len(texts), 4), np.float32),
)
APP = application(AGENT, encoder=ENCODER)
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)
CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


@SCHEMA.parametrize()
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_what_the_document_says_holds(case: Any) -> None:
    case.call_and_validate(checks=CHECKS)


def test_every_path_that_is_served_is_tried() -> None:
    """Those of the API's page, but for the browser's, the document itself, and what is refused by name."""
    told = API.read_text().partition("## Ask")[0]
    named = {re.sub(r"{\w+}", "{}", path) for path in re.findall(r"`(?:[A-Z]+(?:`, `[A-Z]+)* )?(/[^`]*)`", told)}
    refused = {f"/api/{name}" for name in ("create", "copy", "delete", "push")}
    documented = {re.sub(r"{\w+}", "{}", path) for path in document()["paths"]}
    assert named - documented == refused | {"/", "/log-in", "/openapi.json"}
    assert documented <= named
    tried = {re.sub(r"{\w+}", "{}", one.ok().path) for one in SCHEMA.get_all_operations() if isinstance(one, Ok)}
    assert tried == documented


def test_the_document_has_every_path() -> None:
    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(APP), base_url="http://agent") as client:
            return await client.get("/openapi.json")

    response = asyncio.run(run())
    assert response.json() == msgspec.json.decode(msgspec.json.encode(document()))
    named = set(re.findall(r'"#/components/schemas/(\w+)"', response.text))
    assert set(document()["components"]["schemas"]) == named | {"ChatChunk"}, "which streams hold, that have no schema"
    assert not any(name.startswith("_") for name in named)


@pytest.mark.parametrize("name", ["temperature", "stop", "stream_options", "max_completion_tokens"])
def test_optional_fields_may_be_null(name: str) -> None:
    field = document()["components"]["schemas"]["ChatRequest"]["properties"][name]
    assert {"type": "null"} in field["anyOf"]
