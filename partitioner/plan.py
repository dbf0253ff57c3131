"""The words of planning: what may be chosen, under which conditions and limits, and what a plan is predicted to cost.

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

# What a latency is made of, in the order in which it passes.
PARTS = ("prepare", "edge", "drafter", "upload", "round trips", "queue", "cloud prefill", "decode", "download")


class Drafting(msgspec.Struct, frozen=True):
    """How tokens are drafted: `length` of them a message at most, and the `effort` (0..1) that the worker may spend."""

    length: int
    effort: float


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent can be told. `cut` is None where no worker is asked, `wire` where no boundary crosses."""

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
    """A choice and what it is predicted to cost: means a request, over answers that the gate keeps or does not.

    `slowest_ms` is the latency of a request that the gate passes on. `energy_j` is the device's, None if its profile
    has no power. `agreement` is the share of answers with the target's own tokens, None if it was not measured (an
    upstream's own count as such, since nothing better is to be had there); `exact` says that all have, by the law.
    `leak` is the share of a picture's variance that an attacker recovered from what the worker gets: 1 of the picture
    itself, None if it was not measured. `parts_ms` add up to `latency_ms`.
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
    """What changes from request to request: the link, the worker's queue, and how often a drafted token is right.

    `queue` is how long rows wait on the worker for a pass that takes them.
    """

    rtt: float
    uplink: float
    downlink: float
    loss: float = 0.0
    queue: float = 0.0
    acceptance: float = 0.8

    @classmethod
    def over(cls, link: LinkProfile, *, queue: float = 0.0, acceptance: float = 0.8) -> Conditions:
        """The conditions of a link; jitter strays to both sides and is left out."""
        return cls(
            rtt=link.rtt_ms / 1e3,
            uplink=link.uplink_mbps * 125_000,
            downlink=link.downlink_mbps * 125_000,
            loss=link.loss,
            queue=queue,
            acceptance=acceptance,
        )


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan must keep to; None asks for nothing.

    `latency` bounds `Plan.slowest_ms`. `image_must_stay` refuses cuts at `image` and at `vision.0`, whose boundary is
    the picture times a matrix. `agreement` is the least share of answers with the target's tokens; a wire format whose
    share was not measured is let through unless `exact` asks for the law. `leak` bounds `Plan.leak`; what was not
    measured counts as 1.
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
    """The choices that are searched."""

    modes: tuple[Mode, ...] = tuple(Mode)
    cuts: tuple[str, ...]
    wires: tuple[Wire, ...] = tuple(Wire)
    lengths: tuple[int, ...] = (DRAFT_CHUNK,)
    efforts: tuple[float, ...] = (1.0, 0.5, 0.0)

    def choices(self, line: LayerLine, *, upstream: bool = False) -> Iterator[Choice]:
        """Every choice once: alone, then with the picture uploaded, then cut by cut.

        An `upstream` takes the picture alone, and no drafts.
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
        # Inside the decoder a worker cannot go on without the device's row, so effort has nothing to say.
        for length in self.lengths:
            for effort in (1.0,) if deep else self.efforts:
                yield Drafting(length, effort)
