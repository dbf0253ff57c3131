"""What strangers are told of an error, and what only the log is."""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path

import httpx
import msgspec
import pytest

from cutline.demo.bundles import DRAFTER
from cutline.edge.agent import Agent
from cutline.edge.api.app import application
from cutline.edge.api.errors import fault_of
from cutline.errors import BundleError, WorkerUnavailable
from cutline.models.bundle import Bundle, read_manifest, write_manifest


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "/srv/models/small is not calibrated; run `cutline calibrate`",
            "small is not calibrated; run `cutline calibrate`",
        ),
        ("/home/Ann Smith/our models/small is not calibrated", "small is not calibrated"),
        ("decoder.onnx in C:\\Users\\ann\\small is not of its sizes", "decoder.onnx in small is not of its sizes"),
        ("/a/b/x.onnx does not load (no file /a/b/x.data); export", "x.onnx does not load (no file x.data); export"),
        ("models/small holds a target; an agent needs a drafter", "small holds a target; an agent needs a drafter"),
        (
            "the chat template of small does not parse (SyntaxError)",
            "the chat template of small does not parse (SyntaxError)",
        ),
    ],
)
def test_a_broken_bundle_is_told_without_where_it_lies(
    message: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        fault = fault_of(BundleError(message))
    assert (fault.message, fault.type) == (told, "BundleError")
    assert message in caplog.text


def test_addresses_are_told() -> None:
    message = "no server answers at https://there/v1, or the link to it broke"
    assert fault_of(WorkerUnavailable(message)).message == message


def test_a_gate_that_is_missing_is_told_over_http(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A real bundle whose calibration is gone, asked in mode auto."""
    folder = tmp_path / "a drafter"
    shutil.copytree(DRAFTER, folder)
    write_manifest(folder, msgspec.structs.replace(read_manifest(folder), calibration=None))

    async def run() -> httpx.Response:
        async with Agent(Bundle.open(folder), worker=None, threads=1) as agent:  # nobody is there to verify
            transport = httpx.ASGITransport(application(agent), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
                asked = {"messages": [{"role": "user", "content": "What?"}]}
                return await client.post("/v1/chat/completions", json=asked)

    response = asyncio.run(run())
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (500, "BundleError")
    assert "is not calibrated" in error["message"]
    assert str(tmp_path) not in response.text
    assert str(tmp_path) in caplog.text
