"""One answer's state on the worker, and the decisions about it: what to run next, and what a pass confirmed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cutline.cloud.engine.cost_model import MOST_DRAFTED_ROWS, Acceptance, rows_worth_verifying
from cutline.cloud.engine.image_cache import Picture
from cutline.core.request import Priority
from cutline.core.sampling import Sampling
from cutline.errors import CutlineError, WorkerFailed
from cutline.models.families import COUNTED, Grid, Positions
from cutline.models.families.positions import Sides
from cutline.models.law.penalties import NO_PENALTIES, Past, Penalties
from cutline.models.law.sampling import agreeing
from cutline.models.sight import Block, piece_end, seam_before
from cutline.protos.messages import Confirmed, Draft, Finished, Likelihood, Opened, Reason

if TYPE_CHECKING:  # its library is loaded where somebody asks for it
    from cutline.models.law.grammars import CompiledConstraint

FORCED_RATE = 0.98  # how often a token is right that the constraint forces: it could be written with others
BoundaryRows = NDArray[np.float32]  # (n, width)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRequest:
    """What a session was opened with, checked and decoded.

    `boundary` is what crossed the `cut`, all float32: at `image` the images' pixels (n, ...); up to the decoder
    rows (n, width), which stand for the image tokens among `tokens`, in order; None if there are none. At a
    `deep` cut, one inside the decoder, it is a row for every one of `tokens` and `draft`, and `sides` are the rows
    (m, width) of pictures that stand beside the prompt, if later layers take them. `grids` are what the images became,
    `times` those of videos' pieces, `positions` where the decoder sees the tokens. `pictures` are the images
    one by one where each has a key; then the boundary has only those that are not kept. Where one has none, it stands
    for all.

    What one `tenant` leaves on the worker no other finds. `deadline` is on the monotonic clock. With `likelihoods` it
    tells how likely each token was, and of the likeliest `alternatives`. `request_id` names it in logs.
    `penalties` are the model's own, `compiled` is the sampling's constraint.
    """

    tokens: tuple[int, ...]
    prompt_length: int
    max_tokens: int
    sampling: Sampling
    effort: float
    draft: tuple[int, ...] = ()
    cut: str = "image"
    deep: bool = False
    boundary: NDArray[np.float32] | None = None
    sides: NDArray[np.float32] | None = None
    grids: tuple[Grid, ...] = ()
    times: tuple[int, ...] = ()
    positions: Positions = COUNTED
    pictures: tuple[Picture, ...] = ()
    tenant: str = ""
    deadline: float | None = None
    likelihoods: bool = False
    alternatives: int = 0
    request_id: str = ""
    priority: Priority = Priority.NORMAL
    penalties: Penalties = NO_PENALTIES
    compiled: CompiledConstraint | None = None

    @property
    def pictured(self) -> bool:
        """Whether rows of images go into its first passes."""
        return self.boundary is not None or any(picture.kept is not None for picture in self.pictures)

    def unladen(self) -> SessionRequest:
        """Without what is large, and wanted no more once the prompt has been run."""
        pictures = tuple(replace(picture, kept=None) for picture in self.pictures)
        return replace(self, boundary=None, pictures=pictures)


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
