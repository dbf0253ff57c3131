"""Makes all ONNX Runtime sessions, with the reason for each option."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as failures

from cutline.devices.profile import CPU
from cutline.errors import BundleError, InputError

_SUFFIX = "ExecutionProvider"
_REFUSED = (
    failures.Fail,
    failures.InvalidArgument,
    failures.InvalidGraph,
    failures.InvalidProtobuf,
    failures.NoSuchFile,
    failures.NotImplemented,
    failures.RuntimeException,
)


def providers() -> dict[str, str]:
    """The execution providers of this machine's ONNX Runtime: their full names by short names such as `cuda`."""
    return {name.removesuffix(_SUFFIX).lower(): name for name in ort.get_available_providers()}


def check_provider(provider: str) -> None:
    """Check that this machine's ONNX Runtime has `provider`, a short name. Raises InputError."""
    if provider not in providers():
        raise InputError(f"this ONNX Runtime has no provider {provider!r}; it has {', '.join(providers())}")


def open_session(path: Path, *, threads: int, provider: str = CPU) -> ort.InferenceSession:
    """A session of the graph at `path`, a verified file of a bundle (`Bundle.file`).

    External weights can only come from the graph's own folder: ONNX Runtime refuses absolute paths, `..` and links that
    lead out of it. The manifest's hashes cover every file of a bundle.

    Raises InputError if this machine cannot use `provider`, BundleError if the graph does not load.
    """
    check_provider(provider)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads  # the default is the machine's cores, not those that this process may use
    options.inter_op_num_threads = 1  # the graphs are chains, without branches to run in parallel
    # Threads that spin while they wait starve a second process on the same cores (30 to 100 times slower, measured).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The arena never shrinks below the largest prompt's need, and there would be a memory pattern for every length.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 3  # errors only, which are raised as well
    chosen = providers()[provider]
    try:
        # Its fallback to the CPU would be silent.
        session = ort.InferenceSession(path, options, providers=[chosen], enable_fallback=0)
    except _REFUSED as error:
        reason = " ".join(str(error).split())
        raise BundleError(f"{path} does not load ({reason}); export the bundle again") from None
    # Without the provider's driver ONNX Runtime silently skips the provider too.
    if chosen not in session.get_providers():
        raise InputError(f"the provider {provider} does not start on this machine; use another, such as {CPU}")
    return session
