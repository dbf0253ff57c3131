"""The law: the token at position p is argmax(logits / T + gumbel(seed, p)) after penalties, top-k, top-p and min-p.

The next token is a function of logits, seed and position only, so device and worker compute the same one, and a draft
is right if it equals it (drafter-invariant speculative decoding: Daliri, Musco and Suresh, "Coupling without
communication and drafter-invariant speculative decoding", 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cutline.core.sampling import Sampling
from cutline.models.law.noise import gumbel


def choose(logits: Any, sampling: Sampling, position: int, *, xp: Any = np) -> int:
    """The token at `position`, from its logits (vocabulary,), an array of `xp` (numpy or torch)."""
    if sampling.greedy:
        return int(logits.argmax())
    scaled = xp.asarray(logits, dtype=xp.float32)
    # Divided by an array: for a number a GPU would multiply by the reciprocal, which rounds differently.
    scaled = scaled / xp.full_like(scaled[:1], sampling.temperature)
    noise = gumbel(sampling.seed, position, scaled.shape[0], xp=xp)
    if noise.device != scaled.device:
        noise = noise.to(scaled.device)
    return int(xp.where(_kept(scaled, sampling, xp), scaled + noise, -float("inf")).argmax())


def agreeing(draft: Sequence[object], tokens: Sequence[object]) -> int:
    """The length of the longest common prefix of a draft and the `tokens` from its position on."""
    pairs = zip(draft, tokens, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(draft), len(tokens)))


def _kept(scaled: Any, sampling: Sampling, xp: Any) -> Any:
    """Which tokens top-k, top-p and min-p leave: (vocabulary,) bool. Top-p keeps the token that crosses its limit."""
    order = xp.argsort(-scaled, stable=True)
    ranked = scaled[order]
    weights = xp.exp(ranked - ranked[0])
    if sampling.top_k:
        weights[sampling.top_k :] = 0.0
    shares = xp.cumsum(weights / weights.sum(), 0) - weights / weights.sum()
    kept = xp.zeros_like(scaled, dtype=xp.bool)
    kept[order] = (shares < sampling.top_p) & (weights > 0.0)
    if sampling.min_p:
        # A sum with a logarithm computed here, so that both libraries round alike.
        least = ranked[:1] + xp.full_like(ranked[:1], math.log(sampling.min_p))
        kept = kept & (scaled >= least)
    return kept
