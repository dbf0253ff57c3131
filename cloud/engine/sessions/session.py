"""One answer's state on the worker, and the decisions about it: what to run next, and what a pass confirmed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from cutline.cloud.engine.cost_model import MOST_DRAFTED_ROWS, Acceptance, rows_worth_verifying
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.engine.sessions.session_rows import BoundaryRows, SessionRows
from cutline.errors import CutlineError, WorkerFailed
from cutline.models.law.penalties import Past
from cutline.models.law.sampling import agreeing
from cutline.protos.messages import Confirmed, Draft, Finished, Likelihood, Opened, Reason

FORCED_RATE = 0.98  # how often a token is right that the constraint forces: it could be written with others


@dataclass(frozen=True, slots=True)
class Forward:
    """What the next worker of the chain gets: `rows` (n, width) of `tokens`, the first at `position`.

    From a span that ends before the decoder, the images' rows. With the first of a session come the `sides` that
    layers from there on take.
    """

    position: int
    tokens: tuple[int, ...]
    rows: BoundaryRows
    sides: BoundaryRows | None = None


Event = Opened | Confirmed | Finished | CutlineError | Forward


@dataclass(slots=True, eq=False)
class Session:
    """State of one session; only the engine's thread touches it. `tokens[:cached]` are in the KV cache.

    What changes it returns the event that says so; whoever calls emits it.
    """

    name: str
    request: SessionRequest
    slot: int
    limit: int  # tokens, the prompt included, at which the answer ends
    asked_at: float = 0.0  # on the monotonic clock
    tokens: list[int] = field(init=False)
    cached: int = 0
    draft: tuple[int, ...] = ()
    waiting: list[tuple[Draft, Callable[[], object]]] = field(default_factory=list)  # until nothing is in flight
    in_flight: int | None = None  # drafted tokens that the next worker verifies now; None where nothing is under way
    alone: int = 0  # tokens decoded without a draft, after the first
    acceptance: Acceptance = field(default_factory=Acceptance)
    begun: bool = False  # whether anything of it was run
    passes: int = 0
    verified: int = 0
    seconds: float = 0.0
    confirmed_at: float = 0.0  # on the monotonic clock, by the last pass; until the first one, when it was opened
    pieces: list[BoundaryRows] = field(default_factory=list)  # of a prompt, for the next worker
    forced: tuple[int, ...] = ()  # tokens that the constraint leaves no choice but to follow
    past: Past | None = None  # of the tokens that logits came for, where the model has penalties
    reason: Reason | None = None  # why the answer is complete; None while it goes on

    def __post_init__(self) -> None:
        self.tokens = list(self.request.tokens)
        self.offer(len(self.tokens), self.request.draft)
        self.propose()

    def offer(self, position: int, draft: Sequence[int], rows: BoundaryRows | None = None) -> None:
        """Take a draft of tokens from `position` on, if it agrees with what is confirmed; not while one is in flight.

        It replaces what was drafted from there on; one that begins past all that is known here is of no use. It has
        `rows` at a deep cut alone: see `DeepSession`.
        """
        del rows
        known = len(self.tokens) - position
        if known < 0:
            ahead = self.draft[:-known]
            draft = (*ahead, *draft) if len(ahead) == -known else ()
        elif list(draft[:known]) == self.tokens[position:]:
            draft = draft[known:]
        else:
            draft = ()
        if draft:
            self.draft = tuple(draft[: self.limit - len(self.tokens)])

    def propose(self) -> None:
        """Find what the constraint forces to follow, which is verified as a draft where there is no other.

        It is how the tokenizer writes the one text that may follow: the target may write it with other tokens.
        """
        compiled, past = self.request.compiled, self.past
        if compiled is None:
            return
        if past is None or past.matcher is None or len(past.tokens) > len(self.tokens):
            matcher = compiled.matcher(self.tokens[self.request.prompt_length :])
        else:
            past.extend(self.tokens[len(past.tokens) :])
            matcher = past.matcher
        self.forced = matcher.forced()[: self.limit - len(self.tokens)]

    def take_waiting(self) -> None:
        """Take the drafts that wait, and say so of each, unless one is in flight."""
        while self.waiting and self.in_flight is None:
            draft, taken = self.waiting.pop(0)
            self.offer(draft.position, draft.tokens, draft.rows)
            taken()

    def rows_to_run(self, row_share: float, most: int = MOST_DRAFTED_ROWS) -> SessionRows | None:
        """What the next pass should run for this session, or None if it waits for a draft; of that `most` tokens."""
        new = self.tokens[self.cached :]
        forced = not self.draft and self._may_decode_alone()
        draft = self.forced if forced else self.draft
        rate = FORCED_RATE if forced else self.acceptance.rate
        worth = rows_worth_verifying(min(len(draft), most), rate, row_share)
        if self.draft and not self._may_decode_alone():
            worth = max(worth, 1)
        if worth == 0 and not self.opening and not self._may_decode_alone():
            return None
        return SessionRows(self, self.cached, (*new, *draft[:worth]), drafted=worth, forced=forced)

    def late(self, now: float) -> bool:
        """Whether it is out of time."""
        return self.request.deadline is not None and self.request.deadline <= now

    @property
    def opening(self) -> bool:
        """Whether rows of the opening's tokens are still to be run."""
        return self.cached < len(self.request.tokens)

    def _may_decode_alone(self) -> bool:
        """Whether effort allows one more token without a draft: that share of the answer at most."""
        answered = len(self.tokens) - self.request.prompt_length
        return self.alone + 1 <= self.request.effort * (answered + 1)

    def ran(self, rows: SessionRows, seconds: float, now: float) -> None:
        """Count a pass of `rows` that took `seconds` of the session's own."""
        self.passes += 1
        self.verified += 0 if rows.forced else rows.drafted
        self.alone += int((rows.drafted == 0 or rows.forced) and not self.opening)
        self.seconds += seconds
        self.confirmed_at = now
        if self.request.pictured:
            self.request = self.request.unladen()

    def keep(self, rows: SessionRows, made: BoundaryRows | None) -> None:
        """Take a pass of a first part of the rows; what it `made` for the next worker waits for the rest."""
        self.cached += len(rows.tokens)
        if made is not None:
            self.pieces.append(made)

    def confirm(
        self,
        chosen: Sequence[int],
        drafted: int,
        stop_tokens: frozenset[int],
        likelihoods: Sequence[Likelihood] = (),
    ) -> Confirmed:
        """Take the target's tokens after a pass; `chosen[i]` follows the i-th of `drafted` verified tokens.

        Those are of the agent's draft, or what the constraint forces where there is none.

        `likelihoods` are those of `chosen`, of as many as are confirmed, if they were asked for. `reason` says whether
        the answer is complete now. Rejected drafts need no clean-up: their rows lie beyond `cached` and the next pass
        overwrites them.
        """
        position = len(self.tokens)
        right = agreeing((self.draft or self.forced)[:drafted], chosen)
        new = list(chosen[: right + 1])
        stops = self.request.sampling.stops(stop_tokens)
        stop = next((index + 1 for index, token in enumerate(new) if token in stops), None)
        new = new[: min(stop or len(new), self.limit - position)]
        matched = agreeing(self.draft, new)
        self.acceptance = self.acceptance.after(matched, min(matched + 1, len(new), len(self.draft)))
        self.draft = self.draft[matched:] if matched == len(new) else ()
        self.cached = position + right
        self.tokens += new
        if stop is not None and len(new) == stop:
            self.reason = Reason.STOP
        elif len(self.tokens) >= self.limit:
            self.reason = Reason.LENGTH
        return Confirmed(position, tuple(new), matched, tuple(likelihoods[: len(new)]))

    def forward(self, rows: SessionRows, made: BoundaryRows, sides: BoundaryRows | None = None) -> Forward:
        """What a pass of `rows` made, for the next worker, which confirms: from now on it is in flight."""
        self.in_flight = rows.drafted
        start = rows.start - sum(map(len, self.pieces))
        tokens = (*self.tokens[start : rows.start], *rows.tokens)
        pieces, self.pieces = [*self.pieces, made], []
        return Forward(start, tokens, np.concatenate(pieces), sides)

    def confirm_in_flight(self, confirmed: Confirmed, stop_tokens: frozenset[int]) -> Confirmed:
        """Take what the next worker confirmed of the tokens under way, in one message or in several.

        Raises WorkerFailed on what cannot follow them. Once the answer is complete it stays in flight, and nothing
        is run: the next worker says so itself.
        """
        chosen, drafted = confirmed.tokens, self.in_flight
        if drafted is None or confirmed.position != len(self.tokens) or not chosen:
            raise WorkerFailed("the next worker confirmed what it was not sent")
        right = agreeing(self.draft[:drafted], chosen)
        if right < len(chosen) - 1:
            raise WorkerFailed("the next worker confirmed tokens after one that it had rejected")
        own = self.confirm(chosen, drafted, stop_tokens, confirmed.likelihoods)
        self.in_flight = None if right < len(chosen) and self.reason is None else drafted - right
        return own

    def finished(self) -> Finished:
        """The last event of a session whose answer is complete."""
        assert self.reason is not None
        return Finished(self.reason, self.passes, self.verified, self.seconds)
