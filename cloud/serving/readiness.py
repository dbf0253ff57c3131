"""How the next worker of a chain stands, looked at again and again: this one is ready only as long as that is.

As the next worker says the same of the one after it, readiness goes to the end of the chain.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

from cutline.errors import CutlineError

log = logging.getLogger(__name__)

MISSES = 2  # looks in a row that must fail: one may, on a busy machine
FAULT = "this worker cannot look at the next one"  # of what went wrong here, agents read no more than that


class Lookout:
    """Looks at the next worker by `check`, which raises what a session that goes on there would meet.

    `looked` hears of every look: why no session can go on there, "" where one can, and the seconds that the look took.
    Between two looks are `pause` seconds.
    """

    def __init__(
        self,
        check: Callable[[], Awaitable[object]],
        looked: Callable[[str, float], Awaitable[object]],
        *,
        pause: float,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._check = check
        self._looked = looked
        self._pause = pause
        self._sleep = sleep
        self.blocked = ""  # why no session can go on there

    async def run(self) -> NoReturn:
        """Look for ever."""
        misses = 0
        while True:
            began = time.perf_counter()
            try:
                await self._check()
            except Exception as error:
                misses += 1
                why = str(error) if isinstance(error, CutlineError) else FAULT
                if misses == 1 and why == FAULT:
                    log.error(FAULT, exc_info=error)
                if misses >= MISSES and why != self.blocked:
                    log.error("no session can go on at the next worker: %s", error.__cause__ or why)
                    self.blocked = why
            else:
                misses = 0
                if self.blocked:
                    log.warning("sessions can go on at the next worker again")
                    self.blocked = ""
            await self._looked(self.blocked, time.perf_counter() - began)
            await self._sleep(self._pause)
