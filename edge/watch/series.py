"""Several frames of a camera or video at once: those of the last seconds, evenly spread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from cutline.core.conversation import VideoPart
from cutline.core.request import MAX_IMAGES
from cutline.edge.watch.change_detection import Changes, thumbnail
from cutline.edge.watch.frames import Frame, FrameSource, Sifted
from cutline.errors import ImageError, InputError
from cutline.models.decode_budget import DECODING
from cutline.models.images import decode_image, read_header

GAP = 2.0  # times the usual space between two frames: what is longer apart is no series


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """So many frames (`count`) over `seconds`, the first and the last at both ends. Raises InputError."""

    count: int
    seconds: float

    def __post_init__(self) -> None:
        if not 2 <= self.count <= MAX_IMAGES:
            raise InputError(f"--frames is {self.count}; give 2 to {MAX_IMAGES} with --over, or leave both out")

    @property
    def space(self) -> float:
        """Seconds between two of them."""
        return self.seconds / (self.count - 1)

    @property
    def part(self) -> VideoPart:
        """Their placeholder in a message. Their times are even: a camera's own are off by less than a space."""
        times = [round(index * self.space, 3) for index in range(self.count)]
        return VideoPart(tuple(times), max(self.seconds, times[-1]))


class SeriesSource(Sifted):
    """A `source` that gives a frame for each space of a `series`, of which every `every` seconds a whole one comes.

    The first comes once there are enough frames. Where some stay away for over GAP spaces, as those of a camera that
    stalls, all before are left out, so that no question is about longer than it says. `changes` look at the last frame.
    """

    def __init__(self, source: FrameSource, series: Series, *, every: float, changes: Changes | None) -> None:
        super().__init__(name=source.name, changes=changes)
        self.live = source.live
        self._source = source
        self._series = series
        self._every = every

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """The last frame of each series, with those before it. Raises InputError."""
        held: deque[Frame] = deque(maxlen=self._series.count)
        due, number = 0.0, 0
        for frame in self._source.frames(stop):
            self.unreadable = self._source.unreadable
            if held and not 0.0 <= frame.at - held[-1].at <= GAP * self._series.space:
                held.clear()
                due = 0.0
            held.append(frame)
            if len(held) < self._series.count or frame.at < due - 1e-6:  # the slack is for rounding
                continue
            due = frame.at + self._every
            number += 1
            if self._changes is None or self._is_new(self._changes, frame.image):
                earlier = tuple(one.image for one in held if one is not frame)
                yield replace(frame, number=number, earlier=earlier)

    @staticmethod
    def _is_new(changes: Changes, image: bytes) -> bool:
        try:
            with DECODING.hold(read_header(image).memory):
                return changes.passes(thumbnail(decode_image(image)))
        except ImageError:
            return True  # asking about it reports what is wrong
