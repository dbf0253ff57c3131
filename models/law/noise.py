"""Counter-based Gumbel noise: the same bits for the same `(seed, position)` in NumPy and torch.

It is Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) in signed 64-bit integers,
which both libraries have, followed by a logarithm of additions, multiplications and divisions only. Those are rounded
the same everywhere, while the libraries' own `log` differ in the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LN2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476


def gumbel(seed: int, position: int, size: int, *, xp: Any = np) -> Any:
    """Standard Gumbel noise for the token at `position`: (size,) float32, an array of `xp` (numpy or torch).

    `seed` and `position` are taken modulo 2**64.
    """
    return _gumbel_of(_uniform(seed, position, size, xp), xp)


def _uniform(seed: int, position: int, size: int, xp: Any) -> Any:
    """Uniforms (size,) float64 strictly between 0 and 1: odd multiples of 2**-33."""
    blocks = -(-size // 4)
    counter = [
        xp.arange(blocks, dtype=xp.int64),
        xp.zeros(blocks, dtype=xp.int64),
        xp.zeros(blocks, dtype=xp.int64) + (position & _WORD),
        xp.zeros(blocks, dtype=xp.int64) + (position >> 32 & _WORD),
    ]
    words = _philox(counter, [seed & _WORD, seed >> 32 & _WORD])
    bits = xp.stack(words, -1).reshape(-1)[:size]
    return (xp.asarray(bits, dtype=xp.float64) + 0.5) / 2.0**32


def _philox(counter: list[Any], key: list[int]) -> list[Any]:
    """Ten rounds of Philox over blocks of four words; a word is 32 bits, held in an int64."""
    for _ in range(_ROUNDS):
        # The product of two 32-bit words may overflow into the sign bit. The bits are right; masking drops the sign.
        first, second = counter[0] * _MULTIPLIERS[0], counter[2] * _MULTIPLIERS[1]
        counter = [
            (second >> 32 & _WORD) ^ counter[1] ^ key[0],
            second & _WORD,
            (first >> 32 & _WORD) ^ counter[3] ^ key[1],
            first & _WORD,
        ]
        key = [(word + weyl) & _WORD for word, weyl in zip(key, _WEYL, strict=True)]
    return counter


def _gumbel_of(uniform: Any, xp: Any) -> Any:
    return xp.asarray(-_log(-_log(uniform, xp), xp), dtype=xp.float32)


def _log(x: Any, xp: Any) -> Any:
    """Natural logarithm of positive float64, by exactly rounded operations; its relative error is below 1e-14."""
    mantissa, exponent = xp.frexp(x)
    small = mantissa < _SQRT_HALF
    mantissa = xp.where(small, mantissa * 2.0, mantissa)
    exponent = xp.asarray(exponent, dtype=xp.float64) - xp.asarray(small, dtype=xp.float64)
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    square = ratio * ratio
    series = xp.zeros_like(square)
    for odd in range(21, 0, -2):
        series = series * square + 1.0 / odd
    return exponent * _LN2 + 2.0 * ratio * series
