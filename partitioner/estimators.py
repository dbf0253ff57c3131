"""What is learnt of link, worker and drafter from traffic: estimates that move with what is observed.

All are pure: `after` an observation there is a new estimate. Each begins at a prior, older observations fade as others
come, and `aged` lets all of them fade towards the prior while none do.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cutline.partitioner.roofline import Speed

Floats = NDArray[np.float64]

NOISE, SHARE = 2e-3, 0.1  # a measured time is off by so many seconds, and by such a share of itself, now and then ...
OUTLIER_PROBABILITY = 0.05  # ... but in this share of cases by anything
CHANGE_PROBABILITY = 0.03  # chance that what is measured has become something else since the last observation
MEMORY = 0.85  # what an observation counts for, once there is another
HALF_LIFE, QUEUE_HALF_LIFE = 300.0, 20.0  # seconds in which half of what was learnt stops to count
VAGUE = 3.0  # halvings or doublings that the guess of an upstream's speed may well be off by
KINDS = 64  # of requests whose answers' lengths are remembered
MAX_CORRECTION = 4.0  # that a prediction is corrected by, up or down

_RATIO, _STEPS = 1.1, 120  # of a guess's values: to a hundred thousandth of the prior and a hundred thousandfold
_FACTORS = _RATIO ** np.arange(-_STEPS, _STEPS + 1.0)
_OCTAVES = np.log2(_FACTORS)


@dataclass(frozen=True, slots=True, eq=False)
class Guess:
    """A figure above 0 that shows in noisy times: how likely each of `values` (n,) is, which rise by one ratio.

    `prior` (n,) is how likely they were before anything was seen.

    An average would not do: a time that is too short to measure says no more than that it is short, a far longer one
    may be a hiccup or the link's new speed, and the next ones tell which.
    """

    values: Floats
    likely: Floats
    prior: Floats

    @classmethod
    def around(cls, value: float, octaves: float = 1.0) -> Self:
        """What is believed of a figure that is said to be `value`: most within so many halvings and doublings."""
        prior = 1 / (1 + (_OCTAVES / octaves) ** 2)  # yet nothing is impossible
        prior /= prior.sum()
        return cls(value * _FACTORS, prior, prior)

    @property
    def value(self) -> float:
        """The figure, as the mean of its logarithm."""
        return float(np.exp(self.likely @ np.log(self.values)))

    def after(self, expected: Floats, seconds: float) -> Self:
        """The guess once something took `seconds` that takes `expected` (n,) if each of the values is right."""
        likely = self.aged(1 - CHANGE_PROBABILITY).likely * _fitting(expected, seconds)
        return replace(self, likely=likely / likely.sum())

    def together(self, other: Self, expected: Floats, seconds: float) -> tuple[Self, Self]:
        """Both guesses once something took `seconds` that takes `expected` (n, m) by each two of their values.

        Of what was not foreseen each takes the share that it is the likelier to be wrong by.
        """
        before = self.aged(1 - CHANGE_PROBABILITY).likely[:, None] * other.aged(1 - CHANGE_PROBABILITY).likely
        likely = before * _fitting(expected, seconds)
        likely /= likely.sum()
        return replace(self, likely=likely.sum(axis=1)), replace(other, likely=likely.sum(axis=0))

    def aged(self, kept: float) -> Self:
        """The guess when only the share `kept` of what was learnt still counts."""
        return replace(self, likely=kept * self.likely + (1 - kept) * self.prior)


def _fitting(expected: Floats, seconds: float) -> Floats:
    """How well each of the `expected` times explains that something took `seconds`."""
    spread = np.maximum(NOISE, SHARE * expected)
    # What noise explains alone says nothing, however often it is seen.
    off = np.maximum(np.abs(seconds - expected) - NOISE / 2, 0.0)
    fits = np.exp(-((off / spread) ** 2) / 2) / spread
    odd = 1 / (10 * max(seconds, NOISE))
    likely: Floats = (1 - OUTLIER_PROBABILITY) * fits + OUTLIER_PROBABILITY * odd
    return likely


@dataclass(frozen=True, slots=True)
class Average:
    """A mean that forgets. It stands for `count` observations; the prior is what it began as."""

    value: float
    count: float
    prior: tuple[float, float]

    @classmethod
    def of(cls, value: float, count: float) -> Self:
        """A prior of `value`, worth `count` observations."""
        return cls(value, count, (value, count))

    def after(self, seen: float, times: float = 1.0) -> Self:
        """The mean once `seen` was observed, as the mean of so many `times`; above 0."""
        count = self.count * MEMORY + times
        return replace(self, value=self.value + (seen - self.value) * times / count, count=count)

    def aged(self, kept: float) -> Self:
        """The mean when only the share `kept` of what was learnt still counts."""
        value, count = self.prior
        return replace(self, value=value + (self.value - value) * kept, count=count + (self.count - count) * kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How the opening of a session went.

    `sent` are (seconds since the first, bytes) of its messages as they were given to the connection, `answered` the
    seconds from the first until the worker's word came. The others are what the worker says: seconds in which the rest
    arrived after the first message, of preparing it, and of waiting for a pass.
    """

    sent: Sequence[tuple[float, int]]
    answered: float
    upload: float
    prepare: float
    queue: float

    def arriving(self, byte: Floats) -> Floats:
        """Seconds from the first message's arrival to the last one's where a byte takes `byte` (n,)."""
        first = arrived = self.sent[0][1] * byte
        for at, size in self.sent[1:]:
            arrived = np.maximum(arrived, at) + size * byte
        return arrived - first


@dataclass(frozen=True, slots=True, eq=False)
class LinkEstimate:
    """The way to the worker: seconds of a round trip and of a byte up. The downlink carries too little to be seen."""

    trip: Guess
    byte: Guess

    @classmethod
    def around(cls, rtt: float, uplink: float) -> Self:
        """What is believed of a link whose profile says so, in seconds and bytes a second."""
        return cls(Guess.around(max(rtt, 1e-4)), Guess.around(1 / uplink))

    def after(self, opening: Opening, *, overhead: float) -> Self:
        """The link after a session was opened over it, which takes `overhead` seconds besides."""
        byte = self.byte.after(opening.arriving(self.byte.values), opening.upload)
        alone = opening.answered - opening.upload - opening.prepare - opening.queue
        alone -= overhead + opening.sent[0][1] * byte.value
        return replace(self, byte=byte, trip=self.trip.after(self.trip.values, max(alone, 0.0)))

    def aged(self, kept: float) -> Self:
        """The link when only the share `kept` of what was learnt still counts."""
        return replace(self, trip=self.trip.aged(kept), byte=self.byte.aged(kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """How an upstream replied to `size` bytes.

    The `first` words came so many seconds after these were sent, the last ones `later` than that. `trip` is what making
    a connection took, None where there was one.
    """

    size: int
    first: float
    later: float
    trip: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Serving:
    """An upstream's seconds until its first token, and for each one more; mere guesses until it has `answered`."""

    first: Guess
    token: Guess
    answered: bool = False

    @classmethod
    def around(cls, speed: Speed) -> Self:
        """What is believed of one whose speed nobody knows better."""
        return cls(Guess.around(speed.first, VAGUE), Guess.around(speed.token, VAGUE))

    def after(self, reply: Reply, link: LinkEstimate, *, tokens: int, overhead: float) -> tuple[Self, LinkEstimate]:
        """It, and the link, after a reply of so many `tokens`, which takes `overhead` seconds besides.

        Waiting for the first words is upload, round trip and the server's own work in one: requests of other sizes tell
        them apart.
        """
        trip = link.trip if reply.trip is None else link.trip.after(link.trip.values, reply.trip)
        expected = self.first.values[:, None] + reply.size * link.byte.values
        waited = max(reply.first - trip.value - overhead, 0.0)
        first, byte = self.first.together(link.byte, expected, waited)
        token = self.token.after((tokens - 1) * self.token.values, reply.later) if tokens > 1 else self.token
        return replace(self, first=first, token=token, answered=True), LinkEstimate(trip, byte)

    def aged(self, kept: float) -> Self:
        """It when only the share `kept` of what was learnt still counts."""
        return replace(self, first=self.first.aged(kept), token=self.token.aged(kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one answer showed.

    `kind` is that of the request; lengths of answers are kept apart by it, and by its `group` what the gate keeps. Of
    `tried` drafted tokens `right` were the target's own. `kept` says whether the gate kept the answer, None where it
    was not asked; `opening` is None where no session was opened or the connection was not up before, as is `reply`, an
    upstream's. `density`: bytes of the uploaded picture by its pixels.
    """

    kind: Hashable
    tokens: int
    group: str = ""
    right: float = 0.0
    tried: int = 0
    kept: bool | None = None
    opening: Opening | None = None
    reply: Reply | None = None
    density: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Live:
    """All of it. `at` is when, on the agent's clock; `tokens` are those of answers, `lengths` by the kind of request.

    `kept` is the share that the gate keeps, by group; `corrections` are logarithms, by mode, of measured by predicted
    latency.
    """

    at: float
    link: LinkEstimate
    acceptance: Average
    kept: Mapping[str, Average]
    serving: Serving | None = None  # where an upstream is asked
    queue: Average = field(default_factory=lambda: Average.of(0.0, 1.0))
    tokens: Average = field(default_factory=lambda: Average.of(16.0, 1.0))
    lengths: Mapping[Hashable, Average] = field(default_factory=dict)
    density: Average = field(default_factory=lambda: Average.of(1.0, 0.1))  # a photograph's without loss
    corrections: Mapping[str, Average] = field(default_factory=dict)

    def correction(self, mode: str) -> float:
        """What predictions of a mode are multiplied with."""
        return math.exp(self.corrections[mode].value) if mode in self.corrections else 1.0

    def expected_tokens(self, kind: Hashable) -> float:
        """How long an answer to a request of this kind will be."""
        return self.lengths.get(kind, self.tokens).value

    def aged(self, now: float) -> Self:
        """All of it at the time `now`."""
        passed = max(0.0, now - self.at)
        kept, queued = 0.5 ** (passed / HALF_LIFE), 0.5 ** (passed / QUEUE_HALF_LIFE)
        return replace(
            self,
            at=max(self.at, now),
            link=self.link.aged(kept),
            serving=None if self.serving is None else self.serving.aged(kept),
            queue=self.queue.aged(queued),
            kept={group: one.aged(kept) for group, one in self.kept.items()},
            corrections={mode: one.aged(kept) for mode, one in self.corrections.items()},
        )

    def after(self, seen: Observation, *, overhead: float) -> Self:
        """All of it after an answer; a session's opening takes `overhead` seconds besides link and worker."""
        length = self.lengths.get(seen.kind, Average.of(self.tokens.value, 0.5)).after(seen.tokens)
        others = [(kind, one) for kind, one in self.lengths.items() if kind != seen.kind][-KINDS:]
        found = replace(self, tokens=self.tokens.after(seen.tokens), lengths=dict([*others, (seen.kind, length)]))
        if seen.tried:
            found = replace(found, acceptance=self.acceptance.after(seen.right / seen.tried, seen.tried))
        if seen.kept is not None and seen.group in self.kept:
            kept = self.kept[seen.group].after(float(seen.kept))
            found = replace(found, kept={**self.kept, seen.group: kept})
        if seen.density is not None:
            found = replace(found, density=self.density.after(seen.density))
        if seen.opening is not None:
            link = self.link.after(seen.opening, overhead=overhead)
            found = replace(found, link=link, queue=self.queue.after(seen.opening.queue))
        if seen.reply is not None and self.serving is not None:
            serving, link = self.serving.after(seen.reply, self.link, tokens=seen.tokens, overhead=overhead)
            found = replace(found, link=link, serving=serving)
        return found

    def corrected(self, mode: str, measured: float, predicted: float) -> Self:
        """All of it once a latency was measured that was predicted, uncorrected, with all that was known afterwards."""
        ratio = (measured + NOISE) / (predicted + NOISE)  # what is off by no more than noise is right
        log = math.log(min(max(ratio, 1 / MAX_CORRECTION), MAX_CORRECTION))
        before = self.corrections.get(mode, Average.of(0.0, 2.0))
        return replace(self, corrections={**self.corrections, mode: before.after(log)})
