"""Tries ONNX Runtime's execution providers, each in a process of its own.

ONNX Runtime lists the providers that it was built with. A driver may still be missing, hang, or crash the process.

    python -m cutline.devices.measurement.provider_trial            prints the listed providers, as JSON
    python -m cutline.devices.measurement.provider_trial NAME       computes with one; prints what went wrong
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import msgspec

_SECONDS = 60.0  # on a board a GPU's libraries may take half of it the first time
_SUFFIX = "ExecutionProvider"
_REMOTE = "Azure" + _SUFFIX  # sends the work to a service
_SIDE = 32


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """An execution provider by its short name, such as `cuda`; `fault` is what went wrong, None if it works."""

    name: str
    fault: str | None


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """ONNX Runtime on this machine; `fault` says why it does not load, None if it does."""

    version: str | None
    providers: tuple[Provider, ...]
    fault: str | None = None


class Providers(msgspec.Struct, frozen=True, kw_only=True):
    """The version of ONNX Runtime, and the full names of its providers."""

    version: str
    providers: tuple[str, ...]


def try_runtime() -> Runtime:
    """Try ONNX Runtime, and each of its providers."""
    code, output = _run_trial()
    if code != 0:
        return Runtime(version=None, providers=(), fault=fault_of(code, output))
    listed = msgspec.json.decode(output, type=Providers)
    names = [name for name in listed.providers if name != _REMOTE]
    providers = [Provider(name=name.removesuffix(_SUFFIX).lower(), fault=fault_of(*_run_trial(name))) for name in names]
    return Runtime(version=listed.version, providers=tuple(providers))


def fault_of(code: int | None, output: str) -> str | None:
    """What went wrong, as text, from a trial's exit status (None for a timeout) and its output; None if it worked."""
    if code == 0:
        return None
    if code is None:
        return f"it hangs: no answer in {_SECONDS:.0f} seconds"
    if code < 0:
        return f"it ends its process with {signal.Signals(-code).name}"
    lines = [line for line in output.splitlines() if line.strip()]
    return " ".join(lines[-1].split())[:200] if lines else f"its process ended with {code}"


def _run_trial(*names: str) -> tuple[int | None, str]:
    # Without -P a file in the current folder could shadow a library.
    command = [sys.executable, "-P", "-m", "cutline.devices.measurement.provider_trial", *names]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False, errors="replace")
    except subprocess.TimeoutExpired:
        return None, ""
    # ONNX Runtime only logs which library it lacks, and continues without the provider.
    lacking = re.search(r"lib[\w.+-]+: cannot open shared object file", done.stderr)
    output = done.stdout or done.stderr
    return done.returncode, f"{output.strip()} ({lacking[0]})" if done.returncode == 1 and lacking else output


def main() -> None:
    """Run a trial in this process. Exits with 1 if the provider does not work."""
    import numpy as np
    import onnxruntime as ort

    from cutline.devices.measurement.kernels import matmul_graph

    if len(sys.argv) == 1:
        listed = Providers(version=ort.__version__, providers=tuple(ort.get_available_providers()))
        print(msgspec.json.encode(listed).decode())
        return
    provider = sys.argv[1]
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, _SIDE, _SIDE), np.float32)
    # Many providers support a product with constant weights, but not of two inputs.
    graph = matmul_graph("fp32", rows=_SIDE, inner=_SIDE, columns=_SIDE, weights=second.astype("<f4").tobytes())
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; they go to stderr
    options.intra_op_num_threads = 1
    if provider != "CPU" + _SUFFIX:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(graph, options, providers=[provider], enable_fallback=0)
        if provider not in session.get_providers():
            sys.exit(_say("it does not start: its driver or a library may be missing"))
        (product,) = session.run(None, {"a": first})
    except Exception as error:  # any provider may raise anything
        if "fallback to CPU EP" in str(error):
            sys.exit(_say("it takes none of the work: its driver or a library may be missing"))
        sys.exit(_say(f"{type(error).__name__}: {error}"))
    # The tolerance is for GPUs that multiply with fewer bits.
    if not np.allclose(product, first @ second, rtol=0.02, atol=0.05):
        sys.exit(_say("it computes wrongly: a matrix product differs"))


def _say(fault: str) -> int:
    print(" ".join(fault.split()))
    return 1


if __name__ == "__main__":
    main()
