"""Agents and questions that cannot be, and workers that are not there or not the right ones."""

from __future__ import annotations

import asyncio
import socket

import msgspec
import pytest

from cutline.core.request import Mode, Request
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.agent import Agent
from cutline.errors import (
    BundleError,
    ImageError,
    InputError,
    ModelMismatch,
    PromptError,
    WorkerUnavailable,
)
from cutline.models.bundle import Bundle
from cutline.testing.together import asking, together

LONGEST = next(request for request in requests(Split.EVALUATION, 2, seed=11) if request.question.kind == "describe")


@pytest.fixture(scope="module")
def target() -> Bundle:
    return Bundle.open(TARGET)


@pytest.fixture(scope="module")
def drafter() -> Bundle:
    return Bundle.open(DRAFTER)


@pytest.mark.parametrize("mode", [Mode.CLOUD, Mode.DRAFT])
def test_a_mode_that_needs_a_worker_says_so(drafter: Bundle, mode: Mode) -> None:
    async def run() -> None:
        async with Agent(drafter, worker=None, threads=1) as agent:
            with pytest.raises(InputError, match="needs a worker"):
                await agent.answer(asking(LONGEST, mode))

    asyncio.run(run())


def test_nobody_at_the_address(drafter: Bundle) -> None:
    async def run() -> None:
        async with asyncio.timeout(15), Agent(drafter, worker="127.0.0.1:1", threads=1) as agent:
            with pytest.raises(WorkerUnavailable, match=r"127\.0\.0\.1:1"):
                await agent.answer(asking(LONGEST, Mode.CLOUD))

    asyncio.run(run())


@pytest.mark.parametrize("address", ["", "host", ":50051", "host:", "host:http", "host:0", "host:70000", "unix:/tmp/x"])
def test_what_is_no_address(drafter: Bundle, address: str) -> None:
    with pytest.raises(InputError, match="HOST:PORT"):
        Agent(drafter, worker=address, threads=1)


def test_a_worker_of_another_model(target: Bundle, drafter: Bundle) -> None:
    other = Bundle(drafter.path, msgspec.structs.replace(drafter.manifest, target="0" * 64))

    async def run() -> None:
        async with together(target, other) as agent:
            with pytest.raises(ModelMismatch, match="000000000000"):
                await agent.answer(asking(LONGEST, Mode.CLOUD))
            assert not (await agent.answer(asking(LONGEST, Mode.EDGE))).exact

    asyncio.run(run())


def test_a_drafter_without_a_target(target: Bundle, drafter: Bundle) -> None:
    alone = Bundle(drafter.path, msgspec.structs.replace(drafter.manifest, target=None))

    async def run() -> None:
        async with Agent(alone, worker="127.0.0.1:1", threads=1) as agent:
            with pytest.raises(BundleError, match="without a target"):
                await agent.answer(asking(LONGEST, Mode.CLOUD))

    asyncio.run(run())


def test_a_worker_that_never_answers_is_given_up_in_time(drafter: Bundle) -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            async with Agent(drafter, worker=f"127.0.0.1:{silent.getsockname()[1]}", threads=1) as agent:
                with pytest.raises(WorkerUnavailable, match="nothing was heard"):
                    await agent.answer(asking(LONGEST, Mode.CLOUD, timeout=0.5))

    asyncio.run(run())


@pytest.mark.parametrize("mode", [Mode.EDGE, Mode.CLOUD, Mode.DRAFT, Mode.AUTO])
def test_a_bad_image_is_refused_before_anything_is_sent(drafter: Bundle, mode: Mode) -> None:
    async def run() -> None:
        async with Agent(drafter, worker="127.0.0.1:1", threads=1) as agent:
            with pytest.raises(ImageError):
                await agent.answer(Request.about(b"no image", "What?", mode=mode))

    asyncio.run(run())


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"text": "\udcff"}, PromptError),
        ({"effort": -0.1}, InputError),
        ({"effort": float("nan")}, InputError),
        ({"max_tokens": 0}, InputError),
        ({"mode": Mode.CLOUD, "cut": "decoder.2"}, InputError),
        ({"mode": Mode.EDGE, "cut": "decoder.2"}, InputError),
        ({"mode": Mode.DRAFT, "cut": "decoder.2", "keep_image_tokens": 0.0}, InputError),
        ({"mode": Mode.DRAFT, "cut": "decoder.2", "keep_image_tokens": 1.1}, InputError),
        ({"mode": Mode.DRAFT, "cut": "decoder.2", "keep_image_tokens": float("nan")}, InputError),
        ({"mode": Mode.DRAFT, "cut": "vision.1", "keep_image_tokens": 0.5}, InputError),
        ({"mode": Mode.DRAFT, "keep_image_tokens": 0.5}, InputError),
        ({"timeout": 0.0}, InputError),
        ({"timeout": float("nan")}, InputError),
        ({"timeout": float("inf")}, InputError),
    ],
)
def test_a_question_that_cannot_be_asked(options: dict[str, object], kind: type[Exception]) -> None:
    asked: dict[str, object] = {"image": b"", "text": "What?"}
    with pytest.raises(kind):
        Request.about(**(asked | options))  # type: ignore[arg-type]
