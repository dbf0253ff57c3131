from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnxruntime as ort
import pytest

from cutline.devices.measurement import provider_trial
from cutline.devices.measurement.kernels import matmul_graph
from cutline.devices.measurement.provider_trial import Provider, fault_of, try_runtime


def test_what_is_here_works() -> None:
    runtime = try_runtime()
    assert runtime.fault is None
    assert runtime.version == ort.__version__
    assert Provider(name="cpu", fault=None) in runtime.providers


def test_a_provider_that_is_not_built_in_does_not_pass() -> None:
    """ONNX Runtime only warns of it, and computes on the CPU."""
    done = subprocess.run(
        [sys.executable, "-m", "cutline.devices.measurement.provider_trial", "NoSuchExecutionProvider"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "none of the work" in done.stdout or "NoSuch" in done.stdout


@pytest.mark.parametrize(
    ("code", "said", "fault"),
    [
        (0, "whatever", None),
        (None, "", "it hangs: no answer in 60 seconds"),
        (-4, "", "it ends its process with SIGILL"),
        (-11, "warned\n", "it ends its process with SIGSEGV"),
        (1, "Traceback:\n  ...\nImportError: no module\n", "ImportError: no module"),
        (3, "", "its process ended with 3"),
    ],
)
def test_how_a_trial_ended(code: int | None, said: str, fault: str | None) -> None:
    assert fault_of(code, said) == fault


def test_a_crash_and_a_hang_of_a_provider_stay_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.run
    snippets = {
        (): 'print(\'{"version": "9", "providers": ["A", "B", "CExecutionProvider", "AzureExecutionProvider"]}\')',
        ("A",): "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        ("B",): "import time; time.sleep(60)",
        ("CExecutionProvider",): "import sys; sys.stderr.write('E: error: libcudnn.so.9: cannot open shared "
        "object file: No such file'); print('it takes none of the work'); sys.exit(1)",
    }

    def run(command: list[str], **options: object) -> object:
        return real([sys.executable, "-c", snippets[tuple(command[4:])]], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(provider_trial, "_SECONDS", 1.0)
    monkeypatch.setattr("cutline.devices.measurement.provider_trial.subprocess.run", run)
    assert try_runtime().providers == (
        Provider(name="a", fault="it ends its process with SIGSEGV"),
        Provider(name="b", fault="it hangs: no answer in 1 seconds"),
        Provider(name="c", fault="it takes none of the work (libcudnn.so.9: cannot open shared object file)"),
    )


def test_a_graph_with_its_weights_inside_multiplies() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((3, 5), np.float32), rng.standard_normal((5, 4), np.float32)
    graph = matmul_graph("fp32", rows=3, inner=5, columns=4, weights=second.astype("<f4").tobytes())
    session = ort.InferenceSession(graph)
    assert [one.name for one in session.get_inputs()] == ["a"]
    np.testing.assert_allclose(session.run(None, {"a": first})[0], first @ second, rtol=1e-5)
