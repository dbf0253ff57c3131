"""Counts the bytes of a session's stream, and slows down reading from a tenant that is over its upload rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from cutline.cloud.access.auth import CALLER
from cutline.cloud.access.quota import Shares
from cutline.cloud.telemetry.observer import Observer
from cutline.cloud.telemetry.session_stats import Account
from cutline.protos.v1 import worker_pb2 as pb


class TrafficMeter:
    """Counts the bytes of sessions' messages for their accounts, their tenants' `shares`, and an `observer`."""

    def __init__(self, shares: Shares, observer: Observer) -> None:
        self._shares = shares
        self._observer = observer

    async def up(self, messages: AsyncIterator[pb.AgentMessage], account: Account) -> AsyncIterator[pb.AgentMessage]:
        """The caller's `messages`, counted and slowed down."""
        tenant, incoming = CALLER.get().tenant, aiter(messages)
        ahead: asyncio.Future[pb.AgentMessage | None] | None = None
        try:
            while (message := await (ahead or anext(incoming, None))) is not None:
                ahead = None
                size = message.ByteSize()
                account.bytes_up += size
                self._observer.carried(up=size)
                self._shares.charge(tenant, size)
                # An unread message makes gRPC's flow control stop the agent.
                if not _cancels(message) and (wait := self._shares.over(tenant)):
                    account.slowed += wait
                    ahead = asyncio.ensure_future(anext(incoming, None))
                    await _pause(wait, ahead)
                yield message
        finally:
            if ahead is not None:
                ahead.cancel()

    def down(self, message: pb.WorkerMessage, account: Account) -> pb.WorkerMessage:
        """A `message` to the caller, counted."""
        size = message.ByteSize()
        account.bytes_down += size
        self._observer.carried(down=size)
        return message


def _cancels(message: pb.AgentMessage | None) -> bool:
    return message is not None and message.HasField("cancel")


async def _pause(seconds: float, ahead: asyncio.Future[pb.AgentMessage | None]) -> None:
    """Wait for `seconds`, or until the next message `ahead` cancels the session."""
    ends = time.monotonic() + seconds
    await asyncio.wait([ahead], timeout=seconds)
    if not ahead.done() or ahead.exception() is not None or not _cancels(ahead.result()):
        await asyncio.sleep(ends - time.monotonic())
