"""A folder that keeps frames while no worker answers, and the answers given; it survives a crash at any point.

    frames/000000000042-ID.frame    a frame that waits: a line of JSON, then the image
    answers.jsonl                   a line for every answer; whose id stands there is done
    answers.1.jsonl                 the lines before those
    question.txt                    what is asked about all of them
    lock                            held by the process that uses the folder

A frame is done at the moment when its whole line is in the journal. Every file becomes visible whole, by a rename, and
what was left half done is put right when the folder is opened.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from cutline.core.json_errors import UNREADABLE
from cutline.core.storage.files import PRIVATE, read_regular, remove_drafts, replace_file, sync_folder, write_all
from cutline.edge.watch.frames import Frame
from cutline.errors import InputError
from cutline.models.images import MAX_BYTES

_QUESTION_BYTES = 1 << 20
_FRAME_BYTES = MAX_BYTES + (1 << 16)  # an image that is refused may be a byte longer, and has a line before it
JOURNAL_BYTES = 8 << 20  # of one journal; there are two
_ANY_DIGEST = "0" * 64
_FRAME = re.compile(r"([0-9]{12,})-(.+)\.frame")  # place, id; other files are not of the spool


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """The line before an image in a frame's file."""

    id: str
    source: str
    number: int
    taken: float
    file: str | None
    sha256: str


class _Done(msgspec.Struct, frozen=True):
    """What the spool reads of a line of the journal."""

    id: str


class Spool:
    """The spool in a folder, with frames of `limit` bytes at most: where it is full, the oldest make room."""

    def __init__(self, folder: Path, *, question: str, limit: int, journal: int = JOURNAL_BYTES) -> None:
        """Open it and put it right. Raises InputError if it cannot be used, is in use, or is of another question."""
        self._folder = folder
        self._limit = limit
        self._files, self._sizes, self._next = dict[str, Path](), dict[str, int](), 0
        self._done, self._done_before = set[str](), set[str]()
        self._journal_bytes = journal
        self._current, self._former = folder / "answers.jsonl", folder / "answers.1.jsonl"
        try:
            (folder / "frames").mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InputError(f"--spool {folder} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise InputError(f"--spool {folder} is in use by another process; give each its own") from None
        try:
            self._belong(question)
            self._recover()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise InputError(f"--spool {folder} cannot be used: {error.strerror}") from None
            raise

    def __contains__(self, frame_id: str) -> bool:
        """Whether a frame waits here or has been answered."""
        return frame_id in self._sizes or frame_id in self._done or frame_id in self._done_before

    def __len__(self) -> int:
        """Frames that wait."""
        return len(self._sizes)

    @property
    def size(self) -> int:
        """Bytes of the frames that wait."""
        return sum(self._sizes.values())

    def has_room(self, frame: Frame) -> bool:
        """Whether nothing must be dropped for a frame. One that never fits has room: it is itself what is dropped."""
        size = len(_head(frame, _ANY_DIGEST)) + len(frame.image)  # without hashing the image
        return size > self._limit or self.size + size <= self._limit

    def put(self, frame: Frame) -> list[str]:
        """Keep a frame, unless it is known; on return it is safe. The sources of frames that had to be dropped for it.

        Raises OSError where the disk is full.
        """
        if frame.id in self:
            return []
        content = _content(frame)
        if len(content) > self._limit:
            return [frame.source]
        dropped = []
        while self.size + len(content) > self._limit:
            oldest = next(iter(self._files))
            kept = self._read(self._files[oldest])
            self._forget(oldest)
            dropped.append(kept.source if kept else "")
        file = self._folder / "frames" / f"{self._next:012d}-{frame.id}.frame"
        replace_file(file, content, mode=PRIVATE)
        self._next += 1
        self._files[frame.id], self._sizes[frame.id] = file, len(content)
        return dropped

    def oldest(self, after: str | None = None) -> Frame | None:
        """The frame that waits longest, or the next one `after` a frame of that id; None if none waits.

        A file that a failing disk has damaged is removed.
        """
        order = list(self._files)
        start = order.index(after) + 1 if after in self._files else 0
        for known in order[start:] + order[:start]:
            frame = self._read(self._files[known])
            if frame is not None:
                return frame
            self._forget(known)
        return None

    def commit(self, frame_id: str, line: bytes) -> None:
        """Write a frame's answer, one line of JSON with its `id`, into the journal, unless there is one already.

        On return it is safe, and the frame waits no more. Raises OSError where the disk is full; then call it again.
        """
        assert b"\n" not in line
        if frame_id not in self._done and frame_id not in self._done_before:
            self._append(line + b"\n")
            self._done.add(frame_id)
        if frame_id in self._files:
            self._forget(frame_id)
        if self._current.exists() and self._current.stat().st_size > self._journal_bytes:
            self._current.replace(self._former)
            self._done, self._done_before = set(), self._done

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._lock)

    def _belong(self, question: str) -> None:
        file = self._folder / "question.txt"
        if not file.exists():
            replace_file(file, question.encode(), mode=PRIVATE)
        elif read_regular(file, limit=_QUESTION_BYTES) != question.encode():
            raise InputError(f"--spool {self._folder} is of another question; give each question its own")

    def _recover(self) -> None:
        remove_drafts(self._folder)
        remove_drafts(self._folder / "frames")
        if self._current.exists():
            whole = self._current.read_bytes().rfind(b"\n") + 1
            os.truncate(self._current, whole)
        self._done, self._done_before = set(_ids(self._current)), set(_ids(self._former))
        for file in sorted((self._folder / "frames").iterdir()):
            ours = _FRAME.fullmatch(file.name)
            if ours is None:
                continue
            place, known = ours.groups()
            self._next = max(self._next, int(place) + 1)
            if known in self:  # its answer was written, and then the process ended
                file.unlink()
            else:
                self._files[known], self._sizes[known] = file, file.stat().st_size

    def _append(self, content: bytes) -> None:
        """Make the journal longer, or leave it as it was."""
        descriptor = os.open(self._current, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            before = os.fstat(descriptor).st_size
            try:
                write_all(descriptor, content)
                os.fsync(descriptor)
                if before == 0:
                    sync_folder(self._folder)
            except OSError:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)

    def _forget(self, known: str) -> None:
        self._files[known].unlink(missing_ok=True)
        del self._files[known], self._sizes[known]

    def _read(self, file: Path) -> Frame | None:
        try:
            line, _, image = read_regular(file, limit=_FRAME_BYTES).partition(b"\n")
            head = msgspec.json.decode(line, type=_Head)
        except (OSError, *UNREADABLE):
            return None
        if hashlib.sha256(image).hexdigest() != head.sha256:
            return None
        return Frame(id=head.id, source=head.source, number=head.number, taken=head.taken, image=image, file=head.file)


def _content(frame: Frame) -> bytes:
    """A frame's file."""
    return _head(frame, hashlib.sha256(frame.image).hexdigest()) + frame.image


def _head(frame: Frame, sha256: str) -> bytes:
    """What stands in a frame's file before the image."""
    head = _Head(
        id=frame.id,
        source=frame.source,
        number=frame.number,
        taken=frame.taken,
        file=frame.file,
        sha256=sha256,
    )
    return msgspec.json.encode(head) + b"\n"


def _ids(journal: Path) -> Iterator[str]:
    if not journal.exists():
        return
    with journal.open("rb") as lines:
        for line in lines:
            try:
                yield msgspec.json.decode(line, type=_Done).id
            except UNREADABLE:  # a line that somebody has edited
                continue
