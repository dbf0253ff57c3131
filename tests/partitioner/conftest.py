from __future__ import annotations

import datetime
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st

from cutline.core.wire import Wire
from cutline.devices.profile import Compute, DeviceProfile
from cutline.models.bundle import FORMAT, DecoderSpec, Manifest, Role, VisionSpec
from cutline.models.families.smolvlm import SmolVLM
from cutline.models.layerline import LayerLine
from cutline.partitioner.plan import Conditions, Space
from cutline.partitioner.setting import Asked, GateRates, Setting


def manifest(role: Role, *, layers: int = 2, width: int = 64, tile: int = 64, **changes: Any) -> Manifest:
    """A small model that exists nowhere, of `layers` layers in tower and decoder each."""
    made = Manifest(
        format=FORMAT,
        identity="0" * 64 if role == "target" else "1" * 64,
        name=f"a {role}",
        role=role,
        precision="fp32",
        family=SmolVLM(tile=tile, patch=8, tile_tokens=tile * tile // 256, longest_edge=tile, split=False),
        line=LayerLine(vision=layers, decoder=layers),
        parameters=(24 * width, *(12 * width**2,) * layers, 4 * width**2, *(10 * width**2,) * layers, 500 * width),
        vision=VisionSpec(width=width, heads=4),
        decoder=DecoderSpec(
            width=width, layers=layers, heads=4, kv_heads=2, head_dim=width // 4, vocabulary=500, context=1024
        ),
        stop_tokens=(2,),
        image_token=3,
        target=None,
        files={},
    )
    return msgspec.structs.replace(made, **changes)


def profile(*, speed: float = 1e10, **changes: Any) -> DeviceProfile:
    """A measured machine of `speed` operations and half as many bytes a second."""
    return DeviceProfile(
        **{
            "name": "a machine",
            "source": "measured",
            "date": datetime.date(2026, 1, 1),
            "memory_bytes": 8e9,
            "memory_bandwidth": speed / 2,
            "compute": Compute(fp32=speed),
            "overhead_seconds": 20e-6,
            "preprocess_seconds": 1e-3,
            "idle_watts": 2.0,
            "loaded_watts": 6.0,
            **changes,
        }
    )


def setting(
    *, layers: int = 2, width: int = 64, edge: float | DeviceProfile = 1e10, cloud: float = 1e12, **changes: Any
) -> Setting:
    """A drafter and a target on machines of so many operations a second."""
    return Setting(
        **{
            "drafter": manifest("drafter", layers=1, width=32),
            "target": manifest("target", layers=layers, width=width),
            "edge": edge if isinstance(edge, DeviceProfile) else profile(speed=edge),
            "cloud": profile(speed=cloud),
            "gate": GateRates(kept=0.7, agreed=0.98),
            **changes,
        }
    )


def asked(*, image_bytes: int = 9000, prompt_tokens: int = 40, answer_tokens: int = 12) -> Asked:
    return Asked(grids=((0, 0),), image_bytes=image_bytes, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens)


def space(of: Setting, **changes: Any) -> Space:
    """Every cut of a target."""
    return Space(cuts=of.target.line.layers, **changes)


# Links from a modem to a data centre's own, workers with and without a queue, drafters of every quality.
conditions = st.builds(
    Conditions,
    rtt=st.floats(1e-4, 1.0),
    uplink=st.floats(1e3, 1e9),
    downlink=st.floats(1e3, 1e9),
    loss=st.sampled_from([0.0, 0.0, 1e-3, 0.05]),
    queue=st.sampled_from([0.0, 0.0, 1e-3, 0.2]),
    acceptance=st.floats(0, 1),
)

HARD = GateRates(kept=0.5, agreed=0.9, longer=3.0, harder=2.0)  # what it passes on is unlike the rest

# Attackers who were tried at some cuts, in some formats, and found what they found.
leaks = st.none() | st.dictionaries(
    st.tuples(st.sampled_from(["vision.0", "vision.1", "decoder.0", "head"]), st.sampled_from(list(Wire))),
    st.floats(0, 1),
    max_size=8,
)

settings_ = st.builds(
    setting,
    layers=st.integers(1, 3),
    width=st.sampled_from([32, 64, 256]),
    edge=st.floats(1e8, 1e12),
    cloud=st.floats(1e9, 1e14),
    gate=st.sampled_from(
        [None, GateRates(kept=0.7, agreed=0.98), GateRates(kept=1.0, agreed=0.9), GateRates(kept=0.0, agreed=1.0), HARD]
    ),
    leaks=leaks,
)

questions = st.builds(
    asked,
    image_bytes=st.integers(500, 500_000),
    prompt_tokens=st.integers(20, 200),
    answer_tokens=st.integers(1, 60),
)


class Made:
    """What tests make their cases from, and the strategies that draw them."""

    manifest = staticmethod(manifest)
    profile = staticmethod(profile)
    setting = staticmethod(setting)
    asked = staticmethod(asked)
    space = staticmethod(space)
    conditions = conditions
    settings = settings_
    questions = questions


@pytest.fixture(scope="session")
def made() -> type[Made]:
    return Made
