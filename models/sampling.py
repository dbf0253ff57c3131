"""The law: the token at position p is argmax(logits / T + gumbel(seed, p)) after penalties, top-k, top-p and min-p.

So the next token is a function of the logits, the seed and the position, and nothing else: whoever computes it
gets the same one, and a draft is right when it equals it (drafter-invariant speculative decoding: Daliri, Musco
and Suresh, "Coupling without communication and drafter-invariant speculative decoding", 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cutline.core.sampling import Sampling
from cutline.models.noise import gumbel


def choose(logits: Any, sampling: Sampling, position: int, *, xp: Any = np) -> int:
    """The token at `position`, from its logits (vocabulary,), an array of `xp` (numpy or torch)."""
    if sampling.greedy:
        return int(logits.argmax())
    scaled = xp.asarray(logits, dtype=xp.float32)
    # Divided by an array: by a number, a GPU would multiply with the reciprocal, which rounds otherwise.
    scaled = scaled / xp.full_like(scaled[:1], sampling.temperature)
    noise = gumbel(sampling.seed, position, scaled.shape[0], xp=xp)
    if noise.device != scaled.device:
        noise = noise.to(scaled.device)
    return int(xp.where(_kept(scaled, sampling, xp), scaled + noise, -float("inf")).argmax())


def agreeing(draft: Sequence[object], tokens: Sequence[object]) -> int:
    """How many tokens of a draft are right, given the `tokens` from its position on: their longest common prefix."""
    pairs = zip(draft, tokens, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(draft), len(tokens)))


def _kept(scaled: Any, sampling: Sampling, xp: Any) -> Any:
    """Which tokens top-k, top-p and min-p leave: (vocabulary,) bool. Top-p keeps the token that crosses the line."""
    order = xp.argsort(-scaled, stable=True)
    ranked = scaled[order]
    weights = xp.exp(ranked - ranked[0])
    if sampling.top_k:
        weights[sampling.top_k :] = 0.0
    shares = xp.cumsum(weights / weights.sum(), 0) - weights / weights.sum()
    kept = xp.zeros_like(scaled, dtype=xp.bool)
    kept[order] = (shares < sampling.top_p) & (weights > 0.0)
    if sampling.min_p:
        # A sum, so that both libraries round it alike; the logarithm is taken once, here.
        least = ranked[:1] + xp.full_like(ranked[:1], math.log(sampling.min_p))
        kept = kept & (scaled >= least)
    return kept
