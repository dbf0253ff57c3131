"""What the target runs in a pass: rows of many sessions, and nothing else of those sessions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cutline.models.families.positions import Sides
from cutline.models.sight import Block


class Rows(Protocol):
    """Consecutive rows in one slot of the KV cache. A pass takes a batch of them, each of another slot."""

    @property
    def slot(self) -> int:
        """Whose keys and values they add to and attend to."""

    @property
    def start(self) -> int:
        """The first one's position in the slot."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """Their token ids."""

    @property
    def positions(self) -> NDArray[np.int64]:
        """Where the decoder sees them: (axes, n)."""

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Those of the prompt in the slot whose rows may see each other both ways; they end in whole ones."""

    @property
    def cut(self) -> str:
        """Where on the layer line they enter."""

    @property
    def boundary(self) -> NDArray[np.float32] | None:
        """At a cut inside the decoder what enters there: (n, width)."""

    @property
    def wanted(self) -> int:
        """How many of the last ones need logits."""

    @property
    def sides(self) -> Sides | None:
        """What the prompt in the slot sees of pictures beside it."""

    @property
    def drafted(self) -> int:
        """How many of the last ones may turn out to be wrong; never all."""

    def before(self, token: int) -> int:
        """How many of the prompt's tokens before `start` are this one."""


@dataclass(frozen=True, slots=True)
class NobodysRows:
    """Rows of no session, at positions that are counted on every one of so many `axes`: to measure passes with."""

    slot: int
    start: int
    tokens: tuple[int, ...]
    wanted: int
    axes: int
    drafted: int = 0
    blocks: tuple[Block, ...] = ()
    cut: str = "image"
    boundary: NDArray[np.float32] | None = None
    sides: Sides | None = None

    @property
    def positions(self) -> NDArray[np.int64]:
        """Where the decoder sees them: (axes, n)."""
        return np.tile(np.arange(self.start, self.start + len(self.tokens)), (self.axes, 1))

    def before(self, token: int) -> int:
        """None: there is no prompt."""
        del token
        return 0


@dataclass(frozen=True, slots=True)
class Stretch:
    """Where one session's rows stand: `first` to `last` in the pass, from position `start` on in slot `slot`.

    The last `drafted` of them may turn out to be wrong.
    """

    first: int
    last: int
    slot: int
    start: int
    blocks: tuple[Block, ...] = ()  # of its session's prompt
    drafted: int = 0
    sides: NDArray[np.int64] | None = None  # (count, 3): see `Sides.seen`

    @property
    def count(self) -> int:
        """How many rows."""
        return self.last - self.first

    @property
    def end(self) -> int:
        """How many positions are written once they are."""
        return self.start + self.count
