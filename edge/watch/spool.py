"""A spool: a folder of frames that wait while no worker answers, and of the answers. It survives a crash at any point.

    frames/000000000042-ID.frame    a waiting frame: a line of JSON, then the image, or those of a series
    answers.jsonl                   the journal: one line for each answer
    answers.1.jsonl                 the older lines of the journal
    question.txt                    the question about all frames
    lock                            locked by the process that uses the folder

A frame is done once its whole line is in the journal. Every file appears atomically, by a rename, and half-done work is
repaired when the folder is opened.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import msgspec

from cutline.core.json_errors import UNREADABLE
from cutline.core.storage.files import (
    PRIVATE,
    lock_folder,
    read_regular,
    remove_drafts,
    replace_file,
    sync_folder,
    write_all,
)
from cutline.edge.watch.frames import Frame
from cutline.errors import InputError
from cutline.models.images import MAX_BYTES

_MAX_QUESTION_BYTES = 1 << 20
_MAX_FRAME_BYTES = MAX_BYTES + (1 << 16)  # a refused image may be a byte longer, and there is a line before it
JOURNAL_BYTES = 8 << 20  # of each of the two journal files
_ANY_DIGEST = "0" * 64
_FRAME = re.compile(r"([0-9]{12,})-(.+)\.frame")  # number and id; other files are not the spool's


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """The line before an image in a frame's file."""

    id: str
    source: str
    number: int
    taken: float
    file: str | None
    sha256: str
    earlier: tuple[int, ...] = ()  # bytes of each image before the last, of a series


class _Done(msgspec.Struct, frozen=True):
    """The part of a line of the journal that the spool reads."""

    id: str


class Spool:
    """The spool in a folder, with at most `limit` bytes of frames; a full one drops the oldest."""

    def __init__(self, folder: Path, *, question: str, limit: int, journal: int = JOURNAL_BYTES) -> None:
        """Open and repair it. Raises InputError if it cannot be used, is in use, or has another question."""
        self._folder = folder
        self._limit = limit
        self._files, self._sizes, self._next = dict[str, Path](), dict[str, int](), 0
        self._done, self._done_before = set[str](), set[str]()
        self._journal_bytes = journal
        self._current, self._former = folder / "answers.jsonl", folder / "answers.1.jsonl"
        self._lock = lock_folder(folder, "--spool", mode=0o777)
        try:
            (folder / "frames").mkdir(exist_ok=True)
            self._check_question(question)
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
        """The number of waiting frames."""
        return len(self._sizes)

    @property
    def size(self) -> int:
        """The bytes of the waiting frames."""
        return sum(self._sizes.values())

    def has_room(self, frame: Frame) -> bool:
        """Whether no other frame must be dropped for this one; also true for one that is itself too large."""
        size = len(_head(frame, _ANY_DIGEST)) + sum(map(len, frame.images))  # without hashing them
        return size > self._limit or self.size + size <= self._limit

    def put(self, frame: Frame) -> list[str]:
        """Store a frame durably, unless it is known; returns the sources of the frames that were dropped for it.

        Raises OSError if the disk is full.
        """
        if frame.id in self:
            return []
        content = _content(frame)
        if len(content) > self._limit:
            return [frame.source]
        dropped = []
        while self.size + len(content) > self._limit:
            oldest = next(iter(self._files))
            evicted = self._read(self._files[oldest])
            self._remove(oldest)
            dropped.append(evicted.source if evicted else "")
        file = self._folder / "frames" / f"{self._next:012d}-{frame.id}.frame"
        replace_file(file, content, mode=PRIVATE)
        self._next += 1
        self._files[frame.id], self._sizes[frame.id] = file, len(content)
        return dropped

    def oldest(self, after: str | None = None) -> Frame | None:
        """The oldest waiting frame, or the next one `after` the frame with that id; None if none waits.

        A damaged file is removed.
        """
        order = list(self._files)
        start = order.index(after) + 1 if after in self._files else 0
        for known in order[start:] + order[:start]:
            frame = self._read(self._files[known])
            if frame is not None:
                return frame
            self._remove(known)
        return None

    def commit(self, frame_id: str, line: bytes) -> None:
        """Append a frame's answer, one line of JSON with its `id`, to the journal, unless it has one; remove the frame.

        On return the answer is durable. Raises OSError if the disk is full; it may then be called again.
        """
        assert b"\n" not in line
        if frame_id not in self._done and frame_id not in self._done_before:
            self._append(line + b"\n")
            self._done.add(frame_id)
        if frame_id in self._files:
            self._remove(frame_id)
        if self._current.exists() and self._current.stat().st_size > self._journal_bytes:
            self._current.replace(self._former)
            self._done, self._done_before = set(), self._done

    def close(self) -> None:
        """Release the lock."""
        os.close(self._lock)

    def _check_question(self, question: str) -> None:
        file = self._folder / "question.txt"
        if not file.exists():
            replace_file(file, question.encode(), mode=PRIVATE)
        elif read_regular(file, limit=_MAX_QUESTION_BYTES) != question.encode():
            raise InputError(f"--spool {self._folder} is of another question; give each question its own")

    def _recover(self) -> None:
        remove_drafts(self._folder)
        remove_drafts(self._folder / "frames")
        if self._current.exists():
            whole = self._current.read_bytes().rfind(b"\n") + 1
            os.truncate(self._current, whole)
        self._done, self._done_before = set(_ids(self._current)), set(_ids(self._former))
        for file in sorted((self._folder / "frames").iterdir()):
            match = _FRAME.fullmatch(file.name)
            if match is None:
                continue
            number, known = match.groups()
            self._next = max(self._next, int(number) + 1)
            if known in self:  # the process ended after its answer was written
                file.unlink()
            else:
                self._files[known], self._sizes[known] = file, file.stat().st_size

    def _append(self, content: bytes) -> None:
        """Append to the journal, or leave it unchanged. Raises OSError."""
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

    def _remove(self, known: str) -> None:
        self._files[known].unlink(missing_ok=True)
        del self._files[known], self._sizes[known]

    def _read(self, file: Path) -> Frame | None:
        try:
            line, _, image = read_regular(file, limit=_MAX_FRAME_BYTES).partition(b"\n")
            head = msgspec.json.decode(line, type=_Head)
        except (OSError, *UNREADABLE):
            return None
        if hashlib.sha256(image).hexdigest() != head.sha256:
            return None
        ends = tuple(accumulate(head.earlier))
        if any(size < 0 for size in head.earlier) or (ends and ends[-1] > len(image)):
            return None
        earlier = tuple(image[end - size : end] for end, size in zip(ends, head.earlier, strict=True))
        return Frame(
            id=head.id,
            source=head.source,
            number=head.number,
            taken=head.taken,
            image=image[ends[-1] if ends else 0 :],
            file=head.file,
            earlier=earlier,
        )


def _content(frame: Frame) -> bytes:
    """The content of a frame's file."""
    images = b"".join(frame.images)
    return _head(frame, hashlib.sha256(images).hexdigest()) + images


def _head(frame: Frame, sha256: str) -> bytes:
    """The part of a frame's file before its images."""
    head = _Head(
        id=frame.id,
        source=frame.source,
        number=frame.number,
        taken=frame.taken,
        file=frame.file,
        sha256=sha256,
        earlier=tuple(map(len, frame.earlier)),
    )
    return msgspec.json.encode(head) + b"\n"


def _ids(journal: Path) -> Iterator[str]:
    if not journal.exists():
        return
    with journal.open("rb") as lines:
        for line in lines:
            try:
                yield msgspec.json.decode(line, type=_Done).id
            except UNREADABLE:  # a line that was edited by hand
                continue
