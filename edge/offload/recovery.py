"""Probes in the background, of what has failed or may be asked next: no question has to find out how that stands."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

PROBE_SECONDS = 1.0  # between two probes of one that failed; with gRPC's pause to connect anew, below BACK_SECONDS
BACK_SECONDS = 2.0  # within which one that is back is asked again
ANSWER_SECONDS = 2.0  # that a probe may take

Probe = Callable[[], Awaitable[bool]]  # asks once; gives whether to go on asking


class Recovery:
    """Probes by name, each until it says that it is needed no more. Use it from one event loop, and close it."""

    def __init__(self, *, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        self._sleep = sleep
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ending = set[asyncio.Task[None]]()

    def begin(self, name: str, probe: Probe, *, at_once: bool = False) -> None:
        """Go on probing every PROBE_SECONDS, the first time then or `at_once`; of no effect where `name` is probed."""
        if name not in self._tasks:
            self._tasks[name] = task = asyncio.create_task(self._go_on(probe, 0.0 if at_once else PROBE_SECONDS))
            task.add_done_callback(lambda done: self._ended(name, done))

    def end(self) -> None:
        """Give up every probe, at once."""
        for task in self._tasks.values():
            task.cancel()
            self._ending.add(task)
        self._tasks.clear()

    async def close(self) -> None:
        """Give up every probe, and wait until it has ended."""
        self.end()
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def _go_on(self, probe: Probe, seconds: float) -> None:
        await self._sleep(seconds)
        while await probe():
            await self._sleep(PROBE_SECONDS)

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(name) is task:
            del self._tasks[name]
        self._ending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s is not probed any more", name, exc_info=error)
