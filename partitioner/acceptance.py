"""The expected number of accepted draft tokens, and how many to verify in one pass.

Each token is taken to be right with the same probability, so the length of a right run is geometric (Leviathan, Kalman
and Matias 2023).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FIRST_RATE = 0.8  # a worker's prior of a session's acceptance rate ...
FIRST_SEEN = 5  # ... and the number of tokens that the prior is worth

_MAX_ACCEPTANCE = 1 - 1e-9  # in place of 1, for which the closed forms below divide by zero


def proper(acceptance: ArrayLike) -> NDArray[np.float64]:
    """`acceptance` limited to less than 1."""
    return np.minimum(np.asarray(acceptance, np.float64), _MAX_ACCEPTANCE)


def right_tokens(acceptance: ArrayLike, after: ArrayLike, until: ArrayLike) -> NDArray[np.float64]:
    """Expected tokens of the first right run between the positions `after` and `until` of a draft."""
    p = proper(acceptance)
    tokens: NDArray[np.float64] = (p ** (np.asarray(after) + 1.0) - p ** (np.asarray(until) + 1.0)) / (1 - p)
    return np.maximum(tokens, 0.0)


def confirmed_tokens(acceptance: ArrayLike, drafted: ArrayLike) -> NDArray[np.float64]:
    """Expected tokens that a pass over `drafted` tokens confirms: the right ones and one more."""
    return 1.0 + right_tokens(acceptance, 0, drafted)


def worth_verifying(passes: NDArray[np.float64], limit: int, rate: float) -> int:
    """How many of `limit` drafted tokens give the most tokens a second; `passes[k]` is the seconds of a pass with k.

    `cloud/engine/cost_model.py` decides the same with a line fitted to its passes.
    """
    return int(np.argmax(confirmed_tokens(rate, np.arange(limit + 1)) / passes[: limit + 1]))


def believed_rate(acceptance: float, seen: float) -> float:
    """A worker's estimate of the `acceptance` after it has verified `seen` tokens."""
    return (FIRST_RATE * FIRST_SEEN + acceptance * seen) / (FIRST_SEEN + seen)
