from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cutline.cloud.model import profiler
from cutline.cloud.model.model_runner import Target
from cutline.cloud.model.profiler import SESSIONS, gpu_name, measure_device, target_table
from cutline.demo.bundles import TARGET
from cutline.devices.measurement import rates
from cutline.devices.measurement.workload import row_counts
from cutline.models.bundle import Bundle

PAUSE = 0.1  # seconds, longer than any layer of the demo's target takes


def test_every_layer_of_a_target_is_measured_within_real_passes() -> None:
    bundle = Bundle.open(TARGET)
    table = target_table(bundle, device="cpu", seconds=1.0, tell=lambda step: None)
    layers = {name: dict(samples) for name, samples in table.layers.items()}
    counts, behind = row_counts(bundle.manifest.decoder.context)
    assert tuple(layers) == bundle.manifest.line.layers
    assert tuple(layers["decoder.0"]) == counts
    assert tuple(layers["head"]) == counts[:-1]
    assert table.context == behind
    assert (table.model, table.runtime, table.dtype) == (bundle.manifest.identity, "cloud", "fp32")
    assert tuple(count for count, _ in table.sessions) == SESSIONS
    assert table.sessions[-1][1] < SESSIONS[-1] * table.sessions[0][1]  # a batch is what makes a worker cheap


@pytest.mark.proof
def test_passes_begin_where_states_stand(targets: Callable[[str], Bundle]) -> None:
    bundle = targets("qwen3.5")
    table = target_table(bundle, device="cpu", seconds=0.3, tell=lambda step: None)
    assert tuple(table.layers) == bundle.manifest.line.layers
    assert tuple(count for count, _ in table.sessions) == SESSIONS


@pytest.mark.parametrize(("slow", "module"), [("vision.1", "tower"), ("decoder.2", "decoder"), ("head", "head")])
def test_a_layer_that_is_slow_is_found_to_be(slow: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer waits; it and whole passes take that long, the others and the rest of a pass do not.

    The clock counts this thread's own work and that wait: other work on the machine does not make a layer slow.
    """
    waits = list[float]()
    clock = SimpleNamespace(perf_counter=lambda: time.thread_time() + sum(waits))

    class Slow(Target):
        def __init__(self, bundle: Bundle, *given: Any, **options: Any) -> None:
            super().__init__(bundle, *given, **options)
            model = self.model.model
            modules = {
                "tower": model.vision_model.encoder.layers[1],
                "decoder": model.text_model.layers[2],
                "head": self.model.lm_head,
            }
            forward = modules[module].forward

            def waiting(*given: Any, **named: Any) -> Any:
                waits.append(PAUSE)
                return forward(*given, **named)

            modules[module].forward = waiting

    monkeypatch.setattr(profiler, "Target", Slow)
    monkeypatch.setattr(profiler, "time", clock)
    monkeypatch.setattr(rates, "time", clock)
    table = target_table(Bundle.open(TARGET), device="cpu", seconds=1.0, tell=lambda step: None)
    first = {name: samples[0][1] for name, samples in table.layers.items()}
    assert first.pop(slow) >= PAUSE
    assert median(first.values()) < PAUSE
    assert table.pass_seconds < PAUSE
    assert (table.sessions[0][1] >= PAUSE) == (module != "tower")


def test_a_processor_is_measured_as_torch_reaches_it() -> None:
    machine = measure_device("cpu", threads=1)
    assert machine.compute.fp32 is not None
    assert machine.compute.bf16 is not None
    assert 1e9 < machine.compute.fp32 < 1e15
    assert machine.compute.int8 is None
    assert 0 < machine.overhead < 1e-3
    assert gpu_name("cpu") is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_measured() -> None:
    machine = measure_device("cuda", threads=1)
    assert machine.compute.fp16 is not None
    assert machine.compute.fp32 is not None
    assert machine.compute.fp16 > machine.compute.fp32
    assert machine.bandwidth > 1e10
    assert (gpu_name("cuda") or "").startswith("GPU-")
    table = target_table(Bundle.open(TARGET), device="cuda", seconds=1.5, tell=lambda step: None)
    assert all(seconds > 0 for samples in table.layers.values() for _, seconds in samples)
