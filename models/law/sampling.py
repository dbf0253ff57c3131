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
    kept = xp.ones_like(scaled, dtype=xp.bool)
    if sampling.top_k or sampling.top_p < 1.0:
        order = xp.argsort(-scaled, stable=True)
        left = xp.ones_like(kept)
        if sampling.top_k:
            left[sampling.top_k :] = False
        if sampling.top_p < 1.0:
            weights = xp.where(left, _weights(scaled[order], xp), 0)
            limit = xp.asarray(weights.sum(), dtype=xp.float64) * sampling.top_p
            before = xp.cumsum(weights, 0) - weights
            left = left & (before < xp.asarray(xp.ceil(limit), dtype=xp.int64))
        kept[order] = left
    if sampling.min_p:
        # A sum with a logarithm computed here, so that both libraries round alike.
        best = scaled.max()[None]
        kept = kept & (scaled >= best + xp.full_like(best, math.log(sampling.min_p)))
    return kept


def _weights(ranked: Any, xp: Any) -> Any:
    """How likely tokens are against the first, the likeliest, as int64 in units of 2**-40: their sum has no rounding.

    By steps that are exact or exactly rounded, so that both libraries get the same bits; their own exponentials differ.
    """
    ranked = xp.asarray(ranked, dtype=xp.float64)
    x = xp.clip(ranked - ranked[:1], -30.0, 0.0)  # below that nothing is left of it
    twos = xp.round(x * (1.0 / math.log(2.0)))
    rest = (x - twos * _LN2[0]) - twos * _LN2[1]  # at most half a logarithm of two
    exponential = xp.full_like(rest, 1.0 / math.factorial(_TERMS))
    for term in reversed(range(_TERMS)):
        exponential = exponential * rest + 1.0 / math.factorial(term)
    return xp.asarray(xp.round(exponential * 2.0**40), dtype=xp.int64) >> xp.asarray(-twos, dtype=xp.int64)


_LN2 = (0.693147180369123816490, 1.90821492927058770002e-10)  # in two parts: products of the first are exact
_TERMS = 13  # of a series, of which the next is below a bit of a float64
