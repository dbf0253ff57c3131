"""Whether what a process takes stays what it is: samples over time, their slope, and a rule for how much is too much.

The slope is Theil and Sen's: the median of the slopes between all pairs of samples, which a few odd ones do not move.
"""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

WARM_UP = 0.25  # of the samples: caches fill, threads start
_PAIRS = 400  # samples of which pairs are made
_LEAST = 15  # samples of which something can be told


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much a figure may rise over a run: a share of what it is, and so much whatever it is."""

    share: float
    least: float


# Allocators keep what they had, and take a little more now and then. A descriptor or thread more is one that leaked,
# but connections come and go while they are counted.
RULES = {
    "rss_mb": Allowance(0.04, 4.0),
    "descriptors": Allowance(0.05, 2.0),
    "threads": Allowance(0.0, 2.0),
    "sessions": Allowance(0.0, 1.0),
    "slots": Allowance(0.0, 1.0),
}


def taken(process: psutil.Process) -> dict[str, float]:
    """What a process takes now; of this one, without what is only not collected, or not given back yet."""
    if process.pid == os.getpid():
        gc.collect()  # a closed channel in a cycle with its last call keeps its socket until then
        if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
            trim(0)  # agents that come and go leave holes, which glibc keeps
    with process.oneshot():
        rss = process.memory_info().rss
        return {"rss_mb": rss / 2**20, "descriptors": process.num_fds(), "threads": process.num_threads()}


@dataclass(frozen=True, slots=True)
class Trend:
    """Of one figure after the warm-up: its middle, its rise over the run, and by the hour; `flat` by its rule."""

    level: float
    rise: float
    hourly: float
    flat: bool


def trend(name: str, times: Sequence[float], values: Sequence[float]) -> Trend:
    """How a figure went, by `RULES`; with too few samples it cannot be told, and is flat. Times are seconds."""
    skip = int(len(values) * WARM_UP)
    times, values = times[skip:], values[skip:]
    if len(values) < _LEAST:
        return Trend(values[-1] if values else 0.0, 0.0, 0.0, True)
    each = max(1, len(values) // _PAIRS)
    points = list(zip(times[::each], values[::each], strict=True))
    slopes = [
        (late - early) / (after - before)
        for index, (before, early) in enumerate(points)
        for after, late in points[index + 1 :]
        if after > before
    ]
    slope, level, rule = statistics.median(slopes), statistics.median(values), RULES[name]
    rise = slope * (times[-1] - times[0])
    return Trend(level, rise, slope * 3600, rise <= max(rule.share * level, rule.least))


class Log:
    """Samples of several processes, by their names."""

    def __init__(self) -> None:
        self.samples: dict[tuple[str, str], tuple[list[float], list[float]]] = {}  # (process, figure): times, values

    def add(self, process: str, now: float, figures: Mapping[str, float]) -> None:
        """Note what a process takes at a time."""
        for figure, value in figures.items():
            times, values = self.samples.setdefault((process, figure), ([], []))
            times.append(now)
            values.append(value)

    def begin_anew(self, process: str) -> None:
        """Forget a process that was started anew."""
        for key in [key for key in self.samples if key[0] == process]:
            del self.samples[key]

    def trends(self) -> dict[tuple[str, str], Trend]:
        """How each figure of each process went."""
        return {key: trend(key[1], *of) for key, of in self.samples.items()}
