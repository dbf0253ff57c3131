"""Seconds of layers: measured ones, and the roofline's where nothing was measured."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.devices.profile import Compute, DrafterTable, LayerTable, load_profile
from cutline.models.costs import layer_costs, request_sizes
from cutline.partitioner.roofline import (
    DATASHEET_BANDWIDTH,
    DATASHEET_RATE,
    OVERHEAD_SECONDS,
    Machine,
    drafter_speed,
    interpolated,
    rate_of,
    roofline,
)

SAMPLES = ((1, 1e-3), (8, 2e-3), (64, 16e-3))


@pytest.mark.parametrize(
    ("rows", "seconds"), [(1, 1e-3), (8, 2e-3), (4.5, 1.5e-3), (36, 9e-3), (0.5, 1e-3), (640, 160e-3)]
)
def test_measured_seconds_are_joined_by_lines(rows: float, seconds: float) -> None:
    assert interpolated(SAMPLES, rows) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("known", "dtype", "rate"),
    [
        ({"fp32": 8.0}, "fp32", 8.0),
        ({"fp32": 8.0}, "int4", 8.0),
        ({"fp32": 8.0, "fp16": 20.0}, "int8", 8.0),
        ({"fp32": 8.0, "fp16": 20.0}, "bf16", 8.0),
        ({"fp32": 8.0, "bf16": 20.0}, "fp16", 8.0),
        ({"fp32": 8.0, "int8": 64.0}, "int4", 64.0),
        ({"fp32": 8.0, "fp16": 20.0, "int8": 64.0}, "fp32", 8.0),
    ],
)
def test_the_rate_of_a_type_that_the_profile_lacks(known: dict[str, float], dtype: str, rate: float) -> None:
    assert rate_of(Compute(**known), dtype) == pytest.approx(rate)


def test_few_rows_wait_for_weights_and_many_for_arithmetic(made: Any) -> None:
    profile = made.profile(speed=1e9)
    layer = next(layer for layer in layer_costs(made.manifest("target")) if layer.name == "decoder.0")
    weights = layer.parameters * 4 / profile.memory_bandwidth
    assert roofline(profile, layer, "fp32", 1, 1) == pytest.approx(weights + 20e-6, rel=0.02)
    assert roofline(profile, layer, "fp32", 500, 1) == pytest.approx(layer.flops(500, 1) / 1e9 + 20e-6)


def test_a_datasheets_peaks_are_not_believed(made: Any) -> None:
    measured, told = made.profile(), made.profile(source="datasheet", overhead_seconds=None)
    layer = layer_costs(made.manifest("target"))[1]
    busy = roofline(measured, layer, "fp32", 10_000, 64) - 20e-6
    assert roofline(told, layer, "fp32", 10_000, 64) == pytest.approx(busy / DATASHEET_RATE + OVERHEAD_SECONDS)
    assert 0 < DATASHEET_RATE < DATASHEET_BANDWIDTH < 1


def test_what_was_measured_of_this_model_counts_and_of_another_does_not(made: Any) -> None:
    target = made.manifest("target")
    table = LayerTable(
        model=target.identity,
        name=target.name,
        runtime="edge",
        dtype="fp32",
        context=64,
        layers={"vision.0": ((64, 0.5),), "decoder.1": SAMPLES},
    )
    sizes = request_sizes(target, [(0, 0)], 40)
    machine = Machine.of(made.profile(tables=(table,)), target, "edge")
    names = target.line.layers
    prefill = dict(zip(names, machine.prefill(sizes), strict=True))
    assert prefill["vision.0"] == 0.5
    assert prefill["decoder.1"] == pytest.approx(interpolated(SAMPLES, 40))
    assert prefill["vision.1"] < 0.1
    step = dict(zip(names, machine.step(8, 50), strict=True))
    assert step["decoder.1"] == 2e-3
    assert step["vision.0"] == step["connector"] == step["image"] == 0
    another = Machine.of(made.profile(tables=(table,)), made.manifest("target", identity="another"), "edge")
    assert another.prefill(sizes)[1] < 0.1
    assert Machine.of(made.profile(tables=(table,)), target, "cloud").prefill(sizes)[1] < 0.1


@given(tiles=st.integers(1, 20))
def test_a_towers_time_grows_with_the_tiles(made: Any, tiles: int) -> None:
    family = made.manifest("target").family
    split = made.manifest(
        "target", family=type(family)(tile=64, patch=8, tile_tokens=16, longest_edge=2048, split=True)
    )
    machine = Machine.of(made.profile(), split, "edge")
    one = machine.prefill(request_sizes(split, [(0, 0)], 600))
    grid = (1, tiles)  # and the whole image once more
    assert machine.prefill(request_sizes(split, [grid], 600))[1] == pytest.approx(one[1] * (tiles + 1))


def test_a_measured_drafter(made: Any) -> None:
    drafter = made.manifest("drafter")
    table = DrafterTable(
        model=drafter.identity,
        name="it",
        precision="int8",
        vision_seconds=0.1,
        prefill=((20, 0.02), (60, 0.04)),
        token_seconds=5e-3,
    )
    speed = drafter_speed(made.profile(drafters=(table,)), drafter, request_sizes(drafter, [(0, 0)], 40), context=50)
    assert speed.first == pytest.approx(0.13)
    assert speed.token == 5e-3
    assert drafter_speed(made.profile(), drafter, request_sizes(drafter, [(0, 0)], 40), context=50).first < 0.1


@pytest.mark.parametrize(("dtype", "size"), [("fp32", 4), ("fp16", 2), ("bf16", 2)])
def test_a_workers_rows_and_caches_have_the_type_of_its_weights(made: Any, dtype: str, size: int) -> None:
    target = made.manifest("target")
    profile = made.profile(memory_bandwidth=1.0, overhead_seconds=0.0)  # so slow that seconds are bytes
    machine = Machine.of(profile, target, "cloud", dtype=dtype)
    decoder = target.line.place("decoder.0")
    spec = target.decoder
    values = target.parameters[decoder] + 100 * 2 * spec.kv_heads * spec.head_dim + 2 * 3 * spec.width
    assert machine.step(3, 100)[decoder] == pytest.approx(size * values)


def test_boards_are_planned_in_the_order_of_their_datasheets(made: Any) -> None:
    boards = (
        "raspberry-pi-4",
        "raspberry-pi-5",
        "jetson-orin-nano-8gb",
        "jetson-orin-nx-16gb",
        "jetson-agx-orin-64gb",
        "jetson-thor-t5000",
    )
    target = made.manifest("target", layers=8, width=512)
    for precision in ("fp32", "int8"):
        model = msgspec.structs.replace(target, precision=precision)
        sizes = request_sizes(model, [(0, 0)], 256)
        machines = [Machine.of(load_profile(name).on("cpu"), model, "edge") for name in boards]
        prefills, steps = [sum(one.prefill(sizes)) for one in machines], [sum(one.step(1, 200)) for one in machines]
        assert prefills == sorted(prefills, reverse=True)
        assert steps == sorted(steps, reverse=True)
        assert len(set(prefills)) == len(boards)
