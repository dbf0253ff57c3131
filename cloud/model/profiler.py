"""Measuring a worker's machine and a target on it: rates on torch, and the seconds of each layer within real passes.

Hooks on the layers' own modules take the time, so what is measured is what a worker runs; what is left of a pass,
which belongs to no layer, is the pass' own.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import torch
from torch import nn

from cutline.cloud.model.batch import NobodysRows
from cutline.cloud.model.model_runner import Capacity, Target
from cutline.devices.measurement.rates import MeasuredMachine, median_seconds, memory_bandwidth, significant
from cutline.devices.measurement.workload import one_tile, row_counts
from cutline.devices.profile import Compute, LayerTable
from cutline.models.bundle import Bundle, Manifest

SESSIONS = (1, 2, 4, 8, 16)
_CPU_SIDE, _GPU_SIDE = 768, 4096  # of the square matrices
_COPIED = 1 << 30  # bytes, on a GPU
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Tell = Callable[[str], None]  # hears what is being measured
Layers = dict[str, list[nn.Module]]  # the modules of each layer, by its name


def measure_device(device: str, *, threads: int) -> MeasuredMachine:
    """Measure a processor, with so many threads, or a GPU, as torch reaches it."""
    compute = Compute(**{name: _rate(device, dtype) for name, dtype in _DTYPES.items()})
    little = torch.zeros(8, device=device)
    overhead = median_seconds(_synchronised(device, lambda: little.add_(1)), budget=0.2)
    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(device)
        bandwidth = _bandwidth(device)
    else:
        memory = psutil.virtual_memory()
        free, total, bandwidth = memory.available, memory.total, memory_bandwidth(threads=threads)
    return MeasuredMachine(memory=total, memory_free=free, bandwidth=bandwidth, compute=compute, overhead=overhead)


def gpu_name(device: str) -> str | None:
    """What nvidia-smi calls the GPU `device`; None for a processor."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.startswith("cuda") else None


def steady_work(device: str) -> Callable[[], object]:
    """A matrix product to keep the device busy with."""
    return _product(device, torch.float32)[0]


def _rate(device: str, dtype: torch.dtype) -> float:
    product, side = _product(device, dtype)
    return significant(2 * side**3 / median_seconds(product, budget=0.5))


def _product(device: str, dtype: torch.dtype) -> tuple[Callable[[], None], int]:
    """A product of square matrices, and how many rows they have."""
    side = _GPU_SIDE if device.startswith("cuda") else _CPU_SIDE
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    return _synchronised(device, lambda: matrix @ matrix), side


def target_table(bundle: Bundle, *, device: str, seconds: float, tell: Tell) -> LayerTable:
    """Measure every layer of a target, and passes of several sessions, in about `seconds` and the loading.

    Raises BundleError.
    """
    manifest = bundle.manifest
    counts, behind = row_counts(manifest.decoder.context)
    tell("target: loading")
    target = Target(
        bundle, Capacity(slots=max(SESSIONS), context=max(counts[-1], behind + max(counts[:-1]))), device=device
    )
    axes = manifest.family.axes
    layers, tile = _layers(target, manifest), one_tile(manifest)
    patches = manifest.family.patches(tile.grid)

    tell("target: tower")
    budget = seconds / 3
    towers = _passes(layers, device, lambda: target.encode(tile.values, "image", [tile.grid]), budget)
    _stand(target, behind, axes)
    samples = {name: [(patches, taken)] for name, taken in towers.layers.items()}
    rest: list[float] = []
    for rows in counts:
        tell(f"target: {rows} rows")
        prompt = rows == counts[-1]
        batch = [NobodysRows(0, 0 if prompt else behind, (0,) * rows, wanted=1 if prompt else rows, axes=axes)]
        passes = _passes(layers, device, partial(target.run, batch, [None]), budget / len(counts))
        for name, taken in passes.layers.items():
            if not (prompt and name == "head"):  # which only ever sees a prompt's last row
                samples.setdefault(name, []).append((rows, taken))
        rest.append(passes.rest)
    _stand(target, behind, axes)
    together: list[tuple[int, float]] = []
    for count in SESSIONS:
        tell(f"target: {count} sessions")
        batch = [NobodysRows(slot, behind, (0,), wanted=1, axes=axes) for slot in range(count)]
        one_pass = _synchronised(device, partial(target.run, batch, [None] * count))
        together.append((count, median_seconds(one_pass, budget=budget / len(SESSIONS))))
    return LayerTable(
        model=manifest.identity,
        name=manifest.name,
        runtime="cloud",
        dtype=next(name for name, dtype in _DTYPES.items() if dtype == target.model.dtype),
        context=behind,
        layers={name: tuple(taken) for name, taken in samples.items()},
        pass_seconds=statistics.median(rest),
        sessions=tuple(together),
        provider=device.partition(":")[0],
    )


@dataclass(frozen=True, slots=True)
class _Passes:
    """Median seconds of each layer in several passes, and of what is left of a pass."""

    layers: dict[str, float]
    rest: float


def _passes(layers: Layers, device: str, work: Callable[[], object], budget: float) -> _Passes:
    """Watch `layers` while `work` runs them, again and again within `budget` seconds."""
    clock = _Clock(device)
    marks: list[tuple[str, Any, Any]] = []
    begun: dict[nn.Module, Any] = {}
    runs: list[tuple[float, dict[str, float]]] = []

    def before(module: nn.Module, _: Any) -> None:
        begun[module] = clock.now()

    def after(name: str, module: nn.Module, _: Any, __: Any) -> None:
        marks.append((name, begun[module], clock.now()))

    def once() -> None:
        marks.clear()
        start = clock.now()
        work()
        end = clock.now()
        _synchronise(device)
        taken: dict[str, float] = defaultdict(float)
        for name, first, last in marks:
            taken[name] += clock.between(first, last)
        runs.append((clock.between(start, end), taken))

    hooks = [
        hook
        for name, modules in layers.items()
        for module in modules
        for hook in (module.register_forward_pre_hook(before), module.register_forward_hook(partial(after, name)))
    ]
    try:
        median_seconds(once, budget=budget)
    finally:
        for hook in hooks:
            hook.remove()
    timed = runs[1:]  # the first one warms up
    return _Passes(
        layers={name: significant(statistics.median(taken[name] for _, taken in timed)) for name in timed[0][1]},
        rest=significant(max(0.0, statistics.median(total - sum(taken.values()) for total, taken in timed))),
    )


class _Clock:
    """Moments on the device's own clock: a GPU runs behind the program that feeds it."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device.startswith("cuda")

    def now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        moment = torch.cuda.Event(enable_timing=True)
        moment.record()
        return moment

    def between(self, first: Any, last: Any) -> float:
        """Seconds; on a GPU after it has settled."""
        return float(first.elapsed_time(last) / 1000 if self._on_gpu else last - first)


def _stand(target: Target, rows: int, axes: int) -> None:
    """Have every slot's states stand after so many `rows`, where passes cannot begin anywhere: see `Recurrences`."""
    if target.most_drafted is not None:
        target.run([NobodysRows(0, 0, (0,) * rows, wanted=1, axes=axes)], [None])
        for slot in range(1, target.slots):
            target.resume(slot, 0, rows)


def _layers(target: Target, manifest: Manifest) -> Layers:
    """The modules of each layer of the line, as the model's family names them."""
    made = manifest.family.parts.modules(target.model)
    return {
        **{name: [layer] for name, layer in target.tower.layers.items()},
        **{f"decoder.{index}": [layer] for index, layer in enumerate(target.layers)},
        "head": made.last,
    }


def _bandwidth(device: str) -> float:
    """Bytes a second that a copy within the device's memory reads and writes."""
    source = torch.ones(_COPIED, dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    return significant(2 * _COPIED / median_seconds(_synchronised(device, lambda: copy.copy_(source)), budget=0.5))


def _synchronised(device: str, work: Callable[[], object]) -> Callable[[], None]:
    """`work`, and waiting until the device has done it."""

    def both() -> None:
        work()
        _synchronise(device)

    return both


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
