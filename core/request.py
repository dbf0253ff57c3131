"""A request to an agent: the conversation, and how to answer it."""

from __future__ import annotations

import enum
import math
import re
from typing import Any, TypeVar

import msgspec

from cutline.core.conversation import Message, VideoPart, every_part, pictures_of, question
from cutline.core.sampling import Sampling
from cutline.core.tools import Toolbox
from cutline.core.wire import Wire
from cutline.errors import InputError, PromptError

MAX_IMAGES = 32  # in one conversation
MAX_IMAGE_BYTES = 32 << 20  # of all its images together
MAX_ALTERNATIVES = 20  # a token
MAX_TIMEOUT = 600.0  # seconds
MAX_STOPS = 4
MAX_STOP = 100  # characters
DRAFT_CHUNK = 16  # drafted tokens a message: the worker verifies the first chunk while the next one is drafted
MAX_NOISE = 10.0  # times a row's root mean square: more leaves nothing to answer from


_Kind = TypeVar("_Kind", bound=enum.StrEnum)

MAX_ID = 128  # characters
_ID = re.compile(rf"[A-Za-z0-9._:@/+=-]{{1,{MAX_ID}}}")  # no character that a log would have to escape
TENANT = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"  # the name of one that is known by a token or a certificate
_SURROGATE = re.compile("[\ud800-\udfff]")


class Mode(enum.StrEnum):
    """How an answer is made."""

    EDGE = "edge"  # the drafter alone
    CLOUD = "cloud"  # the worker alone, from the image
    SPLIT = "split"  # the target alone: the device runs its layers before the cut, the worker the rest
    DRAFT = "draft"  # drafted on the device, verified by the worker, which decodes on meanwhile
    AUTO = "auto"  # planned; without profiles: the drafter's answer if the gate accepts it, else as `draft`


class Priority(enum.StrEnum):
    """Which requests go first; within one, requests share."""

    INTERACTIVE = "interactive"  # somebody waits for the answer
    NORMAL = "normal"
    BACKGROUND = "background"  # it takes what others leave

    @property
    def rank(self) -> int:
        """0 for those that go first."""
        return list(Priority).index(self)

    def at_most(self, other: Priority) -> Priority:
        """This one, or `other` if this goes before that."""
        return max(self, other, key=lambda one: one.rank)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation that ends in a question, its `images` (contents of files), and how to answer it.

    The images are in the order of the messages' image parts, and of the frames of their videos. `logprobs` asks for the
    log probability of each token and of so many alternatives. If the worker is lost and the agent finishes alone, the
    answer may still be verified within `correct_seconds`. Requests of a higher `priority` go first. Whatever is cached
    of a request is for its `tenant` alone ("" if unknown); one that is not to `store` leaves no answer to draft later
    ones from, and is drafted from none. The five fields from `exact` on bound what mode `auto` plans; other modes do
    not plan, nor does `auto` at a given cut.

    Raises InputError for a field out of its range, PromptError for a conversation that cannot be answered.
    """

    messages: tuple[Message, ...]
    images: tuple[bytes, ...] = ()
    mode: Mode = Mode.AUTO
    sampling: Sampling = Sampling()
    max_tokens: int | None = 64  # of the answer; None for as many as fit, until the model or the timeout ends it
    effort: float = 1.0
    cut: str = "image"  # the first layer of the target that the worker runs
    wire: Wire = Wire.FLOAT32  # format of the boundary, for a cut after `image`
    tools: Toolbox | None = None  # that the model may, or has to, call
    image_tokens: int | None = None  # of each image at most, for models whose image tokens follow an image's size
    keep_image_tokens: float = 1.0  # share of the image tokens that enters the decoder, for a cut from `decoder.0` on
    noise: float = 0.0  # added to each boundary row: standard deviation, as a share of the row's root mean square
    timeout: float = 60.0  # seconds
    priority: Priority = Priority.NORMAL
    stop: tuple[str, ...] = ()  # texts before which the answer ends
    logprobs: int | None = None
    correct_seconds: float = 0.0
    exact: bool = False  # every token must be the target's own
    image_must_stay: bool = False  # neither the image nor its embedded patches may leave the device
    max_latency_ms: float | None = None  # also for an answer that the gate escalates
    min_agreement: float | None = None  # measured share of answers that equal the target's; None is 0.9
    max_leak: float | None = None  # measured share of an image's variance that an attacker recovers
    store: bool = True
    tenant: str = ""
    request_id: str = ""  # its name in the logs of agent and workers
    trace: str = ""  # its W3C trace context, which is passed on to workers

    @classmethod
    def about(cls, image: bytes, text: str, **options: Any) -> Request:
        """One question about one image."""
        return cls(messages=(question(text),), images=(image,), **options)

    @property
    def text(self) -> str:
        """The text of the question."""
        return self.messages[-1].text if self.messages else ""

    @property
    def filmed(self) -> bool:
        """Whether there is a video in it."""
        return any(isinstance(part, VideoPart) for part in every_part(self.messages))

    @property
    def bounded(self) -> bool:
        """Whether any field bounds what mode `auto` plans."""
        bounds = self.max_latency_ms, self.min_agreement, self.max_leak
        return self.exact or self.image_must_stay or any(bound is not None for bound in bounds)

    def __post_init__(self) -> None:
        # These may be given as plain text.
        msgspec.structs.force_setattr(self, "mode", _named(Mode, self.mode, "mode"))
        msgspec.structs.force_setattr(self, "wire", _named(Wire, self.wire, "wire format"))
        msgspec.structs.force_setattr(self, "priority", _named(Priority, self.priority, "priority"))
        self._check_conversation()
        check_request_id(self.request_id)
        text = "".join((*(message.text for message in self.messages), *self.stop))
        if _SURROGATE.search(text):  # UTF-8 cannot encode them
            raise PromptError("the question has code points that are not characters; take them out")
        if not 0.0 <= self.effort <= 1.0:
            raise InputError(f"effort is {self.effort}; give 0 (the worker only verifies) to 1 (full race)")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InputError(f"max-tokens is {self.max_tokens}; give 1 or more")
        if len(self.stop) > MAX_STOPS or not all(0 < len(text) <= MAX_STOP for text in self.stop):
            raise InputError(f"stop takes {MAX_STOPS} texts at most, of 1 to {MAX_STOP} characters each")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_ALTERNATIVES:
            raise InputError(f"logprobs is {self.logprobs}; give 0 to {MAX_ALTERNATIVES} alternatives a token")
        if not 0.0 <= self.correct_seconds <= MAX_TIMEOUT:
            raise InputError(f"correct-seconds is {self.correct_seconds}; give 0 to {MAX_TIMEOUT:.0f}")
        match self.mode:
            case Mode.EDGE | Mode.CLOUD if self.cut != "image":
                raise InputError(f"mode {self.mode} cuts nothing; for the cut {self.cut[:40]} use split, draft or auto")
        if self.tools is not None and self.sampling.constraint not in (None, self.tools.constraint):
            raise InputError("an answer that may call tools keeps to no other format; leave out tools or the format")
        if self.image_tokens is not None and self.image_tokens < 1:
            raise InputError(f"image-tokens is {self.image_tokens}; give 1 or more")
        if not 0.0 < self.keep_image_tokens <= 1.0:
            raise InputError(f"keep-image-tokens is {self.keep_image_tokens}; give a share above 0, and 1 at most")
        if self.keep_image_tokens < 1.0 and not self.cut.startswith(("decoder.", "head")):
            raise InputError("keep-image-tokens needs a cut at decoder.0 or later: the device merges them")
        if not 0.0 <= self.noise <= MAX_NOISE:
            raise InputError(f"noise is {self.noise}; give a share of a row from 0 to {MAX_NOISE:g}")
        if self.noise > 0.0 and self.cut == "image":
            raise InputError("noise needs a cut after image, such as decoder.0; the picture itself goes as it is")
        if self.bounded and (self.mode is not Mode.AUTO or self.cut != "image"):
            given = f"mode {self.mode}" if self.mode is not Mode.AUTO else f"the cut {self.cut[:40]}"
            raise InputError(
                "exact, image-must-stay, max-latency-ms, min-agreement and max-leak bound what mode auto plans; "
                f"{given} leaves nothing to plan"
            )
        if self.max_latency_ms is not None and not 0.0 < self.max_latency_ms < math.inf:
            raise InputError(f"max-latency-ms is {self.max_latency_ms}; give a number above 0")
        if self.min_agreement is not None and not 0.0 <= self.min_agreement <= 1.0:
            raise InputError(f"min-agreement is {self.min_agreement}; give a share from 0 to 1")
        if self.max_leak is not None and not 0.0 <= self.max_leak <= 1.0:
            raise InputError(f"max-leak is {self.max_leak}; give a share from 0 to 1")
        if not 0.0 < self.timeout <= MAX_TIMEOUT:
            raise InputError(f"timeout is {self.timeout}; give more than 0 and at most {MAX_TIMEOUT:.0f} seconds")

    def _check_conversation(self) -> None:
        """Check that the messages end in a question and have a placeholder for every image."""
        role = self.messages[-1].role if self.messages else "user"
        # What a tool gave may be nothing; of a picture alone some models say what they see: theirs is to say.
        if not self.text.strip() and role != "tool" and not self.images:
            raise PromptError("the question is empty; ask something about the image")
        if role not in ("user", "tool"):
            raise PromptError(f"the last message is the {role}'s; end with one of the user's")
        places = sum(pictures_of(message.parts) for message in self.messages)
        if places != len(self.images):
            raise PromptError(f"the messages have places for {places} images, but {len(self.images)} came with them")
        if places > MAX_IMAGES:
            counted = "images and frames" if self.filmed else "images"
            raise InputError(f"{places} {counted} are too many; give {MAX_IMAGES} at most")
        if sum(map(len, self.images)) > MAX_IMAGE_BYTES:
            raise InputError(f"the images are over {MAX_IMAGE_BYTES >> 20} MiB together; save them smaller")


def _named(kind: type[_Kind], name: str, what: str) -> _Kind:
    if name not in list(kind):
        raise InputError(f"there is no {what} {name!r}; choose {', '.join(kind)}")
    return kind(name)


def is_request_id(text: str) -> bool:
    """Whether `text` is a valid request id."""
    return _ID.fullmatch(text) is not None


def check_request_id(text: str) -> str:
    """Return `text` if it is a valid request id or empty. Raises InputError."""
    if text and not is_request_id(text):
        raise InputError(f"a request's id has 1 to {MAX_ID} letters, digits or any of ._:@/+=-; this one does not")
    return text
