"""What an agent answers, as `--json` and the HTTP API print it."""

from __future__ import annotations

import enum

import msgspec

from cutline.core.agreement.measures import Wording
from cutline.core.request import Mode
from cutline.core.wire import Wire
from cutline.edge.video.views import VideoShown
from cutline.errors import WorkerUnavailable
from cutline.protos.messages import Likelihood


class Provenance(enum.StrEnum):
    """Provenance of a token."""

    EDGE = "edge"  # the drafter's, not verified
    DRAFT = "draft"  # drafted here, confirmed by the target
    CLOUD = "cloud"  # the target's, not drafted


class DraftedBy(enum.StrEnum):
    """Who drafted tokens for a worker to verify."""

    DRAFTER = "drafter"
    RECENT = "recent"  # answers of late said so


class Likely(msgspec.Struct, frozen=True):
    """A token that might stand in a place, and the natural logarithm of its probability, at temperature 1."""

    id: int
    text: str
    logprob: float


class Token(msgspec.Struct, frozen=True, omit_defaults=True):
    """One token of an answer; its text is empty for the one that ends it.

    Where it was asked for: the `logprob` that the model of its source gave it, and the likeliest `alternatives`.
    """

    id: int
    text: str
    source: Provenance
    logprob: float | None = None
    alternatives: tuple[Likely, ...] = ()

    @property
    def likelihood(self) -> Likelihood | None:
        """What is known of how likely it was."""
        if self.logprob is None:
            return None
        return Likelihood(self.logprob, tuple((one.id, one.logprob) for one in self.alternatives))


class Lost(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that was lost in the middle of an answer, `position` tokens of which were settled.

    `silent_ms` is how long nothing had been heard of it when the agent gave it up; `next` is who went on: the address
    of a worker, perhaps of the same, or None for the drafter alone.
    """

    worker: str
    why: str
    position: int
    silent_ms: float
    next: str | None


class Tail(enum.StrEnum):
    """What became of the part of an answer that the agent finished alone."""

    UNVERIFIED = "unverified"
    CONFIRMED = "confirmed"  # a worker found later that the target says the same
    CORRECTED = "corrected"  # or not, and it was replaced


class Ending(enum.StrEnum):
    """What ended an answer."""

    STOP = "stop"  # the model, or a text that it was to stop at
    LENGTH = "length"  # as many tokens as were asked for, or as the context holds
    DEADLINE = "deadline"  # the time for an answer without a number of tokens
    REPETITION = "repetition"  # the drafter alone, which went round in circles


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """What the device spent on an answer; `estimated` from a profile, or measured by its own sensors."""

    joules: float
    estimated: bool


class Recalled(msgspec.Struct, frozen=True, kw_only=True):
    """An answer taken from memory: how long ago it was given, and how far its image was from this one (0 to 1)."""

    age_ms: float
    distance: float


class Decision(enum.StrEnum):
    """What the gate did about an answer."""

    KEPT = "kept"  # the drafter's answer stands, by the gate's promise
    PASSED = "passed on"  # it was left to a worker, or to the drafter alone where there was none
    NOT_ASKED = "not asked"  # the mode, or the plan, left it nothing to decide
    RECALLED = "recalled"  # the answer was given before, to nearly the same picture: outside any promise


class Audited(msgspec.Struct, frozen=True, kw_only=True):
    """What audits have shown of a group: `disagreed` of the `audited` answers differ from the target's.

    Of those that the gate keeps now, from the confidence `threshold` on, a share `at_most` differs, as sure as audits
    are. A group that is `shut` broke the gate's promise at every threshold: nothing of it is kept. So many more answers
    are `unsent`: they were to be audited, and their bounds let nobody be asked, so nothing is known of them.
    """

    audited: int
    disagreed: int
    at_most: float
    shut: bool
    threshold: float | None = None
    unsent: int = 0


class Gated(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate says of an answer: the `group` of the request, and what was decided.

    `calibrated`: answers of this group may be kept at all. `promised` is the share of kept answers of this group that
    may differ, as sure as the calibration asked, by the measure `agree` from the answers that it was held `against`:
    the target's, those of an upstream's model, or known ones. None where nothing is promised of this answer, which then
    is the target's own where it is `exact`, and somebody's guess where it is not. `audit` is what audits have shown of
    the group, None where there are none.
    """

    group: str
    calibrated: bool
    decision: Decision
    promised: float | None = None
    agree: str | None = None
    against: str | None = None
    audit: Audited | None = None


class Believed(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan took for the case: link, the worker's queue, how often a drafted token is right, an answer's length.

    `throttled`: whether heat or power held the device back. `first_ms` and `token_ms` are what an upstream takes until
    its first token and for each one more, None with workers; `guessed` says that it had yet to answer.
    """

    rtt_ms: float
    uplink_mbps: float
    queue_ms: float
    acceptance: float
    answer_tokens: int
    throttled: bool
    first_ms: float | None = None
    token_ms: float | None = None
    guessed: bool = False


class RunnerUp(msgspec.Struct, frozen=True, kw_only=True):
    """The plan that would have been next best, of another mode or cut."""

    mode: Mode
    cut: str | None
    wire: Wire | None
    predicted_ms: float


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer was planned, and how right the plan was.

    `mode`, `cut`, `wire` and `effort` were carried out; `cut` is None where the device alone was to answer, `effort`
    where nothing is drafted for a worker. `predicted_ms` is `uncorrected_ms` times `correction`, which earlier answers
    of this mode taught; both are means over what the gate may decide. `hindsight_ms` is the same prediction had the
    answer's length, the gate's word and the link been known that this answer showed. `cold` says that graphs were
    loaded or the worker connected to first, which none counts.
    """

    mode: Mode
    cut: str | None
    wire: Wire | None
    effort: float | None
    predicted_ms: float
    uncorrected_ms: float
    correction: float
    hindsight_ms: float
    measured_ms: float
    cold: bool
    why: str
    believed: Believed
    runner_up: RunnerUp | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer and what it cost.

    `exact` is true when every token is the target's own: it was asked, and no narrower `wire`, quantized layers or
    merged image tokens changed what it computed. `confidence` is the drafter's in its whole answer, where it gave one.
    `bytes_up` and `bytes_down` count the messages of the session; `rounds` how often the agent sent something that
    depended on a reply, its opening included; `drafted` tokens were sent as drafts, `accepted` of the answer's tokens
    are among them, and `recent` of those were what answers of late had said; it took so many `passes` of the target, as
    far as workers said. `plan` is None where nothing was planned: in other modes than `auto`, and without profiles.
    `gate` says what is promised of an answer that is not exact; None
    of an agent that does not tell.

    `lost` are the workers that were lost on the way; where none was left, the drafter went on from the token
    `alone_from`, and `tail` says what became of that. `reused_images` did not have to be sent again, `reused_tokens` of
    the prompt not be run again. `reduced_images` were decoded at half their width and height, as JPEGs over 16
    megapixels are: what is exact is so for that picture. `parts_ms` is where the time went, part by part, in the order
    of their beginning. An answer that was corrected later was there before: `latency_ms` and `parts_ms` end then.
    """

    text: str
    tokens: list[Token]
    mode: Mode
    latency_ms: float
    ttft_ms: float
    bytes_up: int
    bytes_down: int
    rounds: int
    drafted: int
    accepted: int
    recent: int = 0
    passes: int = 0
    exact: bool | None  # None where it cannot be known: another server than a worker of the target answered
    worker: str | None
    cut: str | None  # where the target was cut, if the worker was asked
    wire: Wire | None  # the format in which the boundary travelled, if one did
    confidence: float | None
    complete: bool  # the model ended it; false when it was cut short
    ending: Ending | None = None  # None of an agent that does not tell
    plan: Forecast | None = None
    gate: Gated | None = None
    prompt_tokens: int = 0
    lost: tuple[Lost, ...] = ()
    alone_from: int | None = None
    tail: Tail | None = None
    reused_images: int = 0
    reused_tokens: int = 0
    reduced_images: int = 0
    video: VideoShown | None = None  # None where there was none

    energy: Energy | None = None
    recalled: Recalled | None = None
    parts_ms: dict[str, float] = {}
    seed: int | None = None  # of its noise, None where none was drawn; the same seed gives the same answer
    request_id: str = ""  # by which the logs of all who worked on it name it

    @property
    def wording(self) -> Wording:
        """It, as it is compared with others; what an upstream says has no tokens of the target's."""
        return Wording(self.text, None if self.exact is None else tuple(token.id for token in self.tokens))

    def of_the_asked(self) -> Answer:
        """The answer, if whoever was asked gave all of it. Raises WorkerUnavailable if the device went on alone."""
        if self.alone_from is not None:
            raise WorkerUnavailable(f"the worker was lost, so its answer is not known: {self.lost[-1].why}")
        return self
