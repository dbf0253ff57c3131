"""The shape of requests and responses over HTTP: OpenAI's chat completions, one image and one question.

What OpenAI's shape has no words for stands under `cutline`: in a request `mode`, `effort`, `cut`, `wire`,
`keep_image_tokens`, `top_k`, `timeout`, and what bounds a plan; in a response the whole `Answer`.
"""

from __future__ import annotations

import base64
from typing import Literal

import msgspec

from cutline.edge.answer import Answer
from cutline.edge.question import Mode, Question
from cutline.errors import (
    AccessDenied,
    BundleError,
    CutlineError,
    ImageError,
    InputError,
    ModelMismatch,
    PromptError,
    WorkerBusy,
    WorkerFailed,
    WorkerForgot,
    WorkerUnavailable,
)
from cutline.models.sampling import Sampling
from cutline.models.wire import Wire

# The one table between exceptions and HTTP statuses, read in both directions by the name that stands in the body.
STATUS: dict[type[CutlineError], int] = {
    ImageError: 400,
    PromptError: 400,
    InputError: 400,
    BundleError: 500,
    WorkerUnavailable: 503,
    ModelMismatch: 502,
    WorkerBusy: 429,
    WorkerFailed: 502,
    WorkerForgot: 503,
    AccessDenied: 502,
}


class _Text(msgspec.Struct, tag_field="type", tag="text", frozen=True):
    text: str


class _Url(msgspec.Struct, frozen=True):
    url: str


class _Image(msgspec.Struct, tag_field="type", tag="image_url", frozen=True):
    image_url: _Url


class _Message(msgspec.Struct, frozen=True):
    role: Literal["user"]
    content: list[_Text | _Image]


class _Extension(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mode: Mode = Mode.AUTO
    effort: float = 1.0
    cut: str = "image"
    wire: Wire = Wire.FLOAT32
    keep_image_tokens: float = 1.0
    top_k: int = 0
    timeout: float = 60.0
    exact: bool = False
    image_must_stay: bool = False
    max_latency_ms: float | None = None
    min_agreement: float | None = None


class Completion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request; fields that would change the answer and are not served are refused by being unknown."""

    messages: list[_Message]
    model: str = ""
    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    cutline: _Extension = _Extension()

    @classmethod
    def asking(cls, question: Question) -> Completion:
        """The request that asks `question`; the inverse of `question`."""
        url = "data:application/octet-stream;base64," + base64.b64encode(question.images[0]).decode()
        sampling = question.sampling
        return cls(
            messages=[_Message("user", [_Image(_Url(url)), _Text(question.text)])],
            max_tokens=question.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            cutline=_Extension(
                mode=question.mode,
                effort=question.effort,
                cut=question.cut,
                wire=question.wire,
                keep_image_tokens=question.keep_image_tokens,
                top_k=sampling.top_k,
                timeout=question.timeout,
                exact=question.exact,
                image_must_stay=question.image_must_stay,
                max_latency_ms=question.max_latency_ms,
                min_agreement=question.min_agreement,
            ),
        )

    def question(self) -> Question:
        """The question it asks. Raises InputError."""
        parts = [part for message in self.messages for part in message.content]
        images = [part for part in parts if isinstance(part, _Image)]
        if len(self.messages) != 1 or len(images) != 1:
            raise InputError("send one user message with one image")
        return Question.about(
            _data_of(images[0].image_url.url),
            "".join(part.text for part in parts if isinstance(part, _Text)),
            mode=self.cutline.mode,
            sampling=Sampling(temperature=self.temperature, top_k=self.cutline.top_k, top_p=self.top_p, seed=self.seed),
            max_tokens=self.max_tokens,
            effort=self.cutline.effort,
            cut=self.cutline.cut,
            wire=self.cutline.wire,
            keep_image_tokens=self.cutline.keep_image_tokens,
            timeout=self.cutline.timeout,
            exact=self.cutline.exact,
            image_must_stay=self.cutline.image_must_stay,
            max_latency_ms=self.cutline.max_latency_ms,
            min_agreement=self.cutline.min_agreement,
        )


def _data_of(url: str) -> bytes:
    """The bytes in a base64 `data:` URL, the only kind taken: nothing is fetched on a client's behalf."""
    head, comma, body = url.partition(",")
    if not (head.startswith("data:") and head.endswith(";base64") and comma):
        raise ImageError("images are taken as base64 `data:` URLs only")
    try:
        return base64.b64decode(body, validate=True)
    except ValueError:
        raise ImageError("the image's `data:` URL is not base64") from None


class Answered(msgspec.Struct, frozen=True):
    """What the client reads of a response."""

    cutline: Answer


class Fault(msgspec.Struct, frozen=True):
    """An error in OpenAI's shape; `type` is the exception's name."""

    message: str
    type: str


class Failed(msgspec.Struct, frozen=True):
    """A response that is an error."""

    error: Fault
