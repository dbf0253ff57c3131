"""Whose turn it is in a session: a worker that answers heartbeats, and says nothing of the answer, is given up, too.

Heartbeats show that a worker's process lives and not that its models do: a device may hang behind it. So where another
worker could still answer in time, half of the time that is left is kept for that one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from cutline.errors import WorkerUnavailable

LEAST_NOTICES = 4.0  # of silence: less than that is no sign of anything, however near the deadline is
_STEPS = 4  # how often within a notice it is looked at


def patience(notice: float, left: float) -> float:
    """Seconds that a worker may say nothing of the answer when its turn begins with `left` seconds to the deadline."""
    return max(LEAST_NOTICES * notice, left / 2)


@dataclass(slots=True, eq=False)
class StallDetector:
    """Whose turn it is with the worker at `address`, which is to answer by `end`. Times are monotonic.

    `others` says whether another worker could be asked now; without one, this one has all the time there is.
    """

    address: str
    notice: float
    end: float
    others: Callable[[], bool]
    since: float | None = None  # when the worker's turn began; None while it waits for this agent

    def theirs(self) -> None:
        """The worker has something to do, or has just said something and goes on."""
        self.since = time.monotonic()

    def ours(self) -> None:
        """The worker waits for this agent."""
        self.since = None

    async def watch(self) -> NoReturn:
        """For ever. Raises WorkerUnavailable once the worker has let its turn go by."""
        step = self.notice / _STEPS
        while True:
            before = time.monotonic()
            await asyncio.sleep(step)
            now = time.monotonic()
            if self.since is None:
                continue
            # As with heartbeats: while this process was held up, it heard nothing.
            self.since += max(0.0, now - before - step)
            if now - self.since > patience(self.notice, self.end - self.since) and self.others():
                raise WorkerUnavailable(
                    f"the worker at {self.address} answers heartbeats, but said nothing of the answer for "
                    f"{now - self.since:.1f} seconds; its operator should look at it"
                )
