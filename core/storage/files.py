"""Atomic writes and bounded reads of files.

A file is written as a draft beside the old one, synced, and renamed over it. A reader sees the old content or the new
one, also after a crash. A write that fails leaves the old content.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path

from cutline.errors import CutlineError, InputError, StorageError

PRIVATE = 0o600
_PUBLIC = 0o666  # narrowed by the umask
_DRAFT = re.compile(r"\..*\.[0-9a-f]{8}\.draft")
_MAX_NAME_BYTES = 200  # of a file's name in the name of its draft, which may have 255 bytes

# Errors of the path that was given, rather than of the disk.
_PATH_ERRORS = frozenset(
    {
        errno.EACCES,
        errno.EEXIST,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)


def write_file(file: Path, content: bytes, *, private: bool = False) -> None:
    """Write `content` to `file`. A new `private` file is readable by its owner alone; an existing one keeps its mode.

    Raises InputError if the path cannot be written, StorageError if the disk is full or fails.
    """
    with storing(file):
        replace_file(file, content, mode=PRIVATE if private else _PUBLIC)


def replace_file(file: Path, content: bytes, *, mode: int = _PUBLIC) -> None:
    """Write as `write_file` does, with `mode` for a new file. Raises OSError."""
    try:
        before = file.stat()
    except FileNotFoundError:
        before = None
    if before is not None and not stat.S_ISREG(before.st_mode):  # a terminal, a pipe, /dev/null cannot be replaced
        # Opened by the name that was given: /dev/stdout may be a link to a pipe, which has no path.
        with file.open("wb", buffering=0) as opened:
            write_all(opened.fileno(), content)
        return
    target = Path(os.path.realpath(file))  # a symbolic link stays one
    draft = _draft(target, content, mode, like=before)
    try:
        draft.replace(target)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def write_new(contents: Mapping[Path, bytes]) -> None:
    """Write new files that only their owner may read: all of them, or none. Overwrites nothing.

    Raises InputError if a file exists or its path cannot be written, StorageError if the disk is full or fails.
    """
    made, drafts = list[Path](), dict[Path, Path]()
    try:
        for file, content in contents.items():
            with storing(file):
                drafts[file] = _draft(file, content, PRIVATE)
        for file, draft in drafts.items():
            with storing(file):
                os.link(draft, file)  # fails if the file exists
            made.append(file)
        for folder in {file.parent for file in contents}:
            with storing(folder):
                sync_folder(folder)
    except CutlineError:
        for file in made:
            file.unlink()
        raise
    finally:
        for draft in drafts.values():
            draft.unlink()


def extend_file(file: Path, lines: str) -> None:
    """Append `lines` to a file that only its owner may read; make the file if there is none. Raises as `write_file`.

    Several processes may do so at once.
    """
    with storing(file), _locked(file.parent):
        try:
            before = file.read_bytes()
        except FileNotFoundError:
            before = b""
        if before and not before.endswith(b"\n"):
            before += b"\n"
        replace_file(file, before + lines.encode(), mode=PRIVATE)


def open_regular(file: Path) -> BufferedReader:
    """Open a regular file to read. Raises OSError, also for a pipe or a device, without waiting for it."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(file))
    return os.fdopen(descriptor, "rb")


def read_regular(file: Path, *, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises OSError, also for a longer or irregular file."""
    with open_regular(file) as opened:
        content = opened.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit} bytes", str(file))
    return content


def is_draft(name: str) -> bool:
    """Whether this is the name of a draft, such as a process leaves behind that is killed while it writes."""
    return _DRAFT.fullmatch(name) is not None


def remove_drafts(folder: Path) -> None:
    """Remove the drafts from a folder in which no other process writes. Raises OSError."""
    for file in folder.iterdir():
        if is_draft(file.name):
            file.unlink()


def sync_folder(folder: Path) -> None:
    """Sync the entries of a folder to disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_files(folder: Path) -> None:
    """Sync a folder and all files in it to disk. Raises OSError."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    sync_folder(folder)


@contextlib.contextmanager
def storing(file: Path) -> Iterator[None]:
    """Turn an OSError of writing `file` into one of Cutline's errors.

    Raises InputError if the path cannot be written, StorageError if the disk is full or fails.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.EEXIST:
            message = f"{file} is there already; move it away first, for nothing is written over"
            raise InputError(message) from None
        if error.errno in _PATH_ERRORS:
            raise InputError(f"cannot write {file}: {error.strerror}") from None
        raise StorageError(
            f"cannot write {file}: {error.strerror or error}; what was there is as it was, make room and try again"
        ) from None


def _draft(file: Path, content: bytes, mode: int, *, like: os.stat_result | None = None) -> Path:
    """Write `content` to a synced draft beside `file`, with mode and owner of `like`. Raises OSError, leaving none."""
    name = os.fsdecode(os.fsencode(file.name)[:_MAX_NAME_BYTES])
    draft = file.with_name(f".{name}.{secrets.token_hex(4)}.draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        if like is not None:
            made = os.fstat(descriptor)
            if (made.st_uid, made.st_gid) != (like.st_uid, like.st_gid):  # such as a service's file, written by root
                os.fchown(descriptor, like.st_uid, like.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(like.st_mode))
        write_all(descriptor, content)
        os.fsync(descriptor)
    except BaseException:
        draft.unlink()
        raise
    finally:
        os.close(descriptor)
    return draft


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of `content`, in several calls if the system takes less at once. Raises OSError."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def lock_folder(folder: Path, option: str, *, mode: int = 0o700) -> int:
    """Make the folder that an `option` names, unless it is there, and lock it until the descriptor is closed.

    Raises InputError if it cannot be used, or another process uses it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=mode)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    except OSError as error:
        raise InputError(f"{option} {folder} cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise InputError(f"{option} {folder} is in use by another process; give each its own") from None
        raise InputError(f"{option} {folder} cannot be used: {error.strerror}") from None
    return descriptor


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which serializes processes that read a file in it, change it and write it back."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
