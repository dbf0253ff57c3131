"""The time of a layer on a machine: measured if its profile has this model, else by the roofline.

    max(operations / rate, bytes / bandwidth) + overhead        Williams, Waterman and Patterson 2009

A datasheet's rates are peaks that no program reaches; the assumed shares below are those of a good program. Measured
rates are used unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cutline.devices.profile import Compute, DeviceProfile, LayerTable, Runtime, Samples
from cutline.models.bundle import Manifest, Precision
from cutline.models.costs import VALUE_BYTES, LayerCost, Sizes, layer_costs

DATASHEET_RATE = 0.4  # share of a datasheet's operations a second that is reached
DATASHEET_BANDWIDTH = 0.7  # share of its bytes a second
STATES_HELD = 5  # on a device: those of now and of the next run, and as many from which one goes back, at most
OVERHEAD_SECONDS = 50e-6  # a layer, if the profile has none: about ten kernel launches

# Bytes of a weight; int8 and int4 have a float32 scale for each block of 32.
WEIGHT_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1 + 4 / 32, "int4": 0.5 + 4 / 32}


@dataclass(frozen=True, slots=True)
class Machine:
    """A model on a machine, to predict the seconds of each of its `layers`.

    `dtypes` are the types of the layers' weights; `table` is None if nothing was measured.
    """

    profile: DeviceProfile
    layers: tuple[LayerCost, ...]
    dtypes: tuple[str, ...]
    table: LayerTable | None

    @classmethod
    def of(cls, profile: DeviceProfile, manifest: Manifest, runtime: Runtime, *, dtype: str = "fp32") -> Machine:
        """A model on a machine. `dtype` is that of a worker's weights; a device's follow from the manifest."""
        table = profile.layer_table(manifest.identity, runtime)
        values = value_bytes(dtype) if runtime == "cloud" else VALUE_BYTES
        layers = layer_costs(manifest, value_bytes=values)
        dtypes = [dtype if runtime == "cloud" else edge_dtype(layer.name, manifest.precision) for layer in layers]
        return cls(profile, layers, tuple(dtypes), table)

    @property
    def pass_seconds(self) -> float:
        """Seconds of a pass in addition to its layers."""
        return self.table.pass_seconds if self.table else 0.0

    def prefill(self, sizes: Sizes) -> tuple[float, ...]:
        """Seconds of each layer for a whole prompt; the head runs the last row only."""
        tiles = sizes.tiles
        return tuple(
            # The tower's time is linear in its tiles: a device runs one at a time, and one already saturates a worker.
            self._seconds(index, sizes.seen, sizes.seen, tokens=sizes.image_tokens / max(1, tiles)) * tiles
            if layer.unit in ("patch", "image token")
            else self._seconds(index, sizes.rows(layer.unit), (sizes.tokens + 1) / 2)
            for index, layer in enumerate(self.layers)
        )

    def step(self, rows: int, context: float) -> tuple[float, ...]:
        """Seconds of each layer for `rows` more tokens after `context`; 0 before the decoder."""
        return tuple(
            0.0 if layer.unit in ("patch", "image token") else self._seconds(index, rows, context)
            for index, layer in enumerate(self.layers)
        )

    def _seconds(self, index: int, rows: int, context: float, *, tokens: float | None = None) -> float:
        """Seconds of a layer for `rows` rows; `tokens` is the number that a connector merges them into."""
        layer = self.layers[index]
        if self.table is not None and layer.name in self.table.layers:
            return interpolated(self.table.layers[layer.name], rows)
        worked = round(tokens) if layer.unit == "image token" and tokens is not None else rows
        return roofline(self.profile, layer, self.dtypes[index], worked, context)


def edge_dtype(layer: str, precision: Precision) -> str:
    """The type of a layer's weights on a device: the bundle's precision in the decoder, float32 in the tower."""
    return precision if layer.startswith("decoder.") or layer == "head" else "fp32"


def value_bytes(dtype: str) -> int:
    """Bytes of a value in rows and caches with weights of `dtype`: a worker uses half floats for both."""
    return 2 if dtype in ("fp16", "bf16") else VALUE_BYTES


def roofline(profile: DeviceProfile, layer: LayerCost, dtype: str, rows: int, context: float) -> float:
    """Seconds of a layer for `rows` rows that each see `context` rows."""
    ideal = profile.source == "datasheet"
    rate = rate_of(profile.compute, dtype) * (DATASHEET_RATE if ideal else 1.0)
    bandwidth = profile.memory_bandwidth * (DATASHEET_BANDWIDTH if ideal else 1.0)
    touched = layer.parameters * WEIGHT_BYTES[dtype] + layer.kv_bytes_per_token * context
    touched += 2 * layer.state_bytes  # read and written
    touched += 2 * value_bytes(dtype) * rows * layer.width  # rows in and out
    overhead = OVERHEAD_SECONDS if profile.overhead_seconds is None else profile.overhead_seconds
    return max(layer.flops(rows, context) / rate, touched / bandwidth) + overhead


def rate_of(compute: Compute, dtype: str) -> float:
    """Operations a second with weights of `dtype`; the rate of fp32 if the profile has no other.

    int4 weights are multiplied as int8. The rate of another narrow type is not used: a GPU with only fp16 multiplies
    bf16 no faster than fp32, and the rate of its matrix units does not apply to fp32.
    """
    return compute.known.get("int8" if dtype == "int4" else dtype, compute.fp32)


def interpolated(samples: Samples, rows: float) -> float:
    """Seconds for `rows`: linear between samples, constant before the first, and proportional after the last."""
    counts, seconds = zip(*samples, strict=True)
    if rows > counts[-1]:
        return float(seconds[-1] * rows / counts[-1])
    return float(np.interp(rows, counts, seconds))


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of a drafter or an upstream: until the first token, and for each further one."""

    first: float
    token: float


def drafter_speed(profile: DeviceProfile, manifest: Manifest, sizes: Sizes, *, context: float) -> Speed:
    """The speed of a drafter: measured if the profile has it, else by the roofline."""
    table = profile.drafter_table(manifest.identity)
    if table is not None:
        vision = table.vision_seconds * sizes.tiles
        return Speed(vision + interpolated(table.prefill, sizes.tokens), table.token_seconds)
    machine = Machine.of(profile, manifest, "edge")
    return Speed(sum(machine.prefill(sizes)), sum(machine.step(1, context)))


def memory_of(layers: Sequence[LayerCost], precision: Precision, tokens: int) -> list[float]:
    """A device's memory in bytes for each of `layers`: its weights, a KV cache of `tokens`, and states.

    Of states there are STATES_HELD.
    """
    return [
        layer.parameters * WEIGHT_BYTES[edge_dtype(layer.name, precision)]
        + layer.kv_bytes_per_token * tokens
        + STATES_HELD * layer.state_bytes
        for layer in layers
    ]
