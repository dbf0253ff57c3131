"""The types of planning: choices, conditions, limits, and plans with their predicted cost.

Times are in seconds, sizes in bytes, rates in bytes a second, energy in joules, unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from cutline.core.request import DRAFT_CHUNK, Mode
from cutline.core.wire import Wire
from cutline.devices.link import LinkProfile
from cutline.models.layerline import LayerLine

Objective = Literal["latency", "energy", "cloud-cost"]

# The parts of a latency, in the order of time.
PARTS = ("prepare", "edge", "drafter", "upload", "round trips", "queue", "cloud prefill", "decode", "download")


class Drafting(msgspec.Struct, frozen=True):
    """How to draft: at most `length` tokens a message, and the worker's `effort` (0..1) in decoding by itself."""

    length: int
    effort: float


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent can choose. `cut` is None if no worker is used, `wire` is None if no boundary is sent."""

    mode: Mode
    cut: str | None = None
    wire: Wire | None = None
    drafting: Drafting | None = None

    def __str__(self) -> str:
        words: list[str] = [self.mode]
        if self.cut is not None:
            words.append(f"at {self.cut}")
        if self.wire is not None:
            words.append(f"in {self.wire}")
        if self.drafting is not None and self.drafting.effort < 1:
            words.append(f"with effort {self.drafting.effort:g}")
        return " ".join(words)


class Plan(Choice, frozen=True, kw_only=True):
    """A choice and its predicted cost: means a request, over answers that the gate keeps and that it escalates.

    `slowest_ms` is the latency of an escalated request. `energy_j` is the device's, None if its profile has no power.
    `agreement` is the share of answers with exactly the target's tokens, or an upstream's, None if it was not measured;
    `exact` says that the law makes it 1. `leak` is the share of an image's variance that an attacker recovers from what
    the worker gets: 1 for the image itself, None if it was not measured. `parts_ms` add up to `latency_ms`.
    """

    latency_ms: float
    ttft_ms: float
    slowest_ms: float
    energy_j: float | None
    bytes_up: float
    bytes_down: float
    cloud_ms: float
    memory_bytes: float
    rounds: float
    agreement: float | None
    exact: bool
    leak: float | None
    parts_ms: dict[str, float]


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """What changes from request to request: the link, the worker's queue, and the acceptance rate of drafts.

    `queue` is the time that rows wait on the worker for a pass.
    """

    rtt: float
    uplink: float
    downlink: float
    loss: float = 0.0
    queue: float = 0.0
    acceptance: float = 0.8

    @classmethod
    def over(cls, link: LinkProfile, *, queue: float = 0.0, acceptance: float = 0.8) -> Conditions:
        """The conditions of a link. Its jitter is left out, as it averages to 0."""
        return cls(
            rtt=link.rtt_ms / 1e3,
            uplink=link.uplink_mbps * 125_000,
            downlink=link.downlink_mbps * 125_000,
            loss=link.loss,
            queue=queue,
            acceptance=acceptance,
        )


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits on a plan; None is no limit.

    `latency` bounds `Plan.slowest_ms`. `image_must_stay` excludes cuts at `image` and at `vision.0`, whose boundary is
    the image times a matrix. `agreement` is the least share of answers with the target's tokens; a choice whose share
    was not measured passes, unless `exact` demands the law. `leak` bounds `Plan.leak`, where not measured counts as 1.
    """

    latency: float | None = None
    energy: float | None = None
    bytes_up: float | None = None
    memory: float | None = None
    image_must_stay: bool = False
    min_cut: str | None = None
    exact: bool = False
    agreement: float = 0.0
    leak: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The search space."""

    modes: tuple[Mode, ...] = tuple(Mode)
    cuts: tuple[str, ...]
    wires: tuple[Wire, ...] = tuple(Wire)
    lengths: tuple[int, ...] = (DRAFT_CHUNK,)
    efforts: tuple[float, ...] = (1.0, 0.5, 0.0)

    def choices(self, line: LayerLine, *, upstream: bool = False) -> Iterator[Choice]:
        """Every choice once: the device alone, then with the image uploaded, then cut by cut.

        An `upstream` takes only the image, and no drafts.
        """
        if Mode.EDGE in self.modes:
            yield Choice(mode=Mode.EDGE)
        if upstream:
            yield from (Choice(mode=mode, cut="image") for mode in (Mode.CLOUD, Mode.AUTO) if mode in self.modes)
            return
        for cut in self.cuts:
            for wire in (None,) if cut == "image" else self.wires:
                plain = Mode.CLOUD if cut == "image" else Mode.SPLIT
                if plain in self.modes:
                    yield Choice(mode=plain, cut=cut, wire=wire)
                for mode in (Mode.DRAFT, Mode.AUTO):
                    if mode in self.modes:
                        for drafting in self._drafting(deep=cut in line.deep_cuts):
                            yield Choice(mode=mode, cut=cut, wire=wire, drafting=drafting)

    def _drafting(self, *, deep: bool) -> Iterator[Drafting]:
        # Inside the decoder a worker cannot decode without the device's row, so the effort has no effect.
        for length in self.lengths:
            for effort in (1.0,) if deep else self.efforts:
                yield Drafting(length, effort)
