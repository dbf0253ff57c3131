"""Which layers run on which of several machines that stand in a row: exact dynamic programming.

Every machine runs one contiguous span of the layer line, maybe an empty one, and the machines keep their order; the
first has the request and gets the answer. `shortest` finds the least time of one request, `fastest` the most requests a
second, when many follow each other and the slowest stage (a machine, or a hop between two) sets the pace.

Both walk the same table as PipeEdge (Hu et al. 2022, throughput) and EdgeShard (Zhang et al. 2024, both aims): the best
way to have run the layers before a cut with a given machine as the last, which grows by one span. With two machines
the first is Neurosurgeon's search (Kang et al. 2017); DADS (Hu et al. 2019) cuts models that are no line.
O(machines² · layers + machines · layers²).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutline.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Machines:
    """`m` machines and what the `n` layers of a model cost on each.

    `seconds` (m, n) a request; `layer_bytes` (n,) of memory that each layer takes and `memory` (m,) that each machine
    has; `boundary_bytes` (n,) that cross the cut before each layer; `delay` (m, m) seconds and `rate` (m, m) bytes a
    second from one machine to another; `answer_bytes` go back from the last machine to the first.
    """

    seconds: Floats
    layer_bytes: Floats
    memory: Floats
    boundary_bytes: Floats
    delay: Floats
    rate: Floats
    answer_bytes: float = 0.0

    def hop(self, source: int, to: int) -> Floats:
        """Seconds (n,) that each boundary takes from one machine to another."""
        hop: Floats = self.delay[source, to] + self.boundary_bytes / self.rate[source, to]
        return hop

    def back(self, last: int) -> float:
        """Seconds that the answer takes from the last machine to the first."""
        return 0.0 if last == 0 else float(self.delay[last, 0] + self.answer_bytes / self.rate[last, 0])


@dataclass(frozen=True, slots=True)
class Chain:
    """Spans [start, end) of layers, one a machine, and the `seconds` that they were chosen for."""

    spans: tuple[tuple[int, int], ...]
    seconds: float


def shortest(machines: Machines) -> Chain:
    """The chain that answers one request soonest; `seconds` is its latency. Raises InputError if none has the room."""
    return _best(machines, np.add)


def fastest(machines: Machines) -> Chain:
    """The chain that answers most requests a second; `seconds` is its slowest stage. Raises InputError likewise."""
    return _best(machines, np.maximum)


def _best(machines: Machines, join: np.ufunc) -> Chain:
    """The chain whose stages, joined by `join` (their sum, or the largest), are least."""
    count, layers = machines.seconds.shape
    before = np.concatenate([np.zeros((count, 1)), np.cumsum(machines.seconds, axis=1)], axis=1)
    weighs = np.concatenate([[0.0], np.cumsum(machines.layer_bytes)])
    # Spans [row, column) that exist at all: at least one layer.
    exists = np.triu(np.ones((layers + 1, layers + 1), bool), 1)
    # best[j, l]: machine j is the last to have run some of layers[:l]. It began at start[j, l], where it took over from
    # source[j, start[j, l]], -1 for the request itself.
    best = np.full((count, layers + 1), np.inf)
    start = np.zeros((count, layers + 1), np.int64)
    source = np.full((count, layers + 1), -1)
    for to in range(count):
        entered = np.full(layers + 1, np.inf)
        entered[0] = 0.0 if to == 0 else machines.hop(0, to)[0]  # the first machine has the request, layers or none
        for via in range(to):
            arrived = join(best[via, :layers], machines.hop(via, to))
            sooner = arrived < entered[:layers]
            entered[:layers][sooner] = arrived[sooner]
            source[to, :layers][sooner] = via
        span = before[to][None, :] - before[to][:, None]
        fits = exists & (weighs[None, :] - weighs[:, None] <= machines.memory[to] * (1 + 1e-12))
        ways = np.where(fits, join(entered[:, None], span), np.inf)
        start[to] = ways.argmin(axis=0)
        best[to] = ways.min(axis=0)
    totals = join(best[:, layers], [machines.back(last) for last in range(count)])
    last = int(totals.argmin())
    if not np.isfinite(totals[last]):
        raise InputError(
            f"no chain has the memory: the model takes {_gigabytes(weighs[-1])}, the machines have "
            f"{', '.join(map(_gigabytes, machines.memory))}; add a machine or quantize"
        )
    spans = [(0, 0)] * count
    machine, end = last, layers
    while machine >= 0:
        first = int(start[machine, end])
        spans[machine] = (first, end)
        machine, end = int(source[machine, first]), first
    return Chain(_filled(spans), float(totals[last]))


def _filled(spans: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The spans with empty ones placed where the layers before them end, so that they follow each other."""
    filled, at = [], 0
    for first, end in spans:
        filled.append((first, end) if end > first else (at, at))
        at = filled[-1][1]
    return tuple(filled)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
