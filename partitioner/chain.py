"""Assigns layers to a chain of machines by exact dynamic programming.

Every machine runs one contiguous span of the layer line, maybe an empty one, in the machines' order. The first has the
request and gets the answer. `shortest` minimises the latency of one request, `fastest` maximises requests a second,
for which the slowest stage (a machine, or a hop between two) counts.

Both fill the same table as PipeEdge (Hu et al. 2022, for throughput) and EdgeShard (Zhang et al. 2024, for both): the
best assignment of the layers before a cut with a given last machine, extended by one span. With two machines `shortest`
is Neurosurgeon's search (Kang et al. 2017); DADS (Hu et al. 2019) cuts models with branches.
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
    """`m` machines, and the cost of the `n` layers of a model on each.

    `seconds` (m, n) are for one request. `layer_bytes` (n,) is the memory of each layer, `memory` (m,) that of each
    machine. `boundary_bytes` (n,) cross the cut before each layer. `delay` (m, m) in seconds and `rate` (m, m) in bytes
    a second are those from one machine to another. `answer_bytes` go from the last machine to the first.
    """

    seconds: Floats
    layer_bytes: Floats
    memory: Floats
    boundary_bytes: Floats
    delay: Floats
    rate: Floats
    answer_bytes: float = 0.0

    def hop(self, source: int, to: int) -> Floats:
        """Seconds (n,) to send each boundary from one machine to another."""
        hop: Floats = self.delay[source, to] + self.boundary_bytes / self.rate[source, to]
        return hop

    def back(self, last: int) -> float:
        """Seconds to send the answer from the last machine to the first."""
        return 0.0 if last == 0 else float(self.delay[last, 0] + self.answer_bytes / self.rate[last, 0])


@dataclass(frozen=True, slots=True)
class Chain:
    """Spans [start, end) of layers, one for each machine, and the `seconds` that were minimised."""

    spans: tuple[tuple[int, int], ...]
    seconds: float


def shortest(machines: Machines) -> Chain:
    """The chain with the least latency, which is its `seconds`. Raises InputError if no chain has enough memory."""
    return _best(machines, np.add)


def fastest(machines: Machines) -> Chain:
    """The chain with the fastest slowest stage, which is its `seconds`.

    Raises InputError if no chain has enough memory.
    """
    return _best(machines, np.maximum)


def _best(machines: Machines, join: np.ufunc) -> Chain:
    """The chain with the least total, which `join` computes from the stages as their sum or their maximum."""
    count, layers = machines.seconds.shape
    before = np.concatenate([np.zeros((count, 1)), np.cumsum(machines.seconds, axis=1)], axis=1)
    weighs = np.concatenate([[0.0], np.cumsum(machines.layer_bytes)])
    # Spans [row, column) of at least one layer.
    exists = np.triu(np.ones((layers + 1, layers + 1), bool), 1)
    # best[j, l]: the least cost of layers[:l] with machine j as the last one. Its span begins at start[j, l], and comes
    # from machine source[j, start[j, l]], or -1 for the request itself.
    best = np.full((count, layers + 1), np.inf)
    start = np.zeros((count, layers + 1), np.int64)
    source = np.full((count, layers + 1), -1)
    for to in range(count):
        entered = np.full(layers + 1, np.inf)
        entered[0] = (
            0.0 if to == 0 else machines.hop(0, to)[0]
        )  # the first machine has the request, even without layers
        for via in range(to):
            arrived = join(best[via, :layers], machines.hop(via, to))
            sooner = arrived < entered[:layers]
            entered[:layers][sooner] = arrived[sooner]
            source[to, :layers][sooner] = via
        span = before[to][None, :] - before[to][:, None]
        fits = exists & (weighs[None, :] - weighs[:, None] <= machines.memory[to] * (1 + 1e-12))
        costs = np.where(fits, join(entered[:, None], span), np.inf)
        start[to] = costs.argmin(axis=0)
        best[to] = costs.min(axis=0)
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
    """The spans with empty ones moved to where the span before them ends."""
    filled, at = [], 0
    for first, end in spans:
        filled.append((first, end) if end > first else (at, at))
        at = filled[-1][1]
    return tuple(filled)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
