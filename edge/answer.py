"""What is asked of an agent and what it answers, as `--json` and the HTTP API print it."""

from __future__ import annotations

import enum
import math

import msgspec

from cutline.errors import InputError, PromptError
from cutline.models.sampling import Sampling
from cutline.models.wire import Wire

MAX_TIMEOUT = 600.0  # seconds


class Mode(enum.StrEnum):
    """How an answer is made."""

    EDGE = "edge"  # the drafter alone
    CLOUD = "cloud"  # the worker alone, which gets the image
    SPLIT = "split"  # the target alone, its layers before the cut run here
    DRAFT = "draft"  # drafted here, verified by the worker, which decodes on meanwhile
    AUTO = "auto"  # planned; without profiles, the drafter's answer if the gate keeps it, else verified by the worker


class Source(enum.StrEnum):
    """Provenance of a token."""

    EDGE = "edge"  # the drafter's, not verified
    DRAFT = "draft"  # drafted here, confirmed by the target
    CLOUD = "cloud"  # the target's, not drafted


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One question about one image (an image file's bytes), and how to answer it.

    The last four bound what mode `auto` may plan; no other mode plans, nor does `auto` where a cut is given.
    """

    image: bytes
    text: str
    mode: Mode = Mode.AUTO
    sampling: Sampling = Sampling()
    max_tokens: int = 64
    effort: float = 1.0
    cut: str = "image"  # the first layer of the target that the worker runs
    wire: Wire = Wire.FLOAT32  # of the boundary, at any later cut than `image`
    keep_image_tokens: float = 1.0  # the share of them that enters the decoder, at a cut from `decoder.0` on
    timeout: float = 60.0  # seconds
    exact: bool = False  # every token is the target's own
    image_must_stay: bool = False  # neither the picture nor its bare patches leave the device
    max_latency_ms: float | None = None  # also of an answer that the gate passes on
    min_agreement: float | None = None  # share of answers that are the target's own, as measured; None is 0.9

    @property
    def bounded(self) -> bool:
        """Whether it bounds what may be planned."""
        return self.exact or self.image_must_stay or self.max_latency_ms is not None or self.min_agreement is not None

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise PromptError("the question is empty; ask something about the image")
        if any("\ud800" <= character <= "\udfff" for character in self.text):  # no message could carry them
            raise PromptError("the question has code points that are not characters; take them out")
        if not 0.0 <= self.effort <= 1.0:
            raise InputError(f"effort is {self.effort}; give 0 (the worker only verifies) to 1 (full race)")
        if self.max_tokens < 1:
            raise InputError(f"max-tokens is {self.max_tokens}; give 1 or more")
        match self.mode:
            case Mode.EDGE | Mode.CLOUD if self.cut != "image":
                raise InputError(f"mode {self.mode} cuts nothing; for the cut {self.cut[:40]} use split, draft or auto")
            case Mode.SPLIT if self.cut == "image":
                raise InputError("mode split needs a cut after image, such as vision.0; mode cloud uploads the image")
        if not 0.0 < self.keep_image_tokens <= 1.0:
            raise InputError(f"keep-image-tokens is {self.keep_image_tokens}; give a share above 0, and 1 at most")
        if self.keep_image_tokens < 1.0 and not self.cut.startswith(("decoder.", "head")):
            raise InputError("keep-image-tokens needs a cut at decoder.0 or later: the device merges them")
        if self.bounded and (self.mode is not Mode.AUTO or self.cut != "image"):
            given = f"mode {self.mode}" if self.mode is not Mode.AUTO else f"the cut {self.cut[:40]}"
            raise InputError(
                f"exact, image-must-stay, max-latency-ms and min-agreement bound what mode auto plans; {given} leaves "
                "nothing to plan"
            )
        if self.max_latency_ms is not None and not 0.0 < self.max_latency_ms < math.inf:
            raise InputError(f"max-latency-ms is {self.max_latency_ms}; give a number above 0")
        if self.min_agreement is not None and not 0.0 <= self.min_agreement <= 1.0:
            raise InputError(f"min-agreement is {self.min_agreement}; give a share from 0 to 1")
        if not 0.0 < self.timeout <= MAX_TIMEOUT:
            raise InputError(f"timeout is {self.timeout}; give more than 0 and at most {MAX_TIMEOUT:.0f} seconds")


class Token(msgspec.Struct, frozen=True):
    """One token of an answer; its text is empty for the one that ends it."""

    id: int
    text: str
    source: Source


class Believed(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan took for the case: link, the worker's queue, how often a drafted token is right, an answer's length.

    `throttled`: whether heat or power held the device back.
    """

    rtt_ms: float
    uplink_mbps: float
    queue_ms: float
    acceptance: float
    answer_tokens: int
    throttled: bool


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer was planned, and how right the plan was.

    `mode`, `cut`, `wire` and `effort` were carried out; `effort` is None where nothing is drafted. `predicted_ms` is
    `uncorrected_ms` times `correction`, which earlier answers of this mode taught; both are means over what the gate
    may decide. `hindsight_ms` is the same prediction had the answer's length, the gate's word and the link been known
    that this answer showed. `cold` says that graphs were loaded or the worker connected to first, which none counts.
    """

    mode: Mode
    cut: str
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


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer and what it cost.

    `exact` is true when every token is the target's own: it was asked, and no narrower `wire`, quantized layers or
    merged image tokens changed what it computed. `confidence` is the drafter's in its whole answer, where it gave one.
    `bytes_up` and `bytes_down` count the messages of the session; `rounds` how often the agent sent something that
    depended on a reply, its opening included; `drafted` tokens were sent as drafts, `accepted` of the answer's tokens
    are among them. `plan` is None where nothing was planned: in other modes than `auto`, and without profiles.
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
    exact: bool
    worker: str | None
    cut: str | None  # where the target was cut, if the worker was asked
    wire: Wire | None  # the format in which the boundary travelled, if one did
    confidence: float | None
    complete: bool  # the model ended it; false when max_tokens or the context did
    plan: Forecast | None = None
