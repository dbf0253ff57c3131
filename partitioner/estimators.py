"""Online estimators of link, worker and drafter, learnt from traffic.

All are immutable: `after` returns the estimate after an observation, and `aged` the one after some time without any.
Each begins at a prior. Older observations count less with each new one, and with time.
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

NOISE, SHARE = 2e-3, 0.1  # spread of a measured time: the larger of so many seconds and such a share of itself
OUTLIER_PROBABILITY = 0.05  # of a measured time with any other error
CHANGE_PROBABILITY = 0.03  # that the measured quantity has changed since the last observation
MEMORY = 0.85  # weight of older observations after each new one
HALF_LIFE, QUEUE_HALF_LIFE = 300.0, 20.0  # seconds after which observations count half
UPSTREAM_OCTAVES = 3.0  # halvings or doublings by which the prior of an upstream's speed may well be wrong
MAX_KINDS = 64  # of requests for which the length of answers is estimated
MAX_CORRECTION = 4.0  # factor by which a prediction is corrected, up or down

_RATIO, _STEPS = 1.1, 120  # of a guess's grid of values, which spans a factor of 10⁵ on both sides of the prior
_FACTORS = _RATIO ** np.arange(-_STEPS, _STEPS + 1.0)
_OCTAVES = np.log2(_FACTORS)


@dataclass(frozen=True, slots=True, eq=False)
class Guess:
    """A distribution of a positive quantity that is observed by noisy times.

    `likely` (n,) are the probabilities of `values` (n,), a geometric grid, and `prior` (n,) those before any
    observation.

    An average would not do: a time below the noise only says that it is short, and a far longer one may be a hiccup or
    a lasting change, which only later observations show.
    """

    values: Floats
    likely: Floats
    prior: Floats

    @classmethod
    def around(cls, value: float, octaves: float = 1.0) -> Self:
        """The prior of a quantity given as `value`, with most of it within so many halvings and doublings."""
        prior = 1 / (1 + (_OCTAVES / octaves) ** 2)  # heavy-tailed, so that no value is impossible
        prior /= prior.sum()
        return cls(value * _FACTORS, prior, prior)

    @property
    def value(self) -> float:
        """The estimate: the mean of the logarithm."""
        return float(np.exp(self.likely @ np.log(self.values)))

    def after(self, expected: Floats, seconds: float) -> Self:
        """The distribution after a time of `seconds` was observed; `expected` (n,) is the time for each value."""
        likely = self.aged(1 - CHANGE_PROBABILITY).likely * _fitting(expected, seconds)
        return replace(self, likely=likely / likely.sum())

    def together(self, other: Self, expected: Floats, seconds: float) -> tuple[Self, Self]:
        """Both distributions after `seconds` was observed; `expected` (n, m) is the time for each pair of values.

        A deviation is attributed to each as far as it is uncertain.
        """
        before = self.aged(1 - CHANGE_PROBABILITY).likely[:, None] * other.aged(1 - CHANGE_PROBABILITY).likely
        likely = before * _fitting(expected, seconds)
        likely /= likely.sum()
        return replace(self, likely=likely.sum(axis=1)), replace(other, likely=likely.sum(axis=0))

    def aged(self, kept: float) -> Self:
        """The distribution with what was learnt weighted by `kept`, and the prior by the rest."""
        return replace(self, likely=kept * self.likely + (1 - kept) * self.prior)


def _fitting(expected: Floats, seconds: float) -> Floats:
    """The likelihood of an observed time of `seconds` for each of the `expected` times."""
    spread = np.maximum(NOISE, SHARE * expected)
    # A deviation within half the noise does not count, however often it is observed.
    off = np.maximum(np.abs(seconds - expected) - NOISE / 2, 0.0)
    fits = np.exp(-((off / spread) ** 2) / 2) / spread
    outlier = 1 / (10 * max(seconds, NOISE))
    likely: Floats = (1 - OUTLIER_PROBABILITY) * fits + OUTLIER_PROBABILITY * outlier
    return likely


@dataclass(frozen=True, slots=True)
class Average:
    """A mean with exponential decay, worth `count` observations. `prior` is its first value and count."""

    value: float
    count: float
    prior: tuple[float, float]

    @classmethod
    def of(cls, value: float, count: float) -> Self:
        """A prior of `value`, worth `count` observations."""
        return cls(value, count, (value, count))

    def after(self, seen: float, times: float = 1.0) -> Self:
        """The mean after an observation of `seen`, which counts as `times` > 0 observations."""
        count = self.count * MEMORY + times
        return replace(self, value=self.value + (seen - self.value) * times / count, count=count)

    def aged(self, kept: float) -> Self:
        """The mean with what was learnt weighted by `kept`, and the prior by the rest."""
        value, count = self.prior
        return replace(self, value=value + (self.value - value) * kept, count=count + (self.count - count) * kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The measured timing of a session's opening.

    `sent` are (seconds since the first, bytes) of its messages as they were handed to the connection. `answered` is the
    time from the first message until the worker's answer. The others are reported by the worker: seconds from the
    arrival of the first message to that of the last, of preparing the upload, and of waiting for a pass.
    """

    sent: Sequence[tuple[float, int]]
    answered: float
    upload: float
    prepare: float
    queue: float

    def arriving(self, byte: Floats) -> Floats:
        """Seconds from the arrival of the first message to that of the last if a byte takes `byte` (n,) seconds."""
        first = arrived = self.sent[0][1] * byte
        for at, size in self.sent[1:]:
            arrived = np.maximum(arrived, at) + size * byte
        return arrived - first


@dataclass(frozen=True, slots=True, eq=False)
class LinkEstimate:
    """The link to the worker: seconds of a round trip and of a byte sent. Too little comes down to measure that way."""

    trip: Guess
    byte: Guess

    @classmethod
    def around(cls, rtt: float, uplink: float) -> Self:
        """The prior from a link's profile: `rtt` in seconds, `uplink` in bytes a second."""
        return cls(Guess.around(max(rtt, 1e-4)), Guess.around(1 / uplink))

    def after(self, opening: Opening, *, overhead: float) -> Self:
        """The link after a session's `opening` over it, of which `overhead` seconds are not the link's."""
        byte = self.byte.after(opening.arriving(self.byte.values), opening.upload)
        alone = opening.answered - opening.upload - opening.prepare - opening.queue
        alone -= overhead + opening.sent[0][1] * byte.value
        return replace(self, byte=byte, trip=self.trip.after(self.trip.values, max(alone, 0.0)))

    def aged(self, kept: float) -> Self:
        """The link with what was learnt weighted by `kept`."""
        return replace(self, trip=self.trip.aged(kept), byte=self.byte.aged(kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The measured timing of an upstream's reply to a request of `size` bytes.

    `first` is the seconds until the first token, `later` those from the first to the last. `trip` is the time to
    connect, None if the connection was open.
    """

    size: int
    first: float
    later: float
    trip: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Serving:
    """An upstream's seconds until its first token, and for each further one; only priors until it has `answered`."""

    first: Guess
    token: Guess
    answered: bool = False

    @classmethod
    def around(cls, speed: Speed) -> Self:
        """A vague prior around `speed`."""
        return cls(Guess.around(speed.first, UPSTREAM_OCTAVES), Guess.around(speed.token, UPSTREAM_OCTAVES))

    def after(self, reply: Reply, link: LinkEstimate, *, tokens: int, overhead: float) -> tuple[Self, LinkEstimate]:
        """The upstream and the link after a `reply` of so many `tokens`, of which `overhead` seconds are neither's.

        The time to the first token is upload, round trip and the server's work together; requests of different sizes
        tell them apart.
        """
        trip = link.trip if reply.trip is None else link.trip.after(link.trip.values, reply.trip)
        expected = self.first.values[:, None] + reply.size * link.byte.values
        waited = max(reply.first - trip.value - overhead, 0.0)
        first, byte = self.first.together(link.byte, expected, waited)
        token = self.token.after((tokens - 1) * self.token.values, reply.later) if tokens > 1 else self.token
        return replace(self, first=first, token=token, answered=True), LinkEstimate(trip, byte)

    def aged(self, kept: float) -> Self:
        """The upstream with what was learnt weighted by `kept`."""
        return replace(self, first=self.first.aged(kept), token=self.token.aged(kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What was measured of one answer.

    The length of answers is estimated for each `kind` of request, and the share that the gate keeps for each `group`.
    Of `tried` drafted tokens, `right` were the target's own. `kept` says whether the gate kept the answer, None if it
    did not decide. `opening`, and an upstream's `reply`, are None if there was none or the connection was new.
    `density` is the bytes of the uploaded image by its pixels.
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
    """All estimates at the time `at` on the agent's clock. `tokens` is the length of answers, `lengths` that by kind.

    `kept` is the share of answers that the gate keeps, by group. `corrections` are logarithms of measured by predicted
    latency, by mode.
    """

    at: float
    link: LinkEstimate
    acceptance: Average
    kept: Mapping[str, Average]
    serving: Serving | None = None  # of an upstream
    queue: Average = field(default_factory=lambda: Average.of(0.0, 1.0))
    tokens: Average = field(default_factory=lambda: Average.of(16.0, 1.0))
    lengths: Mapping[Hashable, Average] = field(default_factory=dict)
    density: Average = field(default_factory=lambda: Average.of(1.0, 0.1))  # that of a photograph as lossless WebP
    corrections: Mapping[str, Average] = field(default_factory=dict)

    def correction(self, mode: str) -> float:
        """The factor on predictions of a mode."""
        return math.exp(self.corrections[mode].value) if mode in self.corrections else 1.0

    def expected_tokens(self, kind: Hashable) -> float:
        """The expected length of an answer to a request of this kind."""
        return self.lengths.get(kind, self.tokens).value

    def aged(self, now: float) -> Self:
        """The estimates at the later time `now`, without new observations."""
        passed = max(0.0, now - self.at)
        kept, queued = 0.5 ** (passed / HALF_LIFE), 0.5 ** (passed / QUEUE_HALF_LIFE)
        return replace(
            self,
            at=max(self.at, now),
            link=self.link.aged(kept),
            serving=None if self.serving is None else self.serving.aged(kept),
            queue=self.queue.aged(queued),
            kept={group: share.aged(kept) for group, share in self.kept.items()},
            corrections={mode: factor.aged(kept) for mode, factor in self.corrections.items()},
        )

    def after(self, seen: Observation, *, overhead: float) -> Self:
        """The estimates after an answer; of an opening `overhead` seconds are neither the link's nor the worker's."""
        length = self.lengths.get(seen.kind, Average.of(self.tokens.value, 0.5)).after(seen.tokens)
        others = [(kind, known) for kind, known in self.lengths.items() if kind != seen.kind][-MAX_KINDS:]
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
        """The estimates after a `measured` latency; `predicted` is uncorrected, from the estimates after the answer."""
        ratio = (measured + NOISE) / (predicted + NOISE)  # near 1 for a difference within the noise
        log = math.log(min(max(ratio, 1 / MAX_CORRECTION), MAX_CORRECTION))
        before = self.corrections.get(mode, Average.of(0.0, 2.0))
        return replace(self, corrections={**self.corrections, mode: before.after(log)})
