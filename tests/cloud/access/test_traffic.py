"""How a tenant that sends more than it may is slowed down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cutline.cloud.access import traffic
from cutline.cloud.access.auth import CALLER, Caller
from cutline.cloud.access.quota import Shares
from cutline.cloud.access.traffic import TrafficMeter
from cutline.cloud.telemetry.observer import NOBODY
from cutline.cloud.telemetry.session_stats import Account
from cutline.protos.channel.token_file import Quota
from cutline.protos.codec import agent_to_wire
from cutline.protos.messages import Cancel, Draft, ImageChunk
from cutline.protos.v1 import worker_pb2 as pb

LARGE, CANCEL = agent_to_wire(ImageChunk(bytes(11_000), last=False)), agent_to_wire(Cancel())
DRAFT = agent_to_wire(Draft(3, (1, 2)))


async def each(messages: list[pb.AgentMessage]) -> AsyncIterator[pb.AgentMessage]:
    for message in messages:
        yield message


def metered(messages: list[pb.AgentMessage], limits: Quota) -> tuple[list[pb.AgentMessage], Account]:
    async def main() -> tuple[list[pb.AgentMessage], Account]:
        CALLER.set(Caller("a"))
        account = Account("a")
        async with asyncio.timeout(20):
            meter = TrafficMeter(Shares(lambda _: limits, places=1), NOBODY)
            return [message async for message in meter.up(each(messages), account)], account

    return asyncio.run(main())


def test_what_comes_goes_on_whole_and_is_counted() -> None:
    messages = [LARGE, DRAFT, DRAFT, CANCEL]
    said, account = metered(messages, Quota())
    assert said == messages
    assert account.bytes_up == sum(message.ByteSize() for message in messages)
    assert account.slowed == 0


def test_what_is_too_much_is_held_up_as_long_as_the_rate_says() -> None:
    """Ten seconds' worth may come at once: of 22 KB at a rate of 2 KB a second the rest takes a second."""
    slept = list[float]()
    real = traffic._pause

    async def pause(seconds: float, ahead: Any) -> None:
        slept.append(seconds)
        await real(0.0, ahead)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traffic, "_pause", pause)
        said, account = metered([LARGE, LARGE, DRAFT], Quota(upload_mb_per_second=0.002))
    assert said == [LARGE, LARGE, DRAFT]
    assert slept[0] == pytest.approx(1.0, abs=0.2)
    assert account.slowed == pytest.approx(sum(slept))


def test_a_cancel_is_not_held_up() -> None:
    """Nor what came before it: after that nobody waits for it. At this rate it would take three hours."""
    said, account = metered([LARGE, CANCEL], Quota(upload_mb_per_second=1e-6))
    assert said == [LARGE, CANCEL]
    assert account.slowed > 10_000
