"""A pool of workers with scripted clients instead of connections, for tests."""

from __future__ import annotations

import asyncio

from cutline.edge.offload.worker_pool import Workers
from cutline.errors import CutlineError
from cutline.protos.client import WorkerClient
from cutline.protos.messages import Description
from cutline.testing.worker import DESCRIPTION


class Time:
    """A clock that moves only when something sleeps on it."""

    now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Advance the clock by so much."""
        self.now += seconds
        await asyncio.sleep(0)


class ScriptedClient:
    """A worker's client whose `describe` returns, or raises, what it `says`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.connected = True
        self.connection = 0
        self.says: Description | CutlineError | None = DESCRIPTION  # None: nothing
        self.asked = 0
        self.closed = 0

    async def describe(self) -> Description:
        """Return or raise `says`."""
        self.asked += 1
        if self.says is None:
            await asyncio.Event().wait()
        if isinstance(self.says, CutlineError):
            raise self.says
        assert self.says is not None
        return self.says

    async def close(self, *, grace: float = 0.0) -> None:
        """Count the call."""
        self.closed += 1


class ScriptedFleet(Workers):
    """A pool of such workers, with a scripted clock."""

    def __init__(self, *addresses: str, time: Time) -> None:
        self.scripts = {address: ScriptedClient(address) for address in addresses}
        super().__init__(addresses, clock=time, chance=lambda: 0.0, sleep=time.sleep)

    def _client(self, address: str) -> WorkerClient:
        known = self._known[address]
        known.client = known.client or self.scripts[address]  # type: ignore[assignment]
        assert known.client is not None
        return known.client
