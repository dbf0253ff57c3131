"""Frames to ask about, and folders that they come from; those of videos and cameras are in `cutline.edge.video`."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cutline.edge.changes import Changes, thumbnail
from cutline.errors import ImageError
from cutline.models.images import MAX_BYTES, decode_image

LOOK = 0.5  # seconds between two looks into a folder
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

Tell = Callable[[str], None]  # hears what a person should know


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A picture to ask about: `image` is a file's bytes, `taken` seconds since 1970, `number` counts its source's.

    A frame of a file that is read again has the same `id` again.
    """

    id: str
    source: str
    number: int
    taken: float
    image: bytes
    file: str | None = None  # its name, of an image in a folder


class Source(Protocol):
    """Something to take frames from. What is `live` does not wait: what is not taken is gone."""

    name: str
    live: bool

    @property
    def still(self) -> int:
        """How many pictures were left out since they showed nothing new."""

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Frames until the source ends or `stop` is set; blocks in between. Raises InputError."""


class Folder:
    """The image files in a folder in the order of their names, and then those that come.

    A file is taken when it was the same at two looks, as the one who writes it may not be done; and again when it has
    changed. With `once` it ends when there is nothing new.
    """

    live = False

    def __init__(self, path: Path, *, name: str, changes: Changes | None, once: bool, look: float = LOOK) -> None:
        self.name = name
        self._path = path
        self._changes = changes
        self._once = once
        self._look = look

    @property
    def still(self) -> int:
        """How many files were left out."""
        return self._changes.still if self._changes else 0

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """What is in the folder, and what comes."""
        taken = dict[str, tuple[int, int]]()
        before, number = self._stamps(), 0
        while not stop.wait(self._look):
            now = self._stamps()
            fresh = [name for name in sorted(now) if taken.get(name) != now[name]]
            for name in fresh:
                if stop.is_set() or before.get(name) != now[name]:
                    continue
                taken[name] = now[name]
                number += 1
                frame = self._frame(name, now[name], number)
                if frame is not None:
                    yield frame
            taken = {name: stamp for name, stamp in taken.items() if name in now}
            before = now
            if self._once and not fresh:
                return

    def _frame(self, name: str, stamp: tuple[int, int], number: int) -> Frame | None:
        file = self._path / name
        try:
            with file.open("rb") as opened:
                image = opened.read(MAX_BYTES + 1)  # the one byte more is enough to refuse it
        except OSError:  # gone again
            return None
        if self._changes is not None and not self._changed(image):
            return None
        known = frame_id(file.absolute(), *stamp)
        return Frame(id=known, source=self.name, number=number, taken=stamp[0] / 1e9, image=image, file=name)

    def _changed(self, image: bytes) -> bool:
        assert self._changes is not None
        try:
            return self._changes.passes(thumbnail(decode_image(image)))
        except ImageError:
            return True  # who asks about it is told what is wrong with it

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """Time of the last change in nanoseconds, and size, of every image file."""
        found = dict[str, tuple[int, int]]()
        try:
            for file in self._path.iterdir():
                if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file():
                    stat = file.stat()
                    found[file.name] = stat.st_mtime_ns, stat.st_size
        except OSError:  # a file went away just now, or the folder is not mounted for a while
            return found
        return found


def frame_id(*known: object) -> str:
    """A frame's id by what it is known by."""
    return hashlib.sha256("\0".join(map(str, known)).encode(errors="surrogateescape")).hexdigest()[:24]
