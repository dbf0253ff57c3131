"""Going offline in the middle of an upload: the worker is lost, as by any other break, and no more than that."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest

from cutline.core.request import Mode
from cutline.edge.agent import Agent
from cutline.edge.generation.events import Event, Planned
from cutline.edge.generation.result import Tail
from cutline.errors import WorkerUnavailable
from cutline.protos.client import WorkerClient, WorkerSession
from cutline.protos.messages import ImageChunk, Open
from cutline.protos.v1 import worker_pb2 as pb
from cutline.testing.worker import BUNDLE, OWN, ScriptedWorker, ask, asking, ids, serving

LARGE = 256 << 20  # bytes: more than a link takes from whom nobody reads
SOON = 0.3  # seconds, after which it does take no more
OPENING = Open(model="m", tokens=(1, 2), prompt_length=2, max_tokens=8, images=1)


class DeafWorker(ScriptedWorker):
    """Takes the opening, and answers heartbeats, but never reads on."""

    async def _converse(
        self, messages: AsyncIterator[pb.AgentMessage], context: Any
    ) -> AsyncGenerator[pb.WorkerMessage]:
        await anext(aiter(messages))
        await asyncio.sleep(60)
        yield pb.WorkerMessage()


async def upload(session: WorkerSession) -> None:
    for _ in range(LARGE >> 20):
        await session.upload(ImageChunk(bytes(1 << 20), last=False))


def test_a_blocked_write_ends_with_its_connection_and_reading_says_why() -> None:
    async def run() -> None:
        async with (
            serving(DeafWorker()) as address,
            WorkerClient(address) as client,
            client.session(OPENING, (), timeout=30) as session,
        ):
            writing = asyncio.create_task(upload(session))
            done, _ = await asyncio.wait([writing], timeout=SOON)
            assert not done
            await client.close()
            await writing
            with pytest.raises(WorkerUnavailable, match="was closed"):
                await anext(session.events())

    asyncio.run(run())


def test_who_gives_up_a_blocked_write_is_cancelled() -> None:
    async def run() -> None:
        async with (
            serving(DeafWorker()) as address,
            WorkerClient(address) as client,
            client.session(OPENING, (), timeout=30) as session,
        ):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(upload(session), SOON)

    asyncio.run(run())


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the image, a large one is sent."""
    monkeypatch.setattr(type(BUNDLE.manifest.family), "shrink", lambda *_: os.urandom(LARGE))


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.DRAFT])
def test_offline_during_an_upload_the_drafter_goes_on_alone(mode: Mode) -> None:
    def off(agent: Agent, event: Event) -> None:
        if isinstance(event, Planned):
            asyncio.get_running_loop().call_later(1.0, setattr, agent, "offline", True)

    answer, _, (address,) = ask([DeafWorker()], asking(mode), during=off)
    assert (ids(answer), answer.alone_from, answer.tail) == (OWN, 0, Tail.UNVERIFIED)
    (lost,) = answer.lost
    assert (lost.worker, lost.next) == (address, None)
    assert "was closed" in lost.why


@pytest.mark.usefixtures("large")
def test_offline_during_an_upload_what_only_a_worker_may_answer_is_refused_for_that() -> None:
    def off(agent: Agent, event: Event) -> None:
        if isinstance(event, Planned):
            asyncio.get_running_loop().call_later(1.0, setattr, agent, "offline", True)

    with pytest.raises(WorkerUnavailable, match="was closed"):
        ask([DeafWorker()], asking(Mode.CLOUD), during=off)
