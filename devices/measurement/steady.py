"""Measures a machine idle and under load: power, temperature, and whether its speed is sustained."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cutline.devices.machine.power import Sensors
from cutline.devices.measurement.rates import significant

_INTERVAL_SECONDS = 0.1  # over which a speed is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """Watts idle and under load, degrees and throttling at the end of the load; None without a sensor.

    `sustained` is the speed at the end as a share of that at the beginning.
    """

    idle_watts: float | None
    loaded_watts: float | None
    celsius: float | None
    throttled: bool | None
    sustained: float


def watch_work(work: Callable[[], object], sensors: Sensors, *, rest: float, seconds: float) -> Steady:
    """Watch the sensors for `rest` seconds idle, then for `seconds` of repeated `work`."""
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
    """The median of the last fifth of the rates by that of the first, at most 1, as warming up is not a speed-up."""
    part = max(1, len(rates) // 5)
    return significant(min(1.0, statistics.median(rates[-part:]) / statistics.median(rates[:part])))


def _rates(work: Callable[[], object], end: float) -> Iterator[float]:
    """The rates of `work`, in runs a second, over each interval until `end`."""
    while (began := time.perf_counter()) < end:
        runs = 0
        while (passed := time.perf_counter() - began) < _INTERVAL_SECONDS:
            work()
            runs += 1
        yield runs / passed
