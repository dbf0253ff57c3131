"""The agent's side of a stream where the reading of it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cutline.cloud.serving import inbox as inbox_module
from cutline.cloud.serving.drafts import Drafts
from cutline.cloud.serving.inbox import Inbox
from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.errors import WorkerFailed
from cutline.models.bundle import Bundle
from cutline.protos.client import WorkerClient
from cutline.protos.codec import agent_from_wire, agent_to_wire
from cutline.protos.messages import AgentMessage, Confirmed, Draft, Open
from cutline.protos.v1 import worker_pb2 as pb

Case = tuple[Open, bytes, tuple[int, ...]]
SECONDS = 10


def test_a_stream_that_breaks_unforeseen_ends_there() -> None:
    async def broken() -> AsyncIterator[pb.AgentMessage]:
        yield agent_to_wire(Draft(3, (1, 2)))
        raise RuntimeError("nobody thought of this")

    async def main() -> None:
        async with asyncio.timeout(SECONDS), Inbox(broken(), linger=1.0) as inbox:
            assert await inbox.next() == Draft(3, (1, 2))
            with pytest.raises(WorkerFailed, match="log says more"):
                await inbox.next()

    asyncio.run(main())


def test_a_draft_that_cannot_be_read_for_no_foreseen_reason_ends_its_session(
    bundle: Bundle, asking: Any, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reading(message: pb.AgentMessage) -> AgentMessage:
        if message.WhichOneof("kind") == "draft":
            raise RuntimeError("nobody thought of this")
        return agent_from_wire(message)

    monkeypatch.setattr(inbox_module, "agent_from_wire", reading)

    async def main() -> None:
        worker = serve(bundle, WorkerOptions(slots=1, context=256))
        async with asyncio.timeout(3 * SECONDS), worker as address, WorkerClient(address) as client:
            one = asking(case, "image", believed=case[2], ahead=4, effort=0.0)
            with pytest.raises(WorkerFailed, match="log says more"):
                async with asyncio.timeout(SECONDS):
                    await one.ask(client)
            assert any(isinstance(event, Confirmed) for event in one.events)

    asyncio.run(main())


def test_drafts_that_were_held_go_on_once_and_are_held_no_more() -> None:
    passed = list[Draft]()
    some = [Draft(place, (place,)) for place in range(6)]

    async def main() -> None:
        drafts = Drafts(100)

        async def take(draft: Draft) -> None:
            passed.append(draft)
            if draft is some[1]:
                await drafts.put(some[3])

        for draft in some[:3]:
            await drafts.put(draft)
        await drafts.go_to(take)
        await drafts.go_to(take)
        await drafts.put(some[4])
        assert drafts.held() == ()

    asyncio.run(main())
    assert passed == some[:5]
