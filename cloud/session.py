"""One conversation's state on the worker, and the decisions about it: what to run next, and what a pass confirmed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cutline.cloud.pace import Acceptance, rows_worth_verifying
from cutline.errors import CutlineError
from cutline.models.sampling import Sampling, agreeing
from cutline.protos.messages import Confirmed, Finished, Opened, Reason

Event = Opened | Confirmed | Finished | CutlineError


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a session was opened with, checked and decoded.

    `boundary` is what crossed the `cut`: at `image` the images' pixels (n, 3, tile, tile), else rows (n, width), all
    float32; it stands for the image tokens among `tokens`, in order. None if there are none.
    """

    tokens: tuple[int, ...]
    prompt_length: int
    max_tokens: int
    sampling: Sampling
    effort: float
    draft: tuple[int, ...] = ()
    cut: str = "image"
    boundary: NDArray[np.float32] | None = None


@dataclass(slots=True, eq=False)
class Session:
    """State of one session; only the engine's thread touches it. `tokens[:cached]` are in the KV cache."""

    name: str
    request: Request
    slot: int
    deliver: Callable[[Event], None]
    limit: int  # tokens, the prompt included, at which the answer ends
    tokens: list[int] = field(init=False)
    cached: int = 0
    draft: tuple[int, ...] = ()
    alone: int = 0  # tokens decoded without a draft, after the first
    acceptance: Acceptance = field(default_factory=Acceptance)
    passes: int = 0
    verified: int = 0
    seconds: float = 0.0
    confirmed_at: float = 0.0  # on the monotonic clock, by the last pass

    def __post_init__(self) -> None:
        self.tokens = list(self.request.tokens)
        self.offer(len(self.tokens), self.request.draft)

    def offer(self, position: int, draft: Sequence[int]) -> None:
        """Take a draft of tokens from `position` on, if it agrees with what is confirmed.

        It replaces what was drafted from there on; one that begins past all that is known here is of no use.
        """
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

    def rows_to_run(self, row_share: float) -> Rows | None:
        """What the next pass should run for this session, or None if it waits for a draft."""
        new = self.tokens[self.cached :]
        worth = rows_worth_verifying(len(self.draft), self.acceptance.rate, row_share)
        if self.draft and not self._may_decode_alone():
            worth = max(worth, 1)
        if worth == 0 and self.cached > 0 and not self._may_decode_alone():
            return None
        return Rows(self, self.cached, (*new, *self.draft[:worth]), drafted=worth)

    def _may_decode_alone(self) -> bool:
        """Whether effort allows one more token without a draft: that share of the answer at most."""
        answered = len(self.tokens) - self.request.prompt_length
        return self.alone + 1 <= self.request.effort * (answered + 1)

    def confirm(self, chosen: Sequence[int], drafted: int, stop_tokens: frozenset[int]) -> Reason | None:
        """Take the target's tokens after a pass; `chosen[i]` follows the i-th of `drafted` verified tokens.

        Delivers what is confirmed and returns why the answer ended, or None if it goes on. Rejected drafts need
        no clean-up: their rows lie beyond `cached` and the next pass overwrites them.
        """
        position = len(self.tokens)
        right = agreeing(self.draft[:drafted], chosen)
        new = list(chosen[: right + 1])
        stop = next((index + 1 for index, token in enumerate(new) if token in stop_tokens), None)
        new = new[: min(stop or len(new), self.limit - position)]
        matched = agreeing(self.draft, new)
        self.acceptance = self.acceptance.after(matched, min(matched + 1, len(new), len(self.draft)))
        self.draft = self.draft[matched:] if matched == len(new) else ()
        self.alone += int(drafted == 0 and self.cached > 0)
        self.verified += drafted
        self.cached = position + right
        self.tokens += new
        self.deliver(Confirmed(position, tuple(new), matched))
        if stop is not None and len(new) == stop:
            return Reason.STOP
        return Reason.LENGTH if len(self.tokens) >= self.limit else None

    def finished(self, reason: Reason) -> Finished:
        """The session's last message."""
        return Finished(reason, self.passes, self.verified, self.seconds)


@dataclass(frozen=True, slots=True)
class Rows:
    """One session's rows of a pass: `tokens` from position `start` on, the last `drafted` of them unconfirmed."""

    session: Session
    start: int
    tokens: tuple[int, ...]
    drafted: int

    @property
    def wanted(self) -> int:
        """How many of the last rows need logits: one that chooses, and one a drafted token."""
        return self.drafted + 1
