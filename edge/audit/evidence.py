"""Whether the gate's promise holds, from audited answers: evidence that may be looked at after every one of them.

A promise of a risk r is broken where kept answers differ from the target's more often. Against each rate q above r,
the likelihood ratio (q/r)^k ((1-q)/(1-r))^(n-k) of k differing answers of n has a mean of 1 at most while the promise
holds, whenever one stops looking; so has the average over several q. By Ville's inequality it reaches 1/a with chance a
at most (Howard et al. 2021, "Time-uniform, nonparametric, nonasymptotic confidence sequences"; Waudby-Smith and Ramdas
2024, "Estimating means of bounded random variables by betting").

A promise that held for long may be broken today, and what was seen before must not hide it. So evidence is gathered
anew every few answers, and all of these trails count, the n-th with the weight 1/(n(n+1)), which sum to 1: the mean
stays 1 at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

CHANCE = 0.05  # that a promise which holds is ever taken for broken, and one that is broken for kept again
EVERY = 25  # answers after which evidence is gathered anew
MOST = 32  # trails; older ones are left out, which makes evidence no stronger
RATES = 24  # that evidence is weighed against
STEPS = 40  # of the search for a bound: to a millionth of a millionth

_STEPS = (np.arange(RATES) + 0.5) / RATES


@dataclass(frozen=True, slots=True)
class Trail:
    """The `number`-th: how many answers were `audited` since it began, and how many of them `disagreed`."""

    number: int
    audited: int = 0
    disagreed: int = 0


@dataclass(frozen=True, slots=True)
class Evidence:
    """How many answers were `audited`, how many of them `disagreed` with the target's, and the trails of them."""

    audited: int = 0
    disagreed: int = 0
    trails: tuple[Trail, ...] = ()

    def with_one(self, *, agreed: bool) -> Evidence:
        """With another answer."""
        trails = self.trails
        if self.audited % EVERY == 0:
            trails = (*trails, Trail(self.audited // EVERY + 1))
        grown = [Trail(one.number, one.audited + 1, one.disagreed + (not agreed)) for one in trails]
        return Evidence(self.audited + 1, self.disagreed + (not agreed), tuple(grown[-MOST:]))


def is_above(evidence: Evidence, risk: float) -> bool:
    """Whether it shows that more than a share `risk` of answers differ."""
    return weight_above(evidence, risk) >= 1.0 / CHANCE


def is_below(evidence: Evidence, risk: float, *, chance: float = CHANCE) -> bool:
    """Whether it shows that less than a share `risk` of answers differ; wrongly with this chance at most."""
    return _may_be_below(evidence, risk, chance) and weight_below(evidence, risk) >= 1.0 / chance


def _may_be_below(evidence: Evidence, risk: float, chance: float) -> bool:
    """Whether a trail is so long, and so good, that the weight may be 1/chance: quicker to see than the weight is.

    A ratio is at most 1 where no fewer differ than promised, and at most (1-r)^-n of n answers; the weights sum to 1.
    """
    fewest = math.log(chance) / math.log1p(-risk) if risk < 1.0 else 0.0
    return any(one.audited >= fewest and one.disagreed <= risk * one.audited for one in evidence.trails)


def weight_above(evidence: Evidence, risk: float) -> float:
    """How much it speaks for more than a share `risk`: its mean is 1 at most where there is no more."""
    return _weight(evidence, risk, risk + (1.0 - risk) * _STEPS)


def weight_below(evidence: Evidence, risk: float) -> float:
    """How much it speaks for less than a share `risk`: its mean is 1 at most where there is no less."""
    return _weight(evidence, risk, risk * _STEPS)


@lru_cache(maxsize=256)  # every answer says it of its group, and few change it
def at_most(evidence: Evidence) -> float:
    """The share of differing answers that is not exceeded, at any time, but with a chance of CHANCE."""
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_below(evidence, middle) else (middle, high)
    return high


def _weight(evidence: Evidence, risk: float, rates: NDArray[np.float64]) -> float:
    """The average likelihood ratio of `rates` (n,) to `risk`, over all trails by their weights; at most a float's."""
    if not evidence.trails:
        return 0.0
    numbers, audited, disagreed = np.array([(one.number, one.audited, one.disagreed) for one in evidence.trails]).T
    wrong, right = np.log(rates / risk), np.log((1.0 - rates) / (1.0 - risk))
    logs = np.outer(disagreed, wrong) + np.outer(audited - disagreed, right)
    logs -= np.log(numbers * (numbers + 1.0))[:, None]
    return float(np.exp(np.minimum(logs, 700.0)).sum() / len(rates))
