"""A machine at rest and at work: what it draws, how warm it gets, and whether its speed lasts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cutline.devices.machine.power import Sensors
from cutline.devices.measurement.rates import significant

_STRETCH = 0.1  # seconds whose speed is counted as one


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """Watts at rest and at work, degrees and throttling at the end of it; None where no sensor says so.

    `sustained` is the speed at the end as a share of the speed at the beginning.
    """

    idle_watts: float | None
    loaded_watts: float | None
    celsius: float | None
    throttled: bool | None
    sustained: float


def watch_work(work: Callable[[], object], sensors: Sensors, *, rest: float, seconds: float) -> Steady:
    """Rest for `rest` seconds, then `work` again and again for `seconds`, and watch the sensors all along."""
    with sensors.watched() as resting:
        time.sleep(rest)
    work()  # the first run warms up
    with sensors.watched() as working:
        rates = list(_rates(work, time.perf_counter() + seconds))
    return Steady(
        idle_watts=resting.watts,
        loaded_watts=working.watts,
        celsius=working.celsius,
        throttled=working.throttled,
        sustained=sustained_share(rates),
    )


def sustained_share(rates: Sequence[float]) -> float:
    """The last fifth of the rates against the first, each by its middle one, at most 1: warming up is no speed-up."""
    part = max(1, len(rates) // 5)
    return significant(min(1.0, statistics.median(rates[-part:]) / statistics.median(rates[:part])))


def _rates(work: Callable[[], object], end: float) -> Iterator[float]:
    """Runs a second of `work`, each short stretch of time by itself."""
    while (began := time.perf_counter()) < end:
        runs = 0
        while (passed := time.perf_counter() - began) < _STRETCH:
            work()
            runs += 1
        yield runs / passed
