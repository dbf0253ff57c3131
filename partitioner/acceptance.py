"""How many drafted tokens are right, when each one is with the same chance, and how many a worker verifies at once.

A run of right ones is then geometric (Leviathan, Kalman and Matias 2023).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FIRST_RATE = 0.8  # what a worker takes for a session's acceptance before it has seen any draft ...
FIRST_SEEN = 5  # ... as if it had seen so many tokens

_NEARLY_ALL = 1 - 1e-9  # stands for 1, where the closed forms below divide by zero


def proper(acceptance: ArrayLike) -> NDArray[np.float64]:
    """`acceptance` as the functions here take it: less than 1."""
    return np.minimum(np.asarray(acceptance, np.float64), _NEARLY_ALL)


def right_tokens(acceptance: ArrayLike, after: ArrayLike, until: ArrayLike) -> NDArray[np.float64]:
    """Expected tokens of the first run of right ones that stand behind the first `after` and within `until`."""
    p = proper(acceptance)
    tokens: NDArray[np.float64] = (p ** (np.asarray(after) + 1.0) - p ** (np.asarray(until) + 1.0)) / (1 - p)
    return np.maximum(tokens, 0.0)


def confirmed_tokens(acceptance: ArrayLike, drafted: ArrayLike) -> NDArray[np.float64]:
    """Expected tokens that a pass with `drafted` drafted ones confirms: the right ones, and one more."""
    return 1.0 + right_tokens(acceptance, 0, drafted)


def worth_verifying(passes: NDArray[np.float64], limit: int, rate: float) -> int:
    """How many of `limit` drafted tokens give most tokens a second; `passes[k]` are seconds of a pass with k of them.

    `cloud/engine/cost_model.py` decides the same from a line that it fits to its passes.
    """
    return int(np.argmax(confirmed_tokens(rate, np.arange(limit + 1)) / passes[: limit + 1]))


def believed_rate(acceptance: float, seen: float) -> float:
    """What a worker takes for the acceptance once it has seen `seen` drafted tokens."""
    return (FIRST_RATE * FIRST_SEEN + acceptance * seen) / (FIRST_SEEN + seen)
