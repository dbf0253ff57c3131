"""OpenAI's chat completions as their client sees them: what is asked, what is said, and what an error means.

Servers that say they speak it differ: in the parameters that they take, in how they tell of an error, and in whether
they stream when they are asked to. What is none of this is no answer, whatever its status.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterator
from typing import Any

import msgspec

from cutline.core.constraint import Constraint
from cutline.core.conversation import Detail, ImagePart, Message, TextPart, VideoPart
from cutline.core.json_errors import UNREADABLE
from cutline.core.request import Request
from cutline.errors import AccessDenied, WorkerBusy, WorkerError, WorkerFailed, WorkerUnavailable
from cutline.models.decode_budget import DECODING
from cutline.models.images import TRAVELLING, as_png, decode_image, read_header

MAX_TOKENS, MAX_COMPLETION_TOKENS = "max_tokens", "max_completion_tokens"
PENALTIES = ("presence_penalty", "frequency_penalty")
# What a server may refuse, and choose itself instead.
SAMPLING = frozenset({"temperature", "top_p", "seed", "stop", *PENALTIES})
MOST_REASON = 300  # characters of what a server says, that are repeated
KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}  # of images, by how their files begin


class UpstreamDelta(msgspec.Struct, frozen=True):
    """Words of an answer."""

    content: str | None = None


class UpstreamChoice(msgspec.Struct, frozen=True):
    """An answer: the next words of one that is streamed, or all of them."""

    delta: UpstreamDelta | None = None
    message: UpstreamDelta | None = None
    finish_reason: str | None = None

    @property
    def text(self) -> str:
        """Its words."""
        said = self.delta or self.message
        return (said.content if said is not None else None) or ""


class Trouble(msgspec.Struct, frozen=True):
    """An error as servers tell of it."""

    message: str | None = None
    type: str | None = None
    param: str | None = None
    code: int | str | None = None


class Completion(msgspec.Struct, frozen=True):
    """What a server says: one event of a stream, or a whole response. It has `choices`, or tells of an `error`."""

    choices: list[UpstreamChoice] | None = None
    error: Trouble | str | None = None
    message: str | None = None
    detail: str | None = None

    @property
    def trouble(self) -> Trouble | None:
        """What is wrong, where something is."""
        if isinstance(self.error, str):
            return Trouble(message=self.error)
        if self.error is not None:
            return self.error
        if self.choices is None:
            return Trouble(message=self.message or self.detail)
        return None


def completion_of(content: bytes) -> Completion | None:
    """What JSON in `content` says; None where that is no completion and no error."""
    try:
        return msgspec.json.decode(content, type=Completion)
    except UNREADABLE:
        return None


def readable(question: Request) -> Request:
    """The question with its images as servers read them: JPEG, PNG and WebP as they are, others whole as PNG.

    Takes as long as decoding and writing those. Raises ImageError.
    """
    return msgspec.structs.replace(question, images=tuple(map(_readable, question.images)))


def body_of(question: Request, model: str, refused: Collection[str] = ()) -> dict[str, Any]:
    """What a server is asked for `model`'s answer to a `readable` question, without the parameters it `refused`."""
    images = iter(question.images)
    tokens = MAX_COMPLETION_TOKENS if MAX_TOKENS in refused else MAX_TOKENS
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message, images) for message in question.messages],
        "temperature": question.sampling.temperature,
        "stream": True,
    }
    if question.max_tokens is not None:
        body[tokens] = question.max_tokens
    if question.sampling.temperature > 0:
        body |= {"top_p": question.sampling.top_p, "seed": question.sampling.seed}
    body |= {name: value for name in PENALTIES if (value := getattr(question.sampling, name))}
    if (constraint := question.sampling.constraint) is not None:
        body["response_format"] = _format(constraint)
    if question.stop:
        body["stop"] = list(question.stop)
    return {name: value for name, value in body.items() if name not in refused}


def _format(constraint: Constraint) -> dict[str, Any]:
    """How a server is asked to keep to a JSON schema."""
    if constraint == Constraint.json_object():
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": constraint.value}}


def also_refused(trouble: Trouble, refused: frozenset[str]) -> frozenset[str]:
    """The parameters that a server does not take, once it refused a request without those `refused` before.

    As OpenAI's reasoning models, which want MAX_COMPLETION_TOKENS, and choose their own temperature. Where it names one
    that it was not sent, what else may be in its way is left out. The same as before where nothing can be.
    """
    words = f"{trouble.param or ''} {trouble.message or ''}"
    named = {name for name in (MAX_TOKENS, *SAMPLING) if _names(words, name)}
    if not named:
        return refused
    return refused | named if named - refused else refused | SAMPLING


def _names(words: str, name: str) -> bool:
    """Whether a parameter is named, and not just a word or a longer name that it is a part of."""
    return any(f"{mark}{name}{mark}" in words for mark in "'\"`") or words.split(" ")[0] == name


def refusal_of(address: str, status: int, trouble: Trouble | None, *, waits: str = "", key: str = "") -> WorkerError:
    """What an error of the server at `address` means; `status` is HTTP's, also where it was told inside of a 200."""
    said = reason_of(trouble, key)
    told = f": {said}" if said else ""
    if status in (401, 403):  # what is said to that may repeat a part of the key
        return AccessDenied(f"the server at {address} does not take this key ({status}); set another")
    if status == 429:
        seconds = float(waits) if waits.isascii() and waits.isdecimal() else 0.0
        return WorkerBusy(f"the server at {address} has no room{told}", retry_seconds=seconds)
    if status >= 500:
        return WorkerUnavailable(f"the server at {address} failed on this request ({status}){told}")
    asks = told or "; does it serve this model, and images?"
    return WorkerFailed(f"the server at {address} refuses this request ({status}){asks}")


def failure_of(address: str, trouble: Trouble, *, key: str = "") -> WorkerError:
    """What an error means that was told inside of a response with the status 200."""
    code = trouble.code if isinstance(trouble.code, int) else _status(trouble.code or "")
    if code >= 400:
        return refusal_of(address, code, trouble, key=key)
    said = reason_of(trouble, key) or "it does not speak OpenAI's chat completions"
    return WorkerFailed(f"the server at {address} failed on this request: {said}")


def reason_of(trouble: Trouble | None, key: str = "") -> str:
    """What a server gives as a reason: one line of plain characters, without the `key`. "" for none."""
    said = (trouble.message or trouble.type or "") if trouble is not None else ""
    if key:
        said = said.replace(key, "…")
    plain = "".join(character if character.isprintable() else " " for character in said)
    plain = " ".join(plain.split())
    return plain if len(plain) <= MOST_REASON else plain[: MOST_REASON - 1] + "…"


def _status(code: str) -> int:
    return int(code) if code.isascii() and code.isdecimal() and len(code) == 3 else 0


def _message(message: Message, images: Iterator[bytes]) -> dict[str, Any]:
    parts = list[dict[str, Any]]()
    for part in message.parts:
        match part:
            case TextPart(text):
                parts.append({"type": "text", "text": text})
            case ImagePart(detail):
                parts.append(_image(next(images), detail))
            case VideoPart(times):  # few servers take videos, and none all of their formats
                parts += [_image(next(images)) for _ in times]
    plain = all(part["type"] == "text" for part in parts)
    return {"role": message.role, "content": message.text if plain else parts}


def _image(image: bytes, detail: Detail = "auto") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": _url(image)} | ({} if detail == "auto" else {"detail": detail})}


def _readable(file: bytes) -> bytes:
    header = read_header(file)
    if header.format in TRAVELLING:
        return file
    with DECODING.hold(header.memory):
        return as_png(decode_image(file))


def _url(image: bytes) -> str:
    kind = next(kind for start, kind in KINDS.items() if image.startswith(start))
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
