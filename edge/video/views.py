"""From a request's images and frames to the pictures that the models look at, each in the place of one image.

A video is looked at as its frames are, one picture each, unless the family has a mode for videos of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from cutline.core.conversation import ImagePart, Message, Part, TextPart, VideoPart, every_part
from cutline.models.families import Family
from cutline.models.images import Size, size_fault


class VideoShown(msgspec.Struct, frozen=True, kw_only=True):
    """How the models looked at the videos of a request.

    With `mode` "video" as their family does, with its own prompt and positions; with "images", which has a `why`, at
    each frame as at an image. There were so many `frames` of the `total` of all `videos`, where that is known, in
    `seconds` altogether.
    """

    mode: Literal["video", "images"]
    videos: int
    frames: int
    total: int | None
    seconds: float
    why: str | None = None


@dataclass(frozen=True, slots=True)
class View:
    """A picture that the models look at: one of a request's images, or a piece of a video.

    `images` are the request's images that it is made of, by index. Of a piece, whose frames are among so many `frames`
    of the video, it has the size of its `strip`, and if it is joined to the first one a `time`.
    """

    images: tuple[int, ...]
    strip: Size | None = None
    frames: int = 0
    time: int | None = None


@dataclass(frozen=True, slots=True)
class Viewed:
    """A conversation with an image part for each of its `views`; `shown` tells of its videos, if there are any."""

    messages: tuple[Message, ...]
    views: tuple[View, ...]
    shown: VideoShown | None


def viewed(messages: Sequence[Message], sizes: Sequence[Size], family: Family) -> Viewed:
    """The conversation as models of a `family` look at it, whose images and frames have these `sizes`."""
    videos = [part for part in every_part(messages) if isinstance(part, VideoPart)]
    views, made, first = list[View](), list[Message](), 0
    modes, reasons = list[bool](), list[str]()
    for message in messages:
        parts = list[Part]()
        for part in message.parts:
            if isinstance(part, VideoPart):
                last = first + len(part.times)
                why = _unfit(sizes[first:last], family)
                told, pieces = _as_images(first, last) if why else _as_video(part, first, sizes[first], family)
                parts += told
                views += pieces
                modes.append(not why)
                reasons += [why] if why else []
                first = last
            else:
                parts.append(part)
                if isinstance(part, ImagePart):
                    views.append(View((first,)))
                    first += 1
        made.append(Message(message.role, tuple(parts), message.calls))
    if not videos:
        return Viewed(tuple(messages), tuple(views), None)
    shown = VideoShown(
        mode="video" if all(modes) else "images",
        videos=len(videos),
        frames=sum(len(video.times) for video in videos),
        total=sum(video.total for video in videos) if all(video.total for video in videos) else None,
        seconds=sum(video.seconds for video in videos),
        why=reasons[0] if reasons else None,
    )
    return Viewed(tuple(made), tuple(views), shown)


def _unfit(sizes: Sequence[Size], family: Family) -> str:
    """Why frames of these `sizes` are looked at as images are; "" where they are not."""
    if family.video is None:
        return "the model was exported without a mode for videos, or its family has none here"
    if len(set(sizes)) > 1:
        return "its frames are of several sizes"
    width, height = family.video.looked(sizes[0], len(sizes))
    whole = width, height * family.video.together
    if size_fault(whole) is not None or family.piece_grid(whole) is None:
        return "its frames are too large or too thin for the model's mode for videos"
    return ""


def _as_images(first: int, last: int) -> tuple[list[Part], list[View]]:
    return [ImagePart() for _ in range(first, last)], [View((index,)) for index in range(first, last)]


def _as_video(video: VideoPart, first: int, size: Size, family: Family) -> tuple[list[Part], list[View]]:
    mode = family.video
    assert mode is not None
    count, together = len(video.times), mode.together
    width, height = mode.looked(size, count)
    begins = range(0, count, together)
    clock = mode.clock(count, video.seconds)
    views = []
    for begin, time in zip(begins, clock or (None,) * len(begins), strict=True):
        frames = [first + min(index, count - 1) for index in range(begin, begin + together)]
        views.append(View(tuple(frames), (width, height * together), count, time))
    before, *behind = mode.words(video.times, video.seconds)
    parts: list[Part] = [TextPart(before)] if before else []
    for index, words in enumerate(behind):
        parts.append(ImagePart(joined=clock is not None and index > 0))
        parts += [TextPart(words)] if words else []
    return parts, views
