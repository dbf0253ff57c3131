"""A session whose device runs the first layers of the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cutline.cloud.engine.cost_model import MOST_DRAFTED_ROWS
from cutline.cloud.engine.sessions.session import Session
from cutline.cloud.engine.sessions.session_rows import BoundaryRows, SessionRows
from cutline.models.law.sampling import agreeing
from cutline.protos.messages import Confirmed, Likelihood


@dataclass(slots=True, eq=False)
class DeepSession(Session):
    """A session cut inside the decoder: it goes on from a token when it has its boundary row.

    `rows` are those that came for the positions from `cached` on, and `draft` are the tokens among them that are not
    confirmed. A pass takes them all, but of a long draft the beginning. `held` is how far the agent's rows are known to
    be those of our tokens: one that drafted a wrong token computed all after it in vain, so what begins past that is
    dropped until the agent, which hears of it, has drafted again from there.
    """

    rows: BoundaryRows = field(init=False)
    held: int = field(init=False)

    def __post_init__(self) -> None:
        request = self.request
        assert request.boundary is not None
        self.tokens = list(request.tokens)
        self.draft = request.draft[: self.limit - len(self.tokens)]
        self.held = len(self.tokens) + len(self.draft)
        self.rows = request.boundary[: self.held]
        self.request = replace(request, boundary=None)

    def offer(self, position: int, draft: Sequence[int], rows: BoundaryRows | None = None) -> None:
        """Take a draft with its `rows`, if it begins within what is held and agrees with what is confirmed.

        Its rows replace those from `position` on; a draft that is here already changes nothing.
        """
        assert rows is not None
        if position > self.held:
            return
        known, believed = self.tokens[position:], [*self.tokens, *self.draft]
        right = agreeing(draft, known)
        if right < min(len(draft), len(known)):
            self.held = position + right
            return
        draft, rows = draft[: self.limit - position], rows[: self.limit - position]
        end = self.cached + len(self.rows)
        if believed[position:end][: len(draft)] != list(draft):
            before, past = max(0, position - self.cached), max(0, self.cached - position)
            self.rows = np.concatenate([self.rows[:before], rows[past:]])
            self.draft = tuple([*believed[:position], *draft][len(self.tokens) :])
            self.held = position
        self.held = max(self.held, position + len(draft))

    def rows_to_run(self, row_share: float, most: int = MOST_DRAFTED_ROWS) -> SessionRows | None:
        """As much as a pass takes of what is held, if the last confirmed token's row is.

        A rejection costs no more than a round trip.
        """
        del row_share
        if self.cached + len(self.rows) < len(self.tokens):
            return None
        draft = self.draft[:most]
        tokens = (*self.tokens[self.cached :], *draft)
        return SessionRows(self, self.cached, tokens, drafted=len(draft), boundary=self.rows[: len(tokens)])

    def propose(self) -> None:
        """Nothing: what is forced has no rows here."""

    def keep(self, rows: SessionRows, made: BoundaryRows | None) -> None:
        """As of any session; the rows of that part are used up."""
        self.rows = self.rows[len(rows.tokens) :]
        Session.keep(self, rows, made)  # super() does not find a class that has slots

    def confirm(
        self,
        chosen: Sequence[int],
        drafted: int,
        stop_tokens: frozenset[int],
        likelihoods: Sequence[Likelihood] = (),
    ) -> Confirmed:
        """As of any session; the rows are used up, but for those of a draft that goes on as the target does."""
        before, right = self.cached, agreeing(self.draft, chosen)
        if right < min(len(self.draft), len(chosen)):
            self.held = min(self.held, len(self.tokens) + right)
            self.rows = self.rows[:0]
        confirmed = Session.confirm(self, chosen, drafted, stop_tokens, likelihoods)
        self.rows = self.rows[self.cached - before :]
        return confirmed
