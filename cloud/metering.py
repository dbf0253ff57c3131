"""What goes over a session's stream, counted; and a tenant that sends more than it may is read more slowly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from cutline.cloud.accounts import Account
from cutline.cloud.identity import CALLER
from cutline.cloud.observer import Observer
from cutline.cloud.shares import Shares
from cutline.protos.v1 import worker_pb2 as pb


class Meter:
    """Counts messages of sessions: for their accounts, their tenants' `shares`, and an `observer`."""

    def __init__(self, shares: Shares, observer: Observer) -> None:
        self._shares = shares
        self._observer = observer

    async def up(self, messages: AsyncIterator[pb.AgentMessage], account: Account) -> AsyncIterator[pb.AgentMessage]:
        """The caller's `messages`."""
        tenant = CALLER.get().tenant
        async for message in messages:
            size = message.ByteSize()
            account.bytes_up += size
            self._observer.carried(up=size)
            self._shares.charge(tenant, size)
            if wait := self._shares.over(tenant):  # gRPC stops an agent whose messages are not read
                await asyncio.sleep(wait)
            yield message

    def down(self, message: pb.WorkerMessage, account: Account) -> pb.WorkerMessage:
        """A message to the caller."""
        size = message.ByteSize()
        account.bytes_down += size
        self._observer.carried(down=size)
        return message
