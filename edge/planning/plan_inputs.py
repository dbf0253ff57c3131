"""What a planner knows of models and machines, from bundles and profiles."""

from __future__ import annotations

from pathlib import Path

import msgspec

from cutline.devices.profile import CPU, CUDA, DeviceProfile, load_profile
from cutline.edge.generation.conditions import PLAIN
from cutline.edge.generation.gate import Group, open_gate
from cutline.models.bundle import Bundle, Manifest
from cutline.models.prices import open_prices
from cutline.partitioner.roofline import WEIGHT_BYTES, Speed
from cutline.partitioner.setting import GateRates, Overheads, Setting

GUESS = Speed(first=1.0, token=0.02)  # seconds, of an upstream that was never asked: a large model's, and no more


class _Config(msgspec.Struct):
    """What a target's config.json says of its weights."""

    dtype: str | None = None
    torch_dtype: str | None = None


def setting_of(
    drafter: Bundle,
    target: Bundle,
    *,
    edge: str | Path,
    cloud: str | Path,
    provider: str = CPU,
    wants_gate: bool = False,
) -> Setting:
    """The models on machines of these profiles, each a known name or a file; its `gate` is that of plain questions.

    `provider` is ONNX Runtime's on the device. torch takes a GPU where the worker's profile has one.

    Raises ProfileError, and BundleError where there is no gate but one is wanted.
    """
    gates = _planned(drafter, None) if wants_gate or drafter.manifest.calibration is not None else {}
    prices, machines = open_prices(target), (load_profile(edge).on(provider), _of_worker(load_profile(cloud)))
    return Setting(
        drafter=drafter.manifest,
        target=target.manifest,
        edge=machines[0],
        cloud=machines[1],
        gate=gates.get(PLAIN),
        gates=gates,
        acceptance=_acceptance(drafter),
        prices=prices.agreement if prices else None,
        leaks=prices.recovered if prices and prices.leaks else None,
        cloud_dtype=_dtype(target),
        overheads=Overheads.between(*machines),
    )


def setting_of_shapes(
    drafter: Manifest, target: Manifest, *, edge: str | Path, cloud: str | Path, provider: str = CPU, cloud_dtype: str
) -> Setting:
    """The models of which only the sizes are known, likewise: nothing was calibrated or priced. Raises ProfileError."""
    machines = load_profile(edge).on(provider), _of_worker(load_profile(cloud))
    return Setting(
        drafter=drafter,
        target=target,
        edge=machines[0],
        cloud=machines[1],
        cloud_dtype=cloud_dtype,
        overheads=Overheads.between(*machines),
    )


def _of_worker(profile: DeviceProfile) -> DeviceProfile:
    return profile.on(CUDA) if CUDA in profile.accelerators else profile


def upstream_setting(drafter: Bundle, *, model: str, edge: str | Path, provider: str = CPU) -> Setting:
    """The drafter on a device of this profile, a known name or a file, before an upstream's `model`, of unknown speed.

    Raises ProfileError, BundleError.
    """
    device = load_profile(edge).on(provider)
    gates = _planned(drafter, model) if drafter.manifest.calibration is not None else {}
    return Setting(
        drafter=drafter.manifest,
        target=drafter.manifest,
        edge=device,
        cloud=GUESS,
        gate=gates.get(PLAIN),
        gates=gates,
        overheads=Overheads.between(device, device),
    )


def _planned(drafter: Bundle, upstream: str | None) -> dict[str, GateRates]:
    """What the drafter's gate does in each group that is open, before an upstream's model or workers.

    Raises BundleError.
    """
    return {name: _rates(group) for name, group in open_gate(drafter).before(upstream).groups.items() if group.is_open}


def _acceptance(drafter: Bundle) -> float | None:
    """How often a drafted token was right when plain questions were calibrated, None where that was not counted.

    Raises BundleError.
    """
    if drafter.manifest.calibration is None:
        return None
    plain = open_gate(drafter).groups.get(PLAIN)
    return None if plain is None else plain.foreseen


def _rates(gate: Group) -> GateRates:
    """An open group of a gate as a planner sees it."""
    longer = harder = 1.0
    if gate.tokens is not None and gate.passed_tokens is not None:
        longer = gate.passed_tokens / gate.tokens
    if gate.foreseen is not None and gate.passed_foreseen is not None and gate.foreseen < 1:
        harder = (1 - gate.passed_foreseen) / (1 - gate.foreseen)
    return GateRates(
        kept=gate.kept / gate.requests,
        agreed=1 - gate.disagreed / gate.kept,
        longer=longer,
        harder=harder,
    )


def _dtype(target: Bundle) -> str:
    """The type of a worker's weights; float32 where the bundle is a device's part and does not say."""
    if "config.json" not in target.names:
        return "fp32"
    config = msgspec.json.decode(target.file("config.json").read_bytes(), type=_Config)
    named = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}.get(config.dtype or config.torch_dtype or "")
    return named if named in WEIGHT_BYTES else "fp32"
