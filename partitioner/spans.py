"""The seconds of all spans of the layer line on both machines, as prefix and suffix sums over its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutline.models.costs import Sizes
from cutline.partitioner.roofline import Machine, Speed

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Spans:
    """Seconds by cut: index c has those of `layers[:c]` on the edge, and of `layers[c:]` in the cloud.

    `*_prefill` (n + 1,) are for a whole prompt. Row i of `edge_steps` and `cloud_passes` (longest, n + 1) is for i + 1
    further tokens.
    """

    edge_prefill: Floats
    edge_steps: Floats
    cloud_prefill: Floats
    cloud_passes: Floats


def spans_of(edge: Machine, cloud: Machine | Speed, sizes: Sizes, *, context: float, longest: int) -> Spans:
    """The spans of one request, whose answer's tokens see `context` on average, with steps of up to `longest` tokens.

    An upstream's seconds are the same for every cut; only `image` is used.
    """
    tower = np.array([layer.unit in ("patch", "image token") for layer in edge.layers])
    decoder = np.array([layer.unit == "token" for layer in edge.layers])
    steps = range(1, longest + 1)
    once = edge.pass_seconds
    if isinstance(cloud, Speed):
        prefill = np.full(len(edge.layers) + 1, cloud.first)
        passes = np.full((longest, len(edge.layers) + 1), cloud.token)
    else:
        prefill = _after(cloud.prefill(sizes), cloud.pass_seconds)
        passes = np.array([_after(cloud.step(rows, context), cloud.pass_seconds) for rows in steps])
    return Spans(
        # The device runs tower and decoder as separate graphs, each with the overhead of a pass.
        edge_prefill=_before(edge.prefill(sizes)) + once * _begun(tower) + once * _begun(decoder),
        edge_steps=np.array([_before(edge.step(rows, context)) + once * _begun(decoder) for rows in steps]),
        cloud_prefill=prefill,
        cloud_passes=passes,
    )


def _before(seconds: Sequence[float]) -> Floats:
    return np.concatenate([[0.0], np.cumsum(seconds)])


def _after(seconds: Sequence[float], once: float) -> Floats:
    return np.concatenate([np.cumsum(seconds[::-1])[::-1] + once, [0.0]])


def _begun(kind: NDArray[np.bool_]) -> Floats:
    """1 at each cut with a layer of `kind` before it, else 0."""
    return np.concatenate([[0.0], np.logical_or.accumulate(kind)])
