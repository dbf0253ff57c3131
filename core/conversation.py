"""A conversation: messages of text and image placeholders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from cutline.core.tools import ToolCall
from cutline.errors import PromptError

Role = Literal["system", "user", "assistant", "tool"]
Detail = Literal["auto", "low", "high"]


@dataclass(frozen=True, slots=True)
class TextPart:
    """Text of a message. Special tokens in it are plain text too."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image's placeholder in a message. The images are kept beside the messages, in the same order.

    `detail` low has the image made smaller, for models whose image tokens are more for a larger one.
    """

    detail: Detail = "auto"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation: of a `tool` what it gave, of the assistant also its `calls` of tools.

    Raises PromptError for an unknown role.
    """

    role: Role
    parts: tuple[TextPart | ImagePart, ...]
    calls: tuple[ToolCall, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):  # a request may send any text, and templates copy it unescaped
            raise PromptError(f"a message's role must be one of {', '.join(get_args(Role))}")

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


def details_of(messages: Sequence[Message]) -> tuple[Detail, ...]:
    """The detail that each image of a conversation is wanted in, in order."""
    return tuple(part.detail for message in messages for part in message.parts if isinstance(part, ImagePart))


def question(text: str) -> Message:
    """A user's question about one image."""
    return Message("user", (ImagePart(), TextPart(text)))
