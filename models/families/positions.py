"""Where the decoder sees the tokens of a prompt, and which of them see each other both ways."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutline.models.sight import Block


@dataclass(frozen=True, slots=True, eq=False)
class Sides:
    """What a prompt's tokens see of the rows of pictures beside it, once those stand in this `order` (m,).

    `seen` (n, 3) has the first of them, the one behind the last, and whether it counts.
    """

    seen: NDArray[np.int64]
    order: NDArray[np.int64]

    def at(self, first: int, last: int) -> NDArray[np.int64]:
        """That of the tokens `[first, last)`; those after the prompt see what its last one does."""
        return self.seen[np.minimum(np.arange(first, last), len(self.seen) - 1)]


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """The rotary positions of a sequence's tokens: those of the `prompt` (axes, n); later ones follow from them.

    Tokens of each of its `blocks`, which are in order and apart, may see each other both ways. `sides` says what they
    see of pictures that stand beside the prompt, if any do.
    """

    prompt: NDArray[np.int64]
    blocks: tuple[Block, ...] = ()
    sides: Sides | None = None

    def at(self, first: int, last: int) -> NDArray[np.int64]:
        """Positions (axes, last - first) of the tokens `[first, last)`; after the prompt all axes count up together."""
        length = self.prompt.shape[1]
        ahead = int(self.prompt.max(initial=-1)) + 1 - length
        after = np.arange(max(first, length), max(last, length)) + ahead
        return np.hstack([self.prompt[:, first:last], np.tile(after, (len(self.prompt), 1))])

    def agreeing(self, other: Positions, length: int) -> int:
        """How many of the first `length` tokens stand at the same positions in both."""
        differing = (self.at(0, length) != other.at(0, length)).any(axis=0)
        return int(differing.argmax()) if differing.any() else length


COUNTED = Positions(np.empty((1, 0), np.int64))  # counts up from 0


def frequencies(theta: float, count: int) -> NDArray[np.float32]:
    """Frequencies of a rotary embedding of so many pairs (count,), rounded in the same order as in transformers."""
    exponents = np.arange(count, dtype=np.float32) / np.float32(count)
    return np.asarray(1 / np.power(np.float32(theta), exponents), np.float32)
