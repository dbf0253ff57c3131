"""Who answers what: models, machines, a question's sizes, and what was measured of them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cutline.core.wire import Wire
from cutline.devices.profile import DeviceProfile
from cutline.models.bundle import Manifest
from cutline.models.families import Grid
from cutline.partitioner.roofline import Speed

Prices = Mapping[tuple[str, Wire], float]  # share of answers with the target's own tokens, by cut and format
Leaks = Mapping[tuple[str, Wire], float]  # share of a picture's variance that an attacker recovered, likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One question: what its images became (`grids`), the bytes to upload them, tokens of the prompt and the answer."""

    grids: tuple[Grid, ...]
    image_bytes: int
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRates:
    """What a calibrated gate does: the share of answers it keeps, the share of those with the target's tokens.

    The answers that it passes on are `longer` times as long as all are on average, and `harder` times as many of their
    tokens are drafted wrong.
    """

    kept: float
    agreed: float
    longer: float = 1.0
    harder: float = 1.0


MESSAGE = 115e-6  # seconds of a message on the core that the overheads were measured on (a profile's `message`)
DEVICE_SHARE = {"request": 1.0, "session": 0.1, "closing": 0.2, "message": 0.35, "scheduling": 0.0}  # of overheads


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """Seconds that neither models nor link take, measured with the demo's models on one x86 core each.

    `request`: the prompt and the answer's text, on the device. `packing`: the picture into a file to upload, as a share
    of preparing it, where a profile has not measured that. `session` and `closing`: beginning and ending one, on both
    sides. `message`: one more message, there and back. `scheduling`: a worker's, of each pass.
    """

    request: float = 1.6e-3
    packing: float = 1.0
    session: float = 3e-3
    closing: float = 1.0e-3
    message: float = 2.0e-3
    scheduling: float = 0.3e-3

    @classmethod
    def between(cls, edge: DeviceProfile, cloud: DeviceProfile) -> Overheads:
        """Those of two machines: each one's share grows with the seconds that a message takes on it."""
        here, there, known = _slowness(edge), _slowness(cloud), cls()
        both = {name: share * here + (1 - share) * there for name, share in DEVICE_SHARE.items()}
        return replace(known, **{name: getattr(known, name) * slower for name, slower in both.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Two models on two machines, and what is known of them together.

    `cloud` is the worker's machine, or the speed of an upstream that answers in its place: another server, which takes
    the whole picture, verifies nothing and has a model of its own. The target then only counts layers, and any of the
    drafter's family will do. `gate` is what the gate does with the requests that are planned for, None where it keeps
    none of them, and `gates` the same by groups of requests. `prices` and `leaks` are None where none were measured;
    `cloud_dtype` is that of the worker's weights.
    """

    drafter: Manifest
    target: Manifest
    edge: DeviceProfile
    cloud: DeviceProfile | Speed
    gate: GateRates | None = None
    gates: Mapping[str, GateRates] = field(default_factory=dict)
    prices: Prices | None = None
    leaks: Leaks | None = None
    cloud_dtype: str = "fp32"
    overheads: Overheads = Overheads()


def _slowness(profile: DeviceProfile) -> float:
    """How many times longer than on the core that overheads were measured on; 1 where a profile does not say."""
    return 1.0 if profile.message_seconds is None else profile.message_seconds / MESSAGE
