"""Frames to ask about, the interface of their sources, and folders as a source; `video.py` has videos and cameras."""

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

POLL_SECONDS = 0.5  # between two listings of a folder
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".gif", ".heic", ".heif")
MAX_REMEMBERED = 100_000  # files that were taken and are not in their folder any more

_Stamp = tuple[int, int]  # a file's modification time in nanoseconds, and its size

Notify = Callable[[str], None]  # called with messages for the user


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """An image to ask about: the content `image` of a file, `taken` in Unix time, and its `number` in its source.

    The `id` is the same if the same file is read again. `at` is when it was taken in the source's own time, in seconds.
    It may be the last of a series, with the images `earlier` in it.
    """

    id: str
    source: str
    number: int
    taken: float
    image: bytes
    file: str | None = None  # the printable name of an image in a folder
    at: float = 0.0
    earlier: tuple[bytes, ...] = ()

    @property
    def images(self) -> tuple[bytes, ...]:
        """All that is asked about, in order."""
        return (*self.earlier, self.image)


class FrameSource(Protocol):
    """A source of frames. If it is `live`, frames that are not taken in time are lost."""

    name: str
    live: bool
    filtered: int  # images that did not show what they were to show

    @property
    def unreadable(self) -> int:
        """The number of images that exist and cannot be read."""

    @property
    def still(self) -> int:
        """The number of images that were skipped because they showed no change."""

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Frames until the source ends or `stop` is set; blocks in between. Raises InputError."""


class Sifted:
    """The base of sources: it has a `name`, and skips images without a change by `changes`, if given."""

    def __init__(self, *, name: str, changes: Changes | None) -> None:
        self.name = name
        self.unreadable = self.filtered = 0
        self._changes = changes

    @property
    def still(self) -> int:
        """The number of images that were skipped because they showed no change."""
        return self._changes.still if self._changes else 0


class Folder(Sifted):
    """The image files in a folder in the order of their names, and then new ones.

    A file is taken once it was unchanged for two polls, as it may still be being written, and again when it changes. A
    file or folder that cannot be read is retried at every poll, and `notify` is called. With `once` the source ends
    when there is nothing new.
    """

    live = False

    def __init__(
        self, path: Path, *, name: str, changes: Changes | None, once: bool, notify: Notify, poll: float = POLL_SECONDS
    ) -> None:
        super().__init__(name=name, changes=changes)
        self._path = path
        self._once = once
        self._notify = notify
        self._poll = poll
        self._fault = ""  # why the folder could not be listed last
        self._taken = dict[str, _Stamp]()  # also files that are away now: they may return with the disk they are on
        self._unreadable = set[str]()  # files that could not be read

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """The folder's frames. Raises InputError for a folder that cannot be listed, with `once` only."""
        before, number = self._stamps(), 0
        while not stop.wait(self._poll):
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
        """The content of a file; None if it cannot be read now."""
        try:
            with (self._path / name).open("rb") as opened:
                image = opened.read(MAX_BYTES + 1)  # one byte too many is enough to refuse it
        except FileNotFoundError:  # removed meanwhile
            return None
        except OSError as error:
            self._miss(name, error)
            return None
        if name in self._unreadable:
            self._unreadable.remove(name)
            self.unreadable -= 1
        return image

    def _miss(self, name: str, error: OSError) -> None:
        """Count a file that cannot be read, and notify; once, as it is retried at every poll."""
        if name not in self._unreadable:
            self._unreadable.add(name)
            self.unreadable += 1
            self._notify(f"{self.name}: {printable(name)} cannot be read: {error.strerror}; trying again")

    def _changed(self, image: bytes) -> bool:
        assert self._changes is not None
        try:
            with DECODING.hold(read_header(image).memory):
                shown = thumbnail(decode_image(image))
        except ImageError:
            return True  # asking about it reports what is wrong
        return self._changes.passes(shown)

    def _stamps(self) -> dict[str, _Stamp]:
        """The stamps of all image files; none if the folder cannot be listed, as it may be mounted again later."""
        try:
            names = [file.name for file in self._path.iterdir()]
        except OSError as error:
            if self._once:
                raise InputError(f"the folder {self.name} cannot be listed: {error.strerror}") from None
            if self._fault != (fault := error.strerror or ""):
                self._notify(f"{self.name}: {fault}; trying again")
                self._fault = fault
            return {}
        if self._fault:
            self._notify(f"{self.name} is back")
            self._fault = ""
        self._unreadable.intersection_update(names)
        found = dict[str, _Stamp]()
        for name in names:
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                try:
                    known = (self._path / name).stat()
                except FileNotFoundError:  # removed meanwhile
                    continue
                except OSError as error:
                    if name not in self._taken:
                        self._miss(name, error)
                    continue
                if stat.S_ISREG(known.st_mode):
                    found[name] = known.st_mtime_ns, known.st_size
        return found

    def _forget(self, now: dict[str, _Stamp]) -> None:
        """Forget the oldest of the files that are not there `now`, beyond MAX_REMEMBERED."""
        limit = len(now) + MAX_REMEMBERED
        if len(self._taken) > limit:
            away = [name for name in self._taken if name not in now]
            for name in away[: len(self._taken) - limit]:
                del self._taken[name]


def frame_id(*known: object) -> str:
    """A frame's id: a hash of whatever identifies it."""
    return hashlib.sha256("\0".join(map(str, known)).encode(errors="surrogateescape")).hexdigest()[:24]
