"""A journal of long work: it stores each result, so that an attempt after a crash resumes where the last one stopped.

The file holds lines of JSON: first a header that names the inputs of the work, then a key and its result a line. A line
that a kill cut short is dropped. So is a journal of other inputs.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from cutline.core.storage.files import PRIVATE, storing, write_all
from cutline.errors import InputError

SYNC_SECONDS = 1.0  # between syncs: a power cut may cost so much work; a kill costs nothing that `put` has stored


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    inputs: str


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str
    result: msgspec.Raw


class Journal:
    """The results in an open journal file. `open_journal` makes one."""

    def __init__(self, path: Path, descriptor: int, results: dict[str, msgspec.Raw]) -> None:
        self.found = len(results)  # by an earlier attempt
        self._path = path
        self._descriptor = descriptor
        self._results = results
        self._synced = time.monotonic()

    @property
    def names(self) -> tuple[str, ...]:
        """The keys of all results, oldest first."""
        return tuple(self._results)

    def get(self, key: str) -> bytes | None:
        """The result of `key` as JSON, or None if there is none yet."""
        return None if (found := self._results.get(key)) is None else bytes(found)

    def put(self, key: str, result: Any) -> None:
        """Store `result`, encoded by msgspec. Once this returns, the result survives a kill of the process.

        Raises StorageError if the disk is full or fails; earlier results stay.
        """
        line = _Line(key, msgspec.Raw(msgspec.json.encode(result)))
        with storing(self._path):
            before = os.lseek(self._descriptor, 0, os.SEEK_END)
            try:
                write_all(self._descriptor, msgspec.json.encode(line) + b"\n")
            except OSError:
                os.ftruncate(self._descriptor, before)
                raise
            if (now := time.monotonic()) - self._synced > SYNC_SECONDS:
                os.fsync(self._descriptor)
                self._synced = now
        self._results[key] = line.result

    def finish(self) -> None:
        """Remove the file, once the work is done."""
        self._path.unlink(missing_ok=True)


@contextmanager
def open_journal(path: Path, *, inputs: str) -> Iterator[Journal]:
    """Open, or make, the journal at `path` of work on `inputs`, and hold its lock until the context ends.

    Raises InputError if another process holds it or the path cannot be written, StorageError if the disk is full.
    """
    with storing(path):
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, PRIVATE)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InputError(f"{path} is no regular file; remove it")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process works on {path}; wait for it") from None
        with storing(path):
            results, whole = _read(descriptor, inputs)
            os.ftruncate(descriptor, whole)
            if whole == 0:
                try:
                    write_all(descriptor, msgspec.json.encode(_Header(inputs)) + b"\n")
                except OSError:
                    path.unlink()
                    raise
        yield Journal(path, descriptor, results)
    finally:
        os.close(descriptor)


def _read(descriptor: int, inputs: str) -> tuple[dict[str, msgspec.Raw], int]:
    """The results in a file, and the bytes of its intact lines; nothing and 0 if its header names other inputs."""
    results, whole = dict[str, msgspec.Raw](), 0
    with os.fdopen(os.dup(descriptor), "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                if whole == 0:
                    if msgspec.json.decode(line, type=_Header).inputs != inputs:
                        return {}, 0
                else:
                    entry = msgspec.json.decode(line, type=_Line)
                    results[entry.key] = entry.result.copy()
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                break  # a damaged line: those before it still count
            whole += len(line)
    return results, whole
