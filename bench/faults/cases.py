"""What may go wrong with a link or a worker, when, and while which question is asked: cases drawn from a seed."""

from __future__ import annotations

import enum
import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from cutline.core.request import Mode
from cutline.core.sampling import Sampling


class Setup(enum.StrEnum):
    """What an agent has."""

    ALONE = "alone"  # one worker
    STANDBY = "standby"  # and another, whom nothing befalls
    CHAIN = "chain"  # two workers with half of the layers each, and one with all that nothing befalls
    TLS = "tls"  # as standby, over TLS


class Fault(enum.StrEnum):
    """What goes wrong: first what befalls links, then processes."""

    RESET = "reset"  # every connection breaks
    REFUSE = "refuse"  # and none is taken
    BLACKHOLE = "blackhole"  # nothing arrives any more, and nobody says so
    HALF_OPEN = "half-open"  # nothing arrives one way
    SPIKE = "spike"  # a burst of latency
    SLOW = "slow"  # some kbit/s
    TRUNCATE = "truncate"  # half of a buffer, then the end
    FLIP = "flip"  # bits change on the way
    KILL = "kill"  # SIGKILL
    RESTART = "restart"  # SIGKILL, and it is started again at once
    FREEZE = "freeze"  # SIGSTOP
    DRAIN = "drain"  # SIGTERM


class Point(enum.StrEnum):
    """When."""

    BEFORE = "before"  # the question is asked
    UPLOAD = "upload"  # at a byte of what opens the session
    SETTLED = "settled"  # when so many tokens are
    DRAFT = "draft"  # at a byte of what is sent once tokens came


SILENT = (Fault.BLACKHOLE, Fault.HALF_OPEN, Fault.FREEZE)  # which only a heartbeat finds out
OF_PROCESSES = (Fault.KILL, Fault.RESTART, Fault.FREEZE, Fault.DRAIN)
ENDS_PROCESS = (Fault.KILL, Fault.RESTART, Fault.DRAIN)

# A process takes seconds to start, so what ends one is rarer.
_WEIGHTS = dict.fromkeys(Fault, 3.0) | dict.fromkeys(ENDS_PROCESS, 0.8)

WAYS: tuple[dict[str, Any], ...] = (
    {"mode": Mode.CLOUD},
    {"mode": Mode.DRAFT},
    {"mode": Mode.DRAFT, "effort": 0.0},
    {"mode": Mode.DRAFT, "effort": 0.5, "sampling": Sampling(temperature=0.8, seed=3)},
    {"mode": Mode.CLOUD, "sampling": Sampling(temperature=0.8, seed=5)},
    {"mode": Mode.AUTO},
    {"mode": Mode.SPLIT, "cut": "vision.1"},
    {"mode": Mode.DRAFT, "cut": "connector"},
    {"mode": Mode.SPLIT, "cut": "decoder.0"},
    {"mode": Mode.SPLIT, "cut": "decoder.2"},
    {"mode": Mode.DRAFT, "cut": "decoder.2"},
)
# In a chain that is cut at decoder.2 the agent's own cut comes before.
_CHAINED = tuple(way for way in WAYS if way.get("cut") != "decoder.2")


@dataclass(frozen=True, slots=True)
class Case:
    """A `fault` at a `point` of a question that is asked a `way`, with the numbers that say where exactly, and how bad.

    `at` (0..1) is the place within the point, `strength` (0..1) how bad it is. It is over after so many times the
    agent's notice, None once the answer is there; a silent one may leave connections that are `forgotten`. In a
    chain it may befall the `second` link or worker. `kept`: the worker keeps the question's image from before.
    """

    setup: Setup
    fault: Fault
    point: Point
    way: int
    question: int
    at: float
    strength: float
    lasts: float | None
    forgotten: bool = False
    second: bool = False
    kept: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """How the question is asked."""
        return WAYS[self.way]

    def __str__(self) -> str:
        options = self.options
        way = " ".join(str(options[key]) for key in ("mode", "cut") if key in options)
        more = [name for name in ("second", "kept", "forgotten") if getattr(self, name)]
        return " ".join([f"{self.setup}: {self.fault} {self.point} at {self.at:.2f}, {way}", *more])


def draw(rng: random.Random, setup: Setup, *, questions: int, without: Collection[Fault] = ()) -> Case:
    """A case of one of so many `questions`, `without` some faults. Only TLS notices what changes on the way."""
    faults = [fault for fault in Fault if fault not in without and (setup is Setup.TLS or fault is not Fault.FLIP)]
    (fault,) = rng.choices(faults, [_WEIGHTS[one] for one in faults])
    ways = [WAYS.index(way) for way in (_CHAINED if setup is Setup.CHAIN else WAYS)]
    (point,) = rng.choices(tuple(Point), (1.0, 2.0, 4.0, 1.5))
    if point is Point.DRAFT:
        ways = [way for way in ways if WAYS[way]["mode"] is Mode.DRAFT or WAYS[way].get("cut") == "decoder.2"]
    return Case(
        setup=setup,
        fault=fault,
        point=point,
        way=rng.choice(ways),
        question=rng.randrange(questions),
        at=rng.random(),
        strength=rng.random(),
        lasts=None if rng.random() < 0.6 else rng.uniform(0.2, 3.0),
        forgotten=fault in (Fault.BLACKHOLE, Fault.HALF_OPEN) and rng.random() < 0.3,
        second=setup is Setup.CHAIN and rng.random() < 0.5,
        kept=rng.random() < 0.3,
    )
