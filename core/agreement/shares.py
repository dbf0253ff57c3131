"""Shares of what was counted, and how sure they are: exact binomial tails and intervals."""

from __future__ import annotations

import math

STEPS = 50  # of the search for an interval's end: to a thousandth of a millionth of a millionth


def binomial_tail(errors: int, count: int, rate: float) -> float:
    """P(at most `errors` of `count`) when each errs with chance `rate`: the p-value against a higher rate."""
    log_odds = math.log(rate) - math.log1p(-rate)
    term = count * math.log1p(-rate)
    terms = [term]
    for k in range(errors):
        term += math.log(count - k) - math.log(k + 1) + log_odds
        terms.append(term)
    return min(1.0, math.fsum(math.exp(t) for t in terms))


def interval(found: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share of which `found` of `count` were seen (Clopper and Pearson 1934)."""
    outside = (1.0 - confidence) / 2
    return 1.0 - _highest(count - found, count, outside), _highest(found, count, outside)


def _highest(found: int, count: int, outside: float) -> float:
    """The rate at which so few or fewer are seen with the chance `outside`."""
    if found == count:
        return 1.0
    low, high = found / count, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_tail(found, count, middle) > outside else (low, middle)
    return high
