"""The facts about a device from which a diagnosis is made."""

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
    """A bundle. `needs` has the bytes of its layers and a full KV cache in each precision.

    `cuts` has the bytes of the layers before each cut, in the bundle's own precision.
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
    """A worker that answers: identity and name of its model, its version, first layer and sessions, and the link."""

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
    """All facts. Sizes are in bytes. `bits` are those of Python; `cores` the machine's, of which `usable` may be used.

    `disk` is the free space in the bundle's folder. `target` and `worker` are None if none was given.
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
        needs={precision: round(sum(memory_of(layers, precision, context))) for precision in get_args(Precision)},
        cuts=tuple((cut, round(need)) for cut, need in zip(manifest.line.layers[1:], held, strict=False)),
    )
