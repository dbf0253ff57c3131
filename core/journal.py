"""A journal of long work: each result is kept when it is there, and taken up by the next attempt.

A file of lines of JSON. The first names what the work is made from, each other one a key and its result. A line that a
kill cut short is dropped, and so is a whole journal of other work.
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

from cutline.core.files import PRIVATE, storing, write_all
from cutline.errors import InputError

SYNC_SECONDS = 1.0  # of results that a power cut may cost; a kill costs none that `put` has returned from


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    inputs: str


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str
    result: msgspec.Raw


class Journal:
    """The results in an opened journal's file. Use `open_journal`."""

    def __init__(self, path: Path, descriptor: int, results: dict[str, msgspec.Raw]) -> None:
        self.found = len(results)  # of an earlier attempt
        self._path = path
        self._descriptor = descriptor
        self._results = results
        self._synced = time.monotonic()

    @property
    def names(self) -> tuple[str, ...]:
        """The keys of all results, the oldest first."""
        return tuple(self._results)

    def get(self, key: str) -> bytes | None:
        """The result under this key, as JSON, None where there is none yet."""
        return None if (found := self._results.get(key)) is None else bytes(found)

    def put(self, key: str, result: Any) -> None:
        """Keep what msgspec encodes of `result`; on return it outlives this process.

        Raises StorageError where there is no room; all results before are kept.
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
        """Remove it: what was made of the results is where it belongs."""
        self._path.unlink(missing_ok=True)


@contextmanager
def open_journal(path: Path, *, inputs: str) -> Iterator[Journal]:
    """The journal in a file, of work that is made from what `inputs` says; it is ours alone until it is left.

    Raises InputError where another process works on it, or no file can be there, StorageError where there is no room.
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
    """The results in a file, and how many bytes of it are whole lines of this work; none of another's."""
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
                    one = msgspec.json.decode(line, type=_Line)
                    results[one.key] = one.result.copy()
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                break  # a disk's fault: what stands before it still counts
            whole += len(line)
    return results, whole
