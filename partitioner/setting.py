"""The inputs of planning: models, machines, the sizes of a question, and measurements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from cutline.core.wire import Wire
from cutline.devices.profile import DeviceProfile
from cutline.models.bundle import Manifest
from cutline.models.costs import Sizes, request_sizes
from cutline.models.families import Grid
from cutline.partitioner.roofline import Speed

Prices = Mapping[tuple[str, Wire], float]  # share of answers with exactly the target's tokens, by cut and format
Leaks = Mapping[tuple[str, Wire], float]  # share of an image's variance that an attacker recovers, by cut and format


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The sizes of one question: its images' `grids` and bytes to upload, and the tokens of prompt and answer.

    A drafter that does not process images as its target does cuts them into its own grids, `drafter_grids`.
    """

    grids: tuple[Grid, ...]
    image_bytes: int
    prompt_tokens: int
    answer_tokens: int
    drafter_grids: tuple[Grid, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRates:
    """The rates of a calibrated gate: the share of answers it keeps, and the share of those with the target's tokens.

    The answers that it escalates are `longer` times as long as the average, and have `harder` times as many wrong
    drafted tokens.
    """

    kept: float
    agreed: float
    longer: float = 1.0
    harder: float = 1.0


REFERENCE_MESSAGE_SECONDS = 115e-6  # a profile's `message` on the machine where the overheads were measured
DEVICE_SHARE = {"request": 1.0, "session": 0.1, "closing": 0.2, "message": 0.35, "scheduling": 0.0}  # of each overhead


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """Seconds spent neither in models nor on the link, measured with the demo's models on one x86 core each.

    `request` is for the prompt and the answer's text, on the device. `packing` is for making an image file to upload,
    as a share of preprocessing, if the profile has no measurement. `session` and `closing` are for beginning and ending
    a session, on both sides. `message` is for one further round trip, `scheduling` for each pass of a worker.
    """

    request: float = 1.6e-3
    packing: float = 1.0
    session: float = 3e-3
    closing: float = 1.0e-3
    message: float = 2.0e-3
    scheduling: float = 0.3e-3

    @classmethod
    def between(cls, edge: DeviceProfile, cloud: DeviceProfile) -> Overheads:
        """The overheads of two machines, each one's share scaled by the time of a message on it."""
        here, there, known = _slowness(edge), _slowness(cloud), cls()
        both = {name: share * here + (1 - share) * there for name, share in DEVICE_SHARE.items()}
        return replace(known, **{name: getattr(known, name) * slower for name, slower in both.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Two models on two machines, and what was measured of them together.

    `cloud` is the worker's machine, or the speed of an upstream in its place: a server with a model of its own, which
    takes the whole image and verifies no drafts. The target then only counts layers, and may be any of the drafter's
    family. `gate` has the gate's rates for the requests to plan, None if it keeps none, and `gates` its rates by group
    of requests. `acceptance` is how often a drafted token of this pair is right; it, `prices` and `leaks` are None if
    they were not measured. `cloud_dtype` is that of the worker's weights.
    """

    drafter: Manifest
    target: Manifest
    edge: DeviceProfile
    cloud: DeviceProfile | Speed
    gate: GateRates | None = None
    gates: Mapping[str, GateRates] = field(default_factory=dict)
    acceptance: float | None = None
    prices: Prices | None = None
    leaks: Leaks | None = None
    cloud_dtype: str = "fp32"
    overheads: Overheads = Overheads()


def own_grids(drafter: Manifest, target: Manifest, sizes: Iterable[tuple[int, int]]) -> tuple[Grid, ...] | None:
    """The grids into which a drafter cuts images of these sizes (width, height); None where they are its target's."""
    if drafter.family.is_alike(target.family):
        return None
    return tuple(drafter.family.grid(size) for size in sizes)


def drafter_sizes(setting: Setting, asked: Asked) -> Sizes:
    """The sizes of a question as the drafter reads it.

    Where images become other tokens for it, those stand in place of its target's; words count the target's tokens.
    """
    if asked.drafter_grids is None:
        return request_sizes(setting.drafter, asked.grids, asked.prompt_tokens)
    words = asked.prompt_tokens - request_sizes(setting.target, asked.grids, asked.prompt_tokens).image_tokens
    own = request_sizes(setting.drafter, asked.drafter_grids, words)
    return replace(own, tokens=words + own.image_tokens)


def _slowness(profile: DeviceProfile) -> float:
    """A machine's time of a message relative to the reference; 1 if its profile has none."""
    return 1.0 if profile.message_seconds is None else profile.message_seconds / REFERENCE_MESSAGE_SECONDS
