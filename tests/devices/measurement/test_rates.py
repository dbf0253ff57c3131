from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.demo.bundles import TARGET
from cutline.devices.machine.power import Sensors
from cutline.devices.measurement.kernels import Dtype, matmul_graph
from cutline.devices.measurement.rates import (
    MIN_RUNS,
    call_overhead,
    disk_free,
    matmul_rate,
    measure_cpu,
    median_seconds,
    memory_bandwidth,
    significant,
    steady_work,
)
from cutline.devices.measurement.steady import sustained_share, watch_work
from cutline.devices.measurement.workload import BEHIND, PROMPT, one_tile, photograph, row_counts
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_a_graph_written_by_hand_multiplies(dtype: Dtype) -> None:
    rng = np.random.default_rng(0)
    kinds = (np.float32, np.float32) if dtype == "fp32" else (np.uint8, np.int8)
    a = rng.integers(0, 100, (3, 200)).astype(kinds[0])
    b = rng.integers(-100, 100, (200, 130)).astype(kinds[1])
    session = ort.InferenceSession(matmul_graph(dtype, rows=3, inner=200, columns=130))
    (product,) = session.run(None, {"a": a, "b": b})
    assert np.array_equal(product, a.astype(np.int64) @ b.astype(np.int64))


def test_measured_figures_are_sane() -> None:
    machine = measure_cpu(threads=1)
    rates = machine.compute
    assert machine.memory == psutil.virtual_memory().total
    assert 0 < machine.memory_free <= machine.memory
    assert 1e8 < machine.bandwidth < 1e13
    assert rates.fp32 is not None
    assert rates.int8 is not None
    assert 1e9 < rates.fp32 < 1e15
    assert 1e9 < rates.int8 < 1e15
    assert rates.fp16 is None
    assert 1e-7 < machine.overhead < 1e-2
    assert 0 < disk_free(Path.cwd()) <= psutil.disk_usage(str(Path.cwd())).total


def test_a_rate_is_that_of_the_same_product_in_numpy() -> None:
    """With one thread each; NumPy's library is another one, so only the order of magnitude is the same."""
    a = np.ones((768, 768), np.float32)
    numpy_rate = 2 * 768**3 / median_seconds(np.matmul, a, a, budget=0.3)
    assert 0.1 < matmul_rate("fp32", threads=1, budget=0.3) / numpy_rate < 10
    assert call_overhead(threads=1) < 2 * 768**3 / numpy_rate
    assert memory_bandwidth(threads=1, budget=0.2) > 1e8


def test_the_middle_of_the_times_counts_and_the_budget_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, now = iter([0.2, 0.5, 0.05, 0.5, *[0.01] * 1000]), [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def work() -> None:
        now[0] += next(waits)

    assert median_seconds(work, budget=1.3) == pytest.approx(0.01)
    assert now[0] == pytest.approx(0.2 + 1.3, abs=0.02)


def test_what_takes_longer_than_the_budget_is_timed_all_the_same() -> None:
    calls: list[float] = []

    def work(seconds: float) -> None:
        calls.append(seconds)
        time.sleep(seconds)

    assert median_seconds(work, 0.03, budget=0.0) >= 0.03
    assert len(calls) == MIN_RUNS + 1


def test_four_digits_are_kept() -> None:
    assert significant(123456.0) == 123500.0
    assert significant(0.000123449) == 0.0001234
    assert significant(0.0) == 0.0


def test_work_is_watched() -> None:
    steady = watch_work(steady_work(threads=1), Sensors(run=lambda command: None), rest=0.1, seconds=0.6)
    assert 0.2 < steady.sustained <= 1.0


@pytest.mark.parametrize(
    ("rates", "share"),
    [
        ([10.0] * 20, 1.0),
        ([10.0] * 10 + [6.0] * 10, 0.6),
        ([10.0, 10.0, 10.0, 10.0, 1.0, 10.0, 10.0, 10.0, 10.0, 10.0], 1.0),  # a hiccup is no slowing down
        ([5.0] + [10.0] * 9, 1.0),  # nor is warming up a speed-up
        ([4.0], 1.0),
        ([10.0, 5.0], 0.5),
    ],
)
def test_the_share_of_speed_that_lasts(rates: list[float], share: float) -> None:
    assert sustained_share(rates) == pytest.approx(share)


@given(st.integers(4, 40_000))
def test_rows_fit_the_context(context: int) -> None:
    counts, behind = row_counts(context)
    assert list(counts) == sorted(set(counts))
    assert counts[-1] <= min(context, PROMPT)
    assert behind <= BEHIND
    assert all(behind + rows <= context for rows in counts[:-1])


def test_the_photograph_becomes_one_tile_of_the_family() -> None:
    manifest = Bundle.open(TARGET).manifest
    tile = one_tile(manifest)
    assert len(tile.values) == 1
    assert tile.values.std() > 0.1  # of noise and shapes, not of one colour
    assert decode_image(photograph()).size == (1024, 768)
    assert 50_000 < len(photograph()) < 1_000_000
