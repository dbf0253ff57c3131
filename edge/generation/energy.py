"""What the device spends on answers: counted by its own sensors where it has them, else estimated from its profile.

Counters count the machine, not a process: what others do at the same time is in it. Answers that are given at the same
time share what was spent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cutline.devices.machine.cores import usable_cores
from cutline.devices.machine.power import ina3221_watts, joules_between, rapl_joules
from cutline.edge.generation.result import Energy

if TYPE_CHECKING:  # a device without a profile loads nothing of it
    from cutline.devices.profile import DeviceProfile

Spent = Callable[[], float]  # joules since it was called before


class Reading:
    """What one answer has taken so far."""

    def __init__(self) -> None:
        self.joules = 0.0


class EnergyMeter:
    """Reads the counters of energy that can be read at once, else the `profile`'s power, else nothing.

    Use it from one thread. `root` is where the kernel's files are looked for.
    """

    def __init__(
        self,
        profile: DeviceProfile | None = None,
        *,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.perf_counter,
        busy: Callable[[], float] = time.process_time,
    ) -> None:
        self.estimated = False
        self._spent: Spent | None = None
        if rapl_joules(root):
            self._spent = _counted(root)
        elif ina3221_watts(root) is not None:
            self._spent = _metered(root, clock)
        elif profile is not None and profile.loaded_watts is not None:
            self.estimated = True
            self._spent = _estimated(profile.idle_watts or 0.0, profile.loaded_watts, clock, busy)
        self._open: list[Reading] = []

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """A reading that begins here, and counts until the block ends."""
        self._share()
        one = Reading()
        self._open.append(one)
        try:
            yield one
        finally:
            self._share()
            self._open.remove(one)

    def energy(self, reading: Reading) -> Energy | None:
        """What a reading says by now; None where nobody knows."""
        if self._spent is None:
            return None
        self._share()
        return Energy(joules=reading.joules, estimated=self.estimated)

    def _share(self) -> None:
        """Share what was spent since the last time among the answers in work."""
        if self._spent is None:
            return
        joules = self._spent()
        for one in self._open:
            one.joules += joules / len(self._open)


def _counted(root: Path) -> Spent:
    before = rapl_joules(root)

    def spent() -> float:
        nonlocal before
        now = rapl_joules(root)
        joules, before = joules_between(before, now), now
        return joules

    return spent


def _metered(root: Path, clock: Callable[[], float]) -> Spent:
    """From power that is read at the beginning and the end: its mean, for as long."""
    before = clock(), ina3221_watts(root) or 0.0

    def spent() -> float:
        nonlocal before
        now = clock(), ina3221_watts(root) or 0.0
        joules, before = (now[0] - before[0]) * (now[1] + before[1]) / 2, now
        return joules

    return spent


def _estimated(idle: float, loaded: float, clock: Callable[[], float], busy: Callable[[], float]) -> Spent:
    """Idle power all the time, and the rest of the loaded power for the share of the cores that this process had."""
    cores = usable_cores()
    before = clock(), busy()

    def spent() -> float:
        nonlocal before
        now = clock(), busy()
        seconds, worked = now[0] - before[0], (now[1] - before[1]) / cores
        before = now
        return idle * seconds + max(loaded - idle, 0.0) * min(worked, seconds)

    return spent
