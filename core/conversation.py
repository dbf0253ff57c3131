"""A conversation: messages of text, and placeholders for images and videos."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import msgspec

from cutline.core.tools import ToolCall
from cutline.errors import PromptError

Role = Literal["system", "user", "assistant", "tool"]
Detail = Literal["auto", "low", "high"]


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    """Text of a message. Special tokens in it are plain text too."""

    text: str


class ImagePart(msgspec.Struct, frozen=True, tag="image"):
    """An image's placeholder in a message. The images are kept beside the messages, in the same order.

    `detail` low has the image made smaller, for models whose image tokens are more for a larger one. A `joined` one
    goes on with the image before it, within its marks: only an agent makes such, of the pieces of a video.
    """

    detail: Detail = "auto"
    joined: bool = False


class VideoPart(msgspec.Struct, frozen=True, tag="video"):
    """A video's placeholder in a message. Each of its frames is one of the images beside the messages, in order.

    The frames were taken at `times`, in seconds from the video's beginning; it lasts `seconds`. They are some of its
    `total` frames, 0 where nobody knows how many it has. Raises PromptError for times that are none.
    """

    times: tuple[float, ...]
    seconds: float
    total: int = 0

    def __post_init__(self) -> None:
        ordered = all(before <= after for before, after in pairwise((0.0, *self.times, self.seconds)))
        if not self.times or not ordered or not math.isfinite(self.seconds):
            raise PromptError("a video's frames have times in ascending order, from 0 to its end")


Part = TextPart | ImagePart | VideoPart


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation: of a `tool` what it gave, of the assistant also its `calls` of tools.

    Raises PromptError for an unknown role.
    """

    role: Role
    parts: tuple[Part, ...]
    calls: tuple[ToolCall, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):  # a request may send any text, and templates copy it unescaped
            raise PromptError(f"a message's role must be one of {', '.join(get_args(Role))}")

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


def every_part(messages: Sequence[Message]) -> Iterator[Part]:
    """All parts of a conversation, in order."""
    return (part for message in messages for part in message.parts)


def pictures_of(parts: Sequence[Part]) -> int:
    """How many images the `parts` of a message stand for, the frames of videos among them."""
    return sum(len(part.times) if isinstance(part, VideoPart) else isinstance(part, ImagePart) for part in parts)


def details_of(messages: Sequence[Message]) -> tuple[Detail, ...]:
    """The detail that each image of a conversation is wanted in, in order; a video's frames are in no special one."""
    found = list[Detail]()
    for part in every_part(messages):
        if isinstance(part, ImagePart):
            found.append(part.detail)
        elif isinstance(part, VideoPart):
            found += ["auto"] * len(part.times)
    return tuple(found)


def question(text: str) -> Message:
    """A user's question about one image."""
    return Message("user", (ImagePart(), TextPart(text)))
