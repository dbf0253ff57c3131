"""Gaussian noise on boundary rows: it hides part of what they reveal, and costs correct answers.

docs/explanation/privacy.md has the measurements. Several draws of noise on the same row could be averaged away. So a
row always gets the same noise, also in a retry, on another worker, or in a later question: the noise is derived from a
secret of the agent and from everything that the row depends on. The secret never leaves the agent's memory. An attacker
who guesses some rows, and so sees their noise, learns nothing of the noise of other rows.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutline.edge.inference.kv_cache import Key, Rows


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise whose standard deviation is a `share` of each row's root mean square; `seed` is secret."""

    share: float
    seed: bytes

    @classmethod
    def at(cls, cut: str, share: float, secret: bytes) -> Noise:
        """The noise at a cut. It differs by cut and share; else two messages' difference would reveal the rows."""
        return cls(share, hashlib.sha256(secret + f"{cut} {share!r}".encode()).digest())

    def on_image(self, rows: Rows, name: bytes, keep: float) -> Rows:
        """The rows (n, width) of an image with noise, by its `name` and the share `keep` of its tokens."""
        return noisy(rows, self.share, normal(self.seed + f"{name.hex()} {keep!r}".encode(), rows.shape))

    def on_tokens(self, rows: Rows, keys: Sequence[Key]) -> Rows:
        """The rows (n, width) of the last n tokens with noise. `keys` has all tokens, on which each row depends."""
        known, drawn = hashlib.sha256(self.seed), np.empty(rows.shape, np.float32)
        first = len(keys) - len(rows)
        for index, key in enumerate(keys):
            known.update(f"{key if isinstance(key, tuple) else int(key)!r};".encode())
            if index >= first:
                drawn[index - first] = normal(known.copy().digest(), rows.shape[1:])
        return noisy(rows, self.share, drawn)


def new_secret() -> bytes:
    """A new random secret of 32 bytes."""
    return secrets.token_bytes(32)


def noisy(rows: Rows, share: float, drawn: NDArray[np.float32]) -> Rows:
    """`rows` (n, width) plus standard normal values `drawn`, scaled by a `share` of each row's root mean square."""
    strength = share * np.sqrt(np.square(rows, dtype=np.float64).mean(axis=-1, keepdims=True))
    blurred: Rows = (rows + strength * drawn).astype(np.float32)
    return blurred


def normal(seed: bytes, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal values from a seed, which cannot be predicted from each other without it.

    It is the Box-Muller transform of SHAKE-256. The state of a generator for simulations could be recovered from some
    of its values.
    """
    count = math.prod(shape)
    pairs = (count + 1) // 2
    words = np.frombuffer(hashlib.shake_256(seed).digest(8 * pairs), "<u4").reshape(2, pairs)
    first, second = (words + 0.5) / 2**32
    length, angle = np.sqrt(-2 * np.log(first)), 2 * np.pi * second
    values = np.concatenate([length * np.cos(angle), length * np.sin(angle)])
    return values[:count].reshape(shape).astype(np.float32)
