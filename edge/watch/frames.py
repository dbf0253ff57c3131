"""Frames to ask about, and folders that they come from; those of videos and cameras are in `video.py`."""

from __future__ import annotations

import hashlib
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cutline.edge.watch.change_detection import Changes, thumbnail
from cutline.errors import ImageError, InputError
from cutline.errors.names import printable
from cutline.models.decode_budget import DECODING
from cutline.models.images import MAX_BYTES, decode_image, read_header

LOOK = 0.5  # seconds between two looks into a folder
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".gif", ".heic", ".heif")
REMEMBERED = 100_000  # files that were taken and are not in their folder any more

_Stamp = tuple[int, int]  # of a file: time of its last change in nanoseconds, and size

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
    file: str | None = None  # its name as text, of an image in a folder


class FrameSource(Protocol):
    """Something to take frames from. What is `live` does not wait: what is not taken is gone."""

    name: str
    live: bool
    unreadable: int  # pictures that are there and cannot be read

    @property
    def still(self) -> int:
        """How many pictures were left out since they showed nothing new."""

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Frames until the source ends or `stop` is set; blocks in between. Raises InputError."""


class Sifted:
    """What sources have in common: a `name`, and that they leave out what is not new by their `changes`, if any."""

    def __init__(self, *, name: str, changes: Changes | None) -> None:
        self.name = name
        self.unreadable = 0
        self._changes = changes

    @property
    def still(self) -> int:
        """How many pictures were left out since they showed nothing new."""
        return self._changes.still if self._changes else 0


class Folder(Sifted):
    """The image files in a folder in the order of their names, and then those that come.

    A file is taken when it was the same at two looks, as the one who writes it may not be done; and again when it has
    changed. One that cannot be read is tried again at every look, and so is the folder. With `once` it ends when there
    is nothing new. `tell` hears of what cannot be read.
    """

    live = False

    def __init__(
        self, path: Path, *, name: str, changes: Changes | None, once: bool, tell: Tell, look: float = LOOK
    ) -> None:
        super().__init__(name=name, changes=changes)
        self._path = path
        self._once = once
        self._tell = tell
        self._look = look
        self._said = ""  # why the folder could not be listed last
        self._taken = dict[str, _Stamp]()  # also what is away: it comes back as it was, with the disk that it is on
        self._unreadable = set[str]()  # files that could not be read

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """What is in the folder, and what comes. Raises InputError if it ends by itself and cannot be listed."""
        before, number = self._stamps(), 0
        while not stop.wait(self._look):
            now = self._stamps()
            fresh = [name for name in sorted(now) if self._taken.get(name) != now[name]]
            for name in fresh:
                if stop.is_set() or before.get(name) != now[name]:
                    continue
                image = self._read(name)
                if image is None:
                    continue
                self._taken[name] = now[name]
                number += 1
                if self._changes is None or self._changed(image):
                    yield self._frame(name, now[name], number, image)
            self._forget(now)
            before = now
            if self._once and self._unreadable.issuperset(fresh):
                return

    def _frame(self, name: str, stamp: _Stamp, number: int, image: bytes) -> Frame:
        known = frame_id((self._path / name).absolute(), *stamp)
        return Frame(id=known, source=self.name, number=number, taken=stamp[0] / 1e9, image=image, file=printable(name))

    def _read(self, name: str) -> bytes | None:
        """What is in a file, or None for now."""
        try:
            with (self._path / name).open("rb") as opened:
                image = opened.read(MAX_BYTES + 1)  # the one byte more is enough to refuse it
        except FileNotFoundError:  # gone again
            return None
        except OSError as error:
            self._miss(name, error)
            return None
        if name in self._unreadable:
            self._unreadable.remove(name)
            self.unreadable -= 1
        return image

    def _miss(self, name: str, error: OSError) -> None:
        """Count a file that cannot be read, and say so; once, as it is tried at every look."""
        if name not in self._unreadable:
            self._unreadable.add(name)
            self.unreadable += 1
            self._tell(f"{self.name}: {printable(name)} cannot be read: {error.strerror}; trying again")

    def _changed(self, image: bytes) -> bool:
        assert self._changes is not None
        try:
            with DECODING.hold(read_header(image).memory):
                shown = thumbnail(decode_image(image))
        except ImageError:
            return True  # who asks about it is told what is wrong with it
        return self._changes.passes(shown)

    def _stamps(self) -> dict[str, _Stamp]:
        """The stamp of every image file; none where the folder cannot be listed, as it may be mounted again."""
        try:
            names = [file.name for file in self._path.iterdir()]
        except OSError as error:
            if self._once:
                raise InputError(f"the folder {self.name} cannot be listed: {error.strerror}") from None
            if self._said != (said := error.strerror or ""):
                self._tell(f"{self.name}: {said}; trying again")
                self._said = said
            return {}
        if self._said:
            self._tell(f"{self.name} is back")
            self._said = ""
        self._unreadable.intersection_update(names)
        found = dict[str, _Stamp]()
        for name in names:
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                try:
                    known = (self._path / name).stat()
                except FileNotFoundError:  # it went away just now
                    continue
                except OSError as error:
                    if name not in self._taken:
                        self._miss(name, error)
                    continue
                if stat.S_ISREG(known.st_mode):
                    found[name] = known.st_mtime_ns, known.st_size
        return found

    def _forget(self, now: dict[str, _Stamp]) -> None:
        """Of too many files that are not there `now`, forget those that were taken first."""
        most = len(now) + REMEMBERED
        if len(self._taken) > most:
            away = [name for name in self._taken if name not in now]
            for name in away[: len(self._taken) - most]:
                del self._taken[name]


def frame_id(*known: object) -> str:
    """A frame's id by what it is known by."""
    return hashlib.sha256("\0".join(map(str, known)).encode(errors="surrogateescape")).hexdigest()[:24]
