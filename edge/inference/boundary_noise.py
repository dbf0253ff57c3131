"""Gaussian noise on what crosses a cut: it blurs what a boundary tells, and costs right answers.

docs/explanation/privacy.md has the measurements. Who sees the same row with many draws of noise averages them away. So
it is drawn once for good: a row that is sent again, in a retry, to another worker or in a later question, has the noise
that it had. For that the noise of a row is worked out from an agent's secret and from all that the row depends on. The
secret never leaves the agent's memory, and who can guess some rows, and so sees their noise, learns nothing of that of
others.
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
    """Noise of a standard deviation that is a `share` of each row's root mean square; `seed` is secret."""

    share: float
    seed: bytes

    @classmethod
    def at(cls, cut: str, share: float, secret: bytes) -> Noise:
        """The noise at a cut: that of another cut or share is another's, or their difference would tell the rows."""
        return cls(share, hashlib.sha256(secret + f"{cut} {share!r}".encode()).digest())

    def on_image(self, rows: Rows, name: bytes, keep: float) -> Rows:
        """The rows (n, width) of the image of this name, of whose tokens a share was kept, with noise."""
        return noisy(rows, self.share, normal(self.seed + f"{name.hex()} {keep!r}".encode(), rows.shape))

    def on_tokens(self, rows: Rows, keys: Sequence[Key]) -> Rows:
        """The rows (n, width) of the last of the tokens with these keys, with noise: a row knows of all before it."""
        known, drawn = hashlib.sha256(self.seed), np.empty(rows.shape, np.float32)
        first = len(keys) - len(rows)
        for place, key in enumerate(keys):
            known.update(f"{key if isinstance(key, tuple) else int(key)!r};".encode())
            if place >= first:
                drawn[place - first] = normal(known.copy().digest(), rows.shape[1:])
        return noisy(rows, self.share, drawn)


def new_secret() -> bytes:
    """What nobody can guess."""
    return secrets.token_bytes(32)


def noisy(rows: Rows, share: float, drawn: NDArray[np.float32]) -> Rows:
    """`rows` (n, width) and standard normal values `drawn` for them, times a `share` of each row's root mean square."""
    strength = share * np.sqrt(np.square(rows, dtype=np.float64).mean(axis=-1, keepdims=True))
    blurred: Rows = (rows + strength * drawn).astype(np.float32)
    return blurred


def normal(seed: bytes, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal values, always the same from a seed; without it they tell nothing of each other.

    Generators for simulations would: their state can be worked out from some values. This is Box and Muller's transform
    of SHAKE-256.
    """
    count = math.prod(shape)
    pairs = (count + 1) // 2
    words = np.frombuffer(hashlib.shake_256(seed).digest(8 * pairs), "<u4").reshape(2, pairs)
    first, second = (words + 0.5) / 2**32
    length, angle = np.sqrt(-2 * np.log(first)), 2 * np.pi * second
    values = np.concatenate([length * np.cos(angle), length * np.sin(angle)])
    return values[:count].reshape(shape).astype(np.float32)
