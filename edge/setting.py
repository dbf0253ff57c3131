"""What a planner knows of models and machines, from two bundles and two profiles."""

from __future__ import annotations

from pathlib import Path

import msgspec

from cutline.devices.profile import load_profile
from cutline.edge.gate import open_gate
from cutline.models.bundle import CALIBRATION, Bundle
from cutline.models.prices import open_prices
from cutline.partitioner.roofline import WEIGHT_BYTES
from cutline.partitioner.setting import Gate, Setting


class _Config(msgspec.Struct):
    """What a target's config.json says of its weights."""

    dtype: str | None = None
    torch_dtype: str | None = None


def setting_of(
    drafter: Bundle, target: Bundle, *, edge: str | Path, cloud: str | Path, wants_gate: bool = False
) -> Setting:
    """The models on machines of these profiles, each a known name or a file.

    Raises ProfileError, and BundleError where there is no gate but one is wanted.
    """
    gate = None
    if wants_gate or CALIBRATION in drafter.manifest.files:
        found = open_gate(drafter)
        kept = found.kept / found.requests if found.requests else 0.0
        gate = Gate(kept=kept, agreed=1 - found.disagreed / found.kept if found.kept else 1.0)
    prices = open_prices(target)
    return Setting(
        drafter=drafter.manifest,
        target=target.manifest,
        edge=load_profile(edge),
        cloud=load_profile(cloud),
        gate=gate,
        prices=prices.agreement if prices else None,
        cloud_dtype=_dtype(target),
    )


def _dtype(target: Bundle) -> str:
    """The type of a worker's weights; float32 where the bundle is a device's part and does not say."""
    if "config.json" not in target.names:
        return "fp32"
    config = msgspec.json.decode(target.file("config.json").read_bytes(), type=_Config)
    named = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}.get(config.dtype or config.torch_dtype or "")
    return named if named in WEIGHT_BYTES else "fp32"
