"""An event loop with virtual time, which advances only while nothing is ready to run.

A test of waits and time limits takes no time in it, and other work on the machine disturbs none of its figures.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Coroutine
from typing import Any, TypeVar
from unittest import mock

_T = TypeVar("_T")
_ARRIVAL_S = 0.005  # what was sent over a socket of this machine has come by then: only then does time pass


class _Idle(selectors.DefaultSelector):
    """Waits for sockets as usual, and for timers by advancing the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = time.monotonic()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(timeout if timeout is None else min(timeout, _ARRIVAL_S * (len(self.get_map()) > 1)))
        if not ready and timeout:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop of virtual seconds. What runs beside it, as threads do, is not waited for by its clock."""

    def __init__(self) -> None:
        self._idle = _Idle()
        super().__init__(self._idle)
        self._clock_resolution = 1e-6  # what is due is begun, though a float tells no nanoseconds after some weeks

    def time(self) -> float:
        return self._idle.now

    def hold(self, seconds: float) -> None:
        """Advance the clock as if the whole process had been suspended for so long."""
        self._idle.now += seconds


def run_virtually(main: Coroutine[Any, Any, _T]) -> _T:
    """Run `main` as `asyncio.run` does; `time.monotonic` returns virtual seconds, too."""
    with (
        asyncio.Runner(loop_factory=VirtualLoop) as runner,
        mock.patch.object(time, "monotonic", runner.get_loop().time),
    ):
        return runner.run(main)


def hold(seconds: float) -> None:
    """Suspend the running loop for so many virtual seconds."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.hold(seconds)
