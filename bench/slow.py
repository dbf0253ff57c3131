"""A core made slow: `python -m cutline.bench.slow CORE SPEED` leaves a share of a core to whoever else runs on it.

A burner with real-time priority takes the rest, 200 µs after 200 µs, so that work of a millisecond is as evenly slower
as work of a second. A control group's quota is no good for that: a step of 0.1 ms goes at full speed, and then
everything stands still for ten (measured). Memory and caches stay as fast as they are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cutline.errors import InputError

PERIOD = 200e-6  # seconds
SWITCH = 20e-6  # seconds of a period that nobody has: to the burner and back, with what that does to caches
LEAST = 0.1  # of a core: the system itself keeps a twentieth from real-time work


@contextmanager
def slowed(core: int, speed: float) -> Iterator[None]:
    """A share `speed` of the core `core` for all others. Raises InputError where the system does not allow that."""
    if speed == 1.0:
        yield
        return
    command = [sys.executable, "-m", "cutline.bench.slow", str(core), str(speed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as burner:
        assert burner.stdout is not None
        try:
            if not burner.stdout.readline():
                raise InputError("real-time priority is not allowed here, so no core can be made slow; use --speeds 1")
            yield
        finally:
            burner.kill()


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Processes started within run on the core `core` alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def burn(core: int, speed: float) -> None:
    """Take what `speed` leaves of the core, until killed."""
    os.sched_setaffinity(0, {core})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    print("burning", flush=True)
    parent, period = os.getppid(), 0.0
    while os.getppid() == parent:  # whoever started this may be killed
        begin = max(period, time.perf_counter())
        period = begin + PERIOD
        while time.perf_counter() < begin + (1 - speed) * PERIOD - SWITCH:
            pass
        time.sleep(max(0.0, period - time.perf_counter()))


if __name__ == "__main__":
    burn(int(sys.argv[1]), float(sys.argv[2]))
