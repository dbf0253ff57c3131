"""A chain's head is ready as long as all that come after it are, to the end of the chain."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import generate_latest

from cutline.cloud.serving.limits import ServingLimits
from cutline.cloud.serving.pipeline import GAP
from cutline.cloud.serving.readiness import FAULT, MISSES, Lookout
from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.cloud.telemetry.metrics import WorkerMetrics
from cutline.cloud.telemetry.observer import NOBODY, Observer
from cutline.errors import CutlineError, WorkerUnavailable
from cutline.models.bundle import Bundle
from cutline.protos.client import WorkerClient

Case = Any
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def test_one_look_may_fail_and_what_changes_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    gone, busy = WorkerUnavailable("gone"), WorkerUnavailable("busy")
    script: list[CutlineError | None] = [None, gone, None, *[gone] * 4, busy, None, None]
    heard = list[str]()

    async def check() -> None:
        if not script:
            raise asyncio.CancelledError
        if (error := script.pop(0)) is not None:
            raise error

    async def looked(why: str, seconds: float) -> None:
        assert seconds >= 0.0
        heard.append(why)

    async def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await Lookout(check, looked, pause=1.0, sleep=lambda seconds: asyncio.sleep(0)).run()

    asyncio.run(run())
    assert MISSES == 2
    assert heard == ["", "", "", "", "gone", "gone", "gone", "busy", "", ""]
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR", "WARNING"]


def test_a_fault_in_looking_is_logged_and_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    script: list[Exception | None] = [RuntimeError("a bug"), RuntimeError("a bug"), None]
    heard = list[str]()

    async def check() -> None:
        if not script:
            raise asyncio.CancelledError
        if (error := script.pop(0)) is not None:
            raise error

    async def looked(why: str, seconds: float) -> None:
        heard.append(why)

    async def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await Lookout(check, looked, pause=1.0, sleep=lambda seconds: asyncio.sleep(0)).run()

    asyncio.run(run())
    assert heard == ["", FAULT, ""]
    assert "a bug" not in FAULT
    traced = [record for record in caplog.records if record.exc_info]
    assert [str(record.exc_info and record.exc_info[1]) for record in traced] == ["a bug"]


@contextlib.asynccontextmanager
async def stage(
    bundle: Bundle,
    start: str,
    end: str,
    *,
    listen: str = "127.0.0.1:0",
    after: str | None = None,
    observer: Observer = NOBODY,
) -> AsyncIterator[str]:
    limits = ServingLimits(look_seconds=0.05, silence_seconds=0.5)
    options = WorkerOptions(listen=listen, slots=2, context=64, layers=(start, end), next_worker=after, limits=limits)
    async with serve(bundle, options, observer=observer) as address:
        yield address


async def health(address: str) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    status: int = answer.status
    return status


async def becomes(address: str, status: int) -> str:
    """Why it takes no sessions, once its health is as it should be."""
    async with asyncio.timeout(60):
        while await health(address) != status:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    async with WorkerClient(address) as client:
        return (await client.describe()).blocked


def figure(metrics: WorkerMetrics, name: str) -> float:
    lines = generate_latest(metrics.registry).decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def test_readiness_goes_to_the_end_of_the_chain_and_comes_back(bundle: Bundle) -> None:
    async def run() -> None:
        metrics = WorkerMetrics()
        async with contextlib.AsyncExitStack() as stack:
            tail = await stack.enter_async_context(contextlib.AsyncExitStack())
            last = await tail.enter_async_context(stage(bundle, "decoder.2", "end"))
            middle = await stack.enter_async_context(stage(bundle, "decoder.1", "decoder.2", after=last))
            head = await stack.enter_async_context(stage(bundle, "image", "decoder.1", after=middle, observer=metrics))
            assert await becomes(head, SERVING) == ""
            await tail.aclose()
            why = await becomes(head, NOT_SERVING)
            assert "further along the chain" in why
            assert last not in why
            assert figure(metrics, "cutline_next_worker_ready") == 0.0
            tail = await stack.enter_async_context(contextlib.AsyncExitStack())
            await tail.enter_async_context(stage(bundle, "decoder.2", "end", listen=last))
            assert await becomes(head, SERVING) == ""
            assert figure(metrics, "cutline_next_worker_ready") == 1.0
            assert figure(metrics, "cutline_next_worker_seconds") > 0.0
            # It comes back with other layers: a gap, which is the configuration's fault.
            await tail.aclose()
            await becomes(head, NOT_SERVING)
            await stack.enter_async_context(stage(bundle, "decoder.3", "end", listen=last))
            async with asyncio.timeout(60):
                while await becomes(head, NOT_SERVING) != GAP:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

    asyncio.run(run())


def test_a_session_at_a_gap_is_told_of_the_configuration(bundle: Bundle, asking: Any, case: Case) -> None:
    """At once, where nobody has looked yet."""

    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            tail = await stack.enter_async_context(contextlib.AsyncExitStack())
            last = await tail.enter_async_context(stage(bundle, "decoder.2", "end"))
            head = await stack.enter_async_context(stage(bundle, "image", "decoder.2", after=last))
            client = await stack.enter_async_context(WorkerClient(head))
            await tail.aclose()
            await stack.enter_async_context(stage(bundle, "decoder.3", "end", listen=last))
            with pytest.raises(WorkerUnavailable, match="do not meet"):
                await asking(case, "image").ask(client)

    asyncio.run(run())


def test_a_next_worker_that_is_frozen_is_not_ready(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and says nothing: a process that is stopped, or a link that swallows all."""

    async def run() -> None:
        frozen = asyncio.Event()
        describe = WorkerClient.describe

        async def says(client: WorkerClient) -> Any:
            if frozen.is_set() and client.address == last:
                await asyncio.Event().wait()
            return await describe(client)

        monkeypatch.setattr(WorkerClient, "describe", says)
        async with (
            stage(bundle, "decoder.2", "end") as last,
            stage(bundle, "image", "decoder.2", after=last) as head,
        ):
            assert await becomes(head, SERVING) == ""
            frozen.set()
            assert "does not answer" in await becomes(head, NOT_SERVING)
            frozen.clear()
            assert await becomes(head, SERVING) == ""

    asyncio.run(run())


def test_a_worker_without_a_next_one_shows_no_figures_of_it() -> None:
    assert "next_worker" not in generate_latest(WorkerMetrics().registry).decode()
