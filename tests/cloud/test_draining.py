"""A worker that is to stop: what it says, what it refuses, what it lets end, and how it is hurried."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.cloud.telemetry.observer import Observer
from cutline.cloud.telemetry.session_stats import Account
from cutline.core.wire import Wire
from cutline.errors import WorkerUnavailable
from cutline.models.bundle import Bundle
from cutline.protos.client import WorkerClient
from cutline.protos.messages import Confirmed, Draft, Finished, Open, Opened, image_chunks

Case = tuple[Open, bytes, tuple[int, ...]]


class Accounts(Observer):
    def __init__(self) -> None:
        self.ended_ones: list[Account] = []

    def ended(self, account: Account) -> None:
        self.ended_ones.append(account)


@contextlib.asynccontextmanager
async def held(client: WorkerClient, case: Case) -> AsyncIterator[tuple[Any, AsyncIterator[Any]]]:
    """A session that waits for a draft after its first token."""
    opening = Open(**{name: getattr(case[0], name) for name in Open.__slots__} | {"effort": 0.0})
    async with client.session(opening, list(image_chunks(case[1])), timeout=30) as session:
        events = session.events()
        assert isinstance(await anext(events), Opened)
        assert isinstance(await anext(events), Confirmed)
        yield session, events


def test_open_sessions_end_and_new_ones_are_refused(bundle: Bundle, case: Case) -> None:
    opening, image, answer = case
    observer = Accounts()

    async def main() -> None:
        async with asyncio.timeout(120), contextlib.AsyncExitStack() as stack:
            worker = serve(
                bundle,
                WorkerOptions(slots=2, context=256, wires=(Wire.FLOAT32, Wire.INT8), drain=600.0),
                observer=observer,
            )
            address = await worker.__aenter__()
            client = await stack.enter_async_context(WorkerClient(address))
            described = await client.describe()
            assert (described.draining, described.wires) == (False, (Wire.FLOAT32, Wire.INT8))
            talk = await stack.enter_async_context(contextlib.AsyncExitStack())
            session, events = await talk.enter_async_context(held(client, case))
            ending = asyncio.create_task(worker.__aexit__(None, None, None))
            while not (await client.describe()).draining:
                pass
            async with grpc.aio.insecure_channel(address) as channel:
                health = health_pb2_grpc.HealthStub(channel)
                reply = await health.Check(health_pb2.HealthCheckRequest())
                assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(WorkerUnavailable, match="draining"):
                async with client.session(opening, list(image_chunks(image)), timeout=9) as refused:
                    await anext(refused.events())
            await session.offer(Draft(opening.prompt_length + 1, answer[1:]))
            said = [event async for event in events]
            assert isinstance(said[-1], Finished)
            assert tuple(token for one in said[:-1] for token in one.tokens) == answer[1:]
            await talk.aclose()
            await ending  # with the last session, long before the draining is over

    asyncio.run(main())
    refused, done = observer.ended_ones
    assert (refused.status, refused.tokens, refused.session) == ("UNAVAILABLE", 0, "")
    assert (done.status, done.tokens, done.cut, done.images) == ("OK", len(answer), "image", 1)


def test_sessions_that_do_not_end_are_told_to_move(bundle: Bundle, case: Case) -> None:
    async def main() -> None:
        async with asyncio.timeout(120), contextlib.AsyncExitStack() as stack:
            worker = serve(bundle, WorkerOptions(slots=2, context=256, drain=0.3))
            client = await stack.enter_async_context(WorkerClient(await worker.__aenter__()))
            _, events = await stack.enter_async_context(held(client, case))
            ending = asyncio.create_task(worker.__aexit__(None, None, None))
            with pytest.raises(WorkerUnavailable, match="stopped; ask another"):
                await anext(events)
            await stack.aclose()
            await ending

    asyncio.run(main())
