"""What is known of a device before anything is loaded: the facts that a diagnosis is made from."""

from __future__ import annotations

from itertools import accumulate
from typing import get_args

import msgspec

from cutline.devices.machine.board import Board, BoardHealth
from cutline.devices.machine.memory import Memory
from cutline.devices.measurement.provider_trial import Runtime
from cutline.models.bundle import Manifest, Precision, Role
from cutline.models.costs import layer_costs
from cutline.partitioner.roofline import memory_of


class BundleFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle. `needs` are the bytes that its layers and a full cache take in each precision.

    `cuts` are those that the layers before each cut take, in the bundle's own precision.
    """

    path: str
    name: str
    role: Role
    precision: Precision
    identity: str
    target: str | None
    calibrated: bool
    needs: dict[Precision, int]
    cuts: tuple[tuple[str, int], ...]


class BadBundle(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that does not open; `fault` says what is wrong and what to do."""

    path: str
    fault: str


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that answers: the model's identity and name, its version of Cutline, its layers and room, the link."""

    address: str
    model: str
    name: str
    version: str
    start: str
    sessions: int
    max_sessions: int
    rtt_ms: float
    uplink_mbps: float
    downlink_mbps: float


class Unserved(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that does not answer; `fault` says why."""

    address: str
    fault: str


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What there is. Memory and disk in bytes; `bits` are those of Python; `cores` of the machine, `usable` of them.

    `disk` is free in the bundle's folder. `target` and `worker` are None where none was named.
    """

    version: str
    board: Board
    system: str
    architecture: str
    bits: int
    python: str
    cores: int
    usable: int
    memory: Memory
    disk: int
    runtime: Runtime
    provider: str
    health: BoardHealth
    bundle: BundleFacts | BadBundle
    target: BundleFacts | BadBundle | None = None
    worker: Served | Unserved | None = None


def model_of(path: str, manifest: Manifest) -> BundleFacts:
    """The facts of a bundle."""
    layers, context = layer_costs(manifest), manifest.decoder.context
    held = accumulate(memory_of(layers, manifest.precision, context))
    return BundleFacts(
        path=path,
        name=manifest.name,
        role=manifest.role,
        precision=manifest.precision,
        identity=manifest.identity,
        target=manifest.target,
        calibrated=manifest.calibration is not None,
        needs={one: round(sum(memory_of(layers, one, context))) for one in get_args(Precision)},
        cuts=tuple((cut, round(need)) for cut, need in zip(manifest.line.layers[1:], held, strict=False)),
    )
