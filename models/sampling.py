"""The law: the token at position p is argmax(logits / T + gumbel(seed, p)) after top-k and top-p.

So the next token is a function of the logits, the seed and the position, and nothing else: whoever computes it
gets the same one, and a draft is right when it equals it (drafter-invariant speculative decoding: Daliri, Musco
and Suresh, "Coupling without communication and drafter-invariant speculative decoding", 2024).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from cutline.errors import InputError
from cutline.models.noise import gumbel


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How tokens are chosen. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 keep every token."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        # Below a hundredth nothing but the best token is drawn, and further down the division overflows.
        if self.temperature != 0.0 and not 0.01 <= self.temperature <= 100.0:
            raise InputError(f"temperature is {self.temperature}; give 0 (greedy), or 0.01 to 100")
        if not 0 <= self.top_k < 2**31:
            raise InputError(f"top-k is {self.top_k}; give 0 (all tokens) or more, below 2**31")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top-p is {self.top_p}; give more than 0, and 1 at most")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed}; give 0 or more, below 2**63")


def chosen_seed(given: int | None, temperature: float) -> int:
    """The seed of an answer: the one that was given, or where that is None or -1 a new one, if any noise is drawn."""
    if given is not None and given != -1:
        return given
    return secrets.randbits(63) if temperature > 0.0 else 0


def choose(logits: Any, sampling: Sampling, position: int, *, xp: Any = np) -> int:
    """The token at `position`, from its logits (vocabulary,), an array of `xp` (numpy or torch)."""
    if sampling.temperature == 0.0:
        return int(logits.argmax())
    scaled = xp.asarray(logits, dtype=xp.float32) / sampling.temperature
    noise = gumbel(sampling.seed, position, scaled.shape[0], xp=xp)
    if noise.device != scaled.device:
        noise = noise.to(scaled.device)
    return int(xp.where(_kept(scaled, sampling, xp), scaled + noise, -float("inf")).argmax())


def agreeing(draft: Sequence[object], tokens: Sequence[object]) -> int:
    """How many tokens of a draft are right, given the `tokens` from its position on: their longest common prefix."""
    pairs = zip(draft, tokens, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(draft), len(tokens)))


def _kept(scaled: Any, sampling: Sampling, xp: Any) -> Any:
    """Which tokens top-k, then top-p, leave: (vocabulary,) bool. Top-p keeps the token that crosses the line."""
    order = xp.argsort(-scaled, stable=True)
    ranked = scaled[order]
    weights = xp.exp(ranked - ranked[0])
    if sampling.top_k:
        weights[sampling.top_k :] = 0.0
    shares = xp.cumsum(weights / weights.sum(), 0) - weights / weights.sum()
    kept = xp.zeros_like(scaled, dtype=xp.bool)
    kept[order] = (shares < sampling.top_p) & (weights > 0.0)
    return kept
