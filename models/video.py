"""How models look at videos: which frames of them, in what size, and what is said of them in the prompt.

A piece of a video stands in a prompt where an image stands: it is one frame, or several that the tower takes together.
It travels to a worker as a strip, which has its frames one below the other in the size in which the model looks at
them, so that nobody resizes them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from cutline.models.images import Size


@dataclass(frozen=True, slots=True)
class Footage:
    """What is known of a video before any of it is decoded: its number of `frames`, and how many there are a second."""

    frames: int
    rate: float

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.frames / self.rate


class VideoMode(Protocol):
    """How the models of a family look at videos, as their own processor has it."""

    @property
    def together(self) -> int:
        """How many frames make one piece; where the last one lacks some, its last frame fills it."""

    def sample(self, footage: Footage, most: int) -> tuple[int, ...]:
        """The frames to look at, by index in ascending order, `most` at most and one at least."""

    def looked(self, size: Size, frames: int) -> Size:
        """The size at which each of so many `frames` of one `size` (width, height) is looked at."""

    def fit(self, frame: Image.Image, frames: int) -> Image.Image:
        """A frame, one of so many, in the size at which it is looked at."""

    def words(self, times: Sequence[float], seconds: float) -> tuple[str, ...]:
        """What stands before each piece, and behind the last, of frames at these `times` in a video of `seconds`."""

    def clock(self, frames: int, seconds: float) -> tuple[int, ...] | None:
        """How many positions in time each piece stands behind the first, of so many `frames` in a video of `seconds`.

        They stand between the marks of one image then. None where each has marks of its own, and a time as images have.
        """


def spread(frames: int, count: int) -> tuple[int, ...]:
    """Of so many `frames`, `count` evenly spread ones by index, the first and the last among them; all if fewer."""
    if frames <= count:
        return tuple(range(frames))
    return tuple(round(index * (frames - 1) / max(1, count - 1)) for index in range(count))


def strip(frames: Sequence[Image.Image]) -> Image.Image:
    """The frames of a piece, all of one size, one below the other."""
    width, height = frames[0].size
    made = Image.new("RGB", (width, height * len(frames)))
    for index, frame in enumerate(frames):
        made.paste(frame, (0, index * height))
    return made
