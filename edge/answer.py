"""What is asked of an agent and what it answers, as `--json` and the HTTP API print it."""

from __future__ import annotations

import enum

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
    AUTO = "auto"  # the drafter's answer if the gate keeps it; else verified by the worker


class Source(enum.StrEnum):
    """Provenance of a token."""

    EDGE = "edge"  # the drafter's, not verified
    DRAFT = "draft"  # drafted here, confirmed by the target
    CLOUD = "cloud"  # the target's, not drafted


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One question about one image (an image file's bytes), and how to answer it."""

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
        if not 0.0 < self.timeout <= MAX_TIMEOUT:
            raise InputError(f"timeout is {self.timeout}; give more than 0 and at most {MAX_TIMEOUT:.0f} seconds")


class Token(msgspec.Struct, frozen=True):
    """One token of an answer; its text is empty for the one that ends it."""

    id: int
    text: str
    source: Source


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer and what it cost.

    `exact` is true when every token is the target's own: it was asked, and no narrower `wire`, quantized layers or
    merged image tokens changed what it computed. `confidence` is the drafter's in its whole answer, where it gave one.
    `bytes_up` and `bytes_down` count the messages of the session; `rounds` how often the agent sent something that
    depended on a reply, its opening included; `drafted` tokens were sent as drafts, `accepted` of the answer's tokens
    are among them.
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
