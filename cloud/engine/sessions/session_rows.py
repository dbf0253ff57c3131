"""The rows of one session that go into a pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cutline.models.families.positions import Sides
from cutline.models.sight import Block, piece_end, seam_before

if TYPE_CHECKING:
    from cutline.cloud.engine.sessions.session import Session

BoundaryRows = NDArray[np.float32]  # (n, width)


@dataclass(frozen=True, slots=True)
class SessionRows:
    """One session's rows of a pass: `tokens` from position `start` on, the last `drafted` of them unconfirmed.

    At a deep cut they come with their `boundary` (n, width). Rows that are `partial` choose nothing: others follow
    before the session's next token. Where they are `forced` no agent drafted them.
    """

    session: Session
    start: int
    tokens: tuple[int, ...]
    drafted: int
    boundary: BoundaryRows | None = None
    partial: bool = False
    forced: bool = False

    def first(self, count: int) -> SessionRows:
        """The first `count` of them, or all that there are; drafted ones go with the last of the others.

        A block that is longer goes as a whole.
        """
        if len(self.tokens) <= count or len(self.tokens) == self.drafted + 1:
            return self
        count = piece_end(self.blocks, self.start, count) - self.start
        before = len(self.tokens) - self.drafted - 1  # the one after them chooses, and goes with what is drafted
        if count > before:
            count = seam_before(self.blocks, self.start + before) - self.start
        if count <= 0:
            return self
        boundary = None if self.boundary is None else self.boundary[:count]
        return replace(self, tokens=self.tokens[:count], drafted=0, boundary=boundary, partial=True)

    def at_most(self, count: int) -> SessionRows:
        """As the `first`, with fewer drafted ones where those make them many."""
        rows = self.first(count)
        more = min(len(rows.tokens) - count, rows.drafted)
        if more <= 0:
            return rows
        kept = len(rows.tokens) - more
        boundary = None if rows.boundary is None else rows.boundary[:kept]
        return replace(rows, tokens=rows.tokens[:kept], drafted=rows.drafted - more, boundary=boundary)

    @property
    def slot(self) -> int:
        """The session's place in the KV cache."""
        return self.session.slot

    @property
    def cut(self) -> str:
        """Where the session enters the layer line."""
        return self.session.request.cut

    @property
    def positions(self) -> NDArray[np.int64]:
        """Where the decoder sees the rows: (axes, n)."""
        return self.session.request.positions.at(self.start, self.start + len(self.tokens))

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Those of the prompt whose rows may see each other both ways."""
        return self.session.request.positions.blocks

    @property
    def sides(self) -> Sides | None:
        """What the prompt sees of pictures beside it."""
        return self.session.request.positions.sides

    @property
    def wanted(self) -> int:
        """How many of the last rows need logits: one that chooses, and one a drafted token."""
        return 0 if self.partial else self.drafted + 1

    def before(self, token: int) -> int:
        """How many of the prompt's tokens before the rows are this one."""
        return self.session.request.tokens[: self.start].count(token)
