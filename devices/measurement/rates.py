"""Measures the machine: memory, disk, bandwidth, and rates of matrix products.

Each time is the median of several runs, as most machines do other things now and then. Matrix products run in ONNX
Runtime, with the agent's threads and options.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from cutline.devices.measurement.kernels import Dtype, matmul_graph
from cutline.devices.profile import CPU, Compute

MIN_RUNS, MAX_RUNS = 3, 10_000
_MIN_SECONDS = 2e-3  # of one timing: a core that is preempted for a fraction of a millisecond counts as a slower one
_COPIED_BYTES = 64 << 20  # a thread: too many for any cache
_SIDE = 768  # of the square matrices: large enough for a CPU's best rate, small enough for a Raspberry Pi


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredMachine:
    """Total and free memory in bytes, bandwidth in bytes a second, compute rates, and seconds of the smallest call."""

    memory: int
    memory_free: int
    bandwidth: float
    compute: Compute
    overhead: float


def measure_cpu(*, threads: int) -> MeasuredMachine:
    """Measure the processor with so many threads, and the current memory."""
    memory = psutil.virtual_memory()
    return MeasuredMachine(
        memory=memory.total,
        memory_free=memory.available,
        bandwidth=memory_bandwidth(threads=threads),
        compute=Compute(fp32=matmul_rate("fp32", threads=threads), int8=matmul_rate("int8", threads=threads)),
        overhead=call_overhead(threads=threads),
    )


def disk_free(folder: Path) -> int:
    """Bytes free on the disk that `folder` is on."""
    return psutil.disk_usage(str(folder)).free


def significant(value: float) -> float:
    """The value to four digits, as no measurement is more precise."""
    return float(f"{value:.4g}")


def median_seconds(work: Callable[..., object], *given: object, budget: float) -> float:
    """The median seconds of `work(*given)`, repeated for `budget` seconds after a first call.

    It is timed MIN_RUNS to MAX_RUNS times. For short work one timing covers several calls.
    """
    work(*given)  # the first run of anything allocates and warms up
    times: list[float] = []
    end, calls = time.perf_counter() + budget, 1
    while len(times) < MIN_RUNS or (time.perf_counter() < end and len(times) < MAX_RUNS):
        began = time.perf_counter()
        for _ in range(calls):
            work(*given)
        taken = time.perf_counter() - began
        if taken < _MIN_SECONDS and calls < MAX_RUNS and not times:
            calls *= 2
        else:
            times.append(taken / calls)
    return significant(statistics.median(times))


def memory_bandwidth(*, threads: int, budget: float = 1.0) -> float:
    """Bytes a second that `threads` threads read and write together while copying arrays, counted as in STREAM."""
    pairs = [(np.ones(_COPIED_BYTES, np.uint8), np.empty(_COPIED_BYTES, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = median_seconds(lambda: list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs)), budget=budget)
    return significant(2 * _COPIED_BYTES * threads / seconds)


def matmul_rate(dtype: Dtype, *, threads: int, provider: str = CPU, budget: float = 1.0) -> float:
    """Operations a second of a square matrix product; a multiplication and an addition count as two.

    `provider` is the short name of an available provider of ONNX Runtime.
    """
    return significant(2 * _SIDE**3 / median_seconds(_matmul(dtype, _SIDE, threads, provider), budget=budget))


def call_overhead(*, threads: int) -> float:
    """Seconds of a call of ONNX Runtime that computes next to nothing."""
    return median_seconds(_matmul("fp32", 8, threads), budget=0.2)


def steady_work(*, threads: int) -> Callable[[], object]:
    """A matrix product that keeps the processor busy."""
    return _matmul("fp32", _SIDE, threads)


def _matmul(dtype: Dtype, side: int, threads: int, provider: str = CPU) -> Callable[[], object]:
    """A call of ONNX Runtime that multiplies two square matrices; options as in `edge/inference/runtime.py`."""
    import onnxruntime as ort  # not at the top, as the doctor must run where it does not load

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    graph = matmul_graph(dtype, rows=side, inner=side, columns=side)
    # Short names are lower-case: cuda is CUDAExecutionProvider.
    full = {name.removesuffix("ExecutionProvider").lower(): name for name in ort.get_available_providers()}
    session = ort.InferenceSession(graph, options, providers=[full[provider]], enable_fallback=0)
    kinds = (np.float32, np.float32) if dtype == "fp32" else (np.uint8, np.int8)
    given = {name: np.ones((side, side), kind) for name, kind in zip("ab", kinds, strict=True)}
    return lambda: session.run(None, given)
