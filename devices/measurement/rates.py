"""Measuring the machine itself: memory, disk, bandwidth, and rates of matrix products.

Times are taken several times over and the middle one counts: a machine that does other things now and then is the
usual one. Rates of matrix products come from ONNX Runtime, with the threads and options that the agent runs with.
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

LEAST, MOST = 3, 10_000
_STRETCH = 2e-3  # seconds that are timed at once: a core that is taken away for parts of a millisecond is a slow core
_COPIED = 64 << 20  # bytes a thread: no cache holds them
_SIDE = 768  # of the square matrices: large enough for a CPU's best rate, small enough for a Pi


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredMachine:
    """Bytes of memory, of memory free for a model, and bytes a second of it; rates; seconds of the smallest call."""

    memory: int
    memory_free: int
    bandwidth: float
    compute: Compute
    overhead: float


def measure_cpu(*, threads: int) -> MeasuredMachine:
    """Measure the processor with so many threads, and its memory as it is at this moment."""
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
    """The value to four digits: no measurement here is better than that."""
    return float(f"{value:.4g}")


def median_seconds(work: Callable[..., object], *given: object, budget: float) -> float:
    """The middle of the seconds that `work(*given)` takes, called within `budget` seconds after a first call.

    It is timed LEAST times whatever the budget says, and MOST times at most; what is short, several calls at once.
    """
    work(*given)  # the first run of anything allocates and warms up
    times: list[float] = []
    end, calls = time.perf_counter() + budget, 1
    while len(times) < LEAST or (time.perf_counter() < end and len(times) < MOST):
        began = time.perf_counter()
        for _ in range(calls):
            work(*given)
        taken = time.perf_counter() - began
        if taken < _STRETCH and calls < MOST and not times:
            calls *= 2
        else:
            times.append(taken / calls)
    return significant(statistics.median(times))


def memory_bandwidth(*, threads: int, budget: float = 1.0) -> float:
    """Bytes a second that `threads` threads together read and write while they copy arrays, as STREAM counts them."""
    pairs = [(np.ones(_COPIED, np.uint8), np.empty(_COPIED, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = median_seconds(lambda: list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs)), budget=budget)
    return significant(2 * _COPIED * threads / seconds)


def matmul_rate(dtype: Dtype, *, threads: int, provider: str = CPU, budget: float = 1.0) -> float:
    """Operations a second (a multiplication and an addition are two) of a square matrix product.

    `provider` is one of ONNX Runtime's by its short name, which must be there.
    """
    return significant(2 * _SIDE**3 / median_seconds(_matmul(dtype, _SIDE, threads, provider), budget=budget))


def call_overhead(*, threads: int) -> float:
    """Seconds that a call of ONNX Runtime takes that computes next to nothing."""
    return median_seconds(_matmul("fp32", 8, threads), budget=0.2)


def steady_work(*, threads: int) -> Callable[[], object]:
    """A matrix product to keep the processor busy with."""
    return _matmul("fp32", _SIDE, threads)


def _matmul(dtype: Dtype, side: int, threads: int, provider: str = CPU) -> Callable[[], object]:
    """A call of ONNX Runtime that multiplies two square matrices; options as in `edge/inference/runtime.py`."""
    import onnxruntime as ort  # the rest must run where it does not load: the doctor says why

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    graph = matmul_graph(dtype, rows=side, inner=side, columns=side)
    # Full names are the short ones in other letters: cuda is CUDAExecutionProvider.
    full = {name.removesuffix("ExecutionProvider").lower(): name for name in ort.get_available_providers()}
    session = ort.InferenceSession(graph, options, providers=[full[provider]], enable_fallback=0)
    kinds = (np.float32, np.float32) if dtype == "fp32" else (np.uint8, np.int8)
    given = {name: np.ones((side, side), kind) for name, kind in zip("ab", kinds, strict=True)}
    return lambda: session.run(None, given)
