"""A conversation: turns of words and of places for images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from cutline.errors import PromptError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class TextPart:
    """Words of a message, taken as plain text whatever they hold."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """The place of an image in a message; the images themselves come in the same order, beside the messages."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. Raises PromptError for an unknown role."""

    role: Role
    parts: tuple[TextPart | ImagePart, ...]

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):  # it may come from a request, and templates copy it unguarded
            raise PromptError(f"a message's role must be one of {', '.join(get_args(Role))}")

    @property
    def text(self) -> str:
        """All its words."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


def question(text: str) -> Message:
    """A user's question about one image."""
    return Message("user", (ImagePart(), TextPart(text)))
