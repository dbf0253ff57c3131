"""Files as they are written and read everywhere: whole or not at all, and bounded.

A file is written beside its place, synced, and then takes that place in one step: whoever reads sees what was there
before or all that is there now, also after a crash. A write that fails leaves what was there.
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
_ANYBODY = 0o666  # which the umask narrows
_DRAFT = re.compile(r"\..*\.[0-9a-f]{8}\.draft")
_LONGEST_NAME = 200  # bytes that a draft's name takes of its file's; 255 is what a name may have

# What is wrong with the place that was given, rather than with the disk.
_PLACES = frozenset(
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
    """Make `file` hold `content`; a new `private` one can be read by its owner alone. What is there keeps its mode.

    Raises InputError where nothing can be written at that place, StorageError where there is no room for it.
    """
    with storing(file):
        replace_file(file, content, mode=PRIVATE if private else _ANYBODY)


def replace_file(file: Path, content: bytes, *, mode: int = _ANYBODY) -> None:
    """The same for who knows what to do about an OSError."""
    try:
        before = file.stat()
    except FileNotFoundError:
        before = None
    if before is not None and not stat.S_ISREG(before.st_mode):  # a terminal, a pipe, /dev/null: nothing to replace
        # By the name that was given: /dev/stdout leads to a pipe by a link whose target is no path.
        with file.open("wb", buffering=0) as opened:
            write_all(opened.fileno(), content)
        return
    place = Path(os.path.realpath(file))  # a link stays one
    draft = _draft(place, content, mode, like=before)
    try:
        draft.replace(place)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(place.parent)


def write_new(contents: Mapping[Path, bytes]) -> None:
    """Write new files that their owner alone may read: all of them, or none. Nothing is ever written over.

    Raises InputError where one is there or cannot be, StorageError where there is no room.
    """
    made, drafts = list[Path](), dict[Path, Path]()
    try:
        for file, content in contents.items():
            with storing(file):
                drafts[file] = _draft(file, content, PRIVATE)
        for file, draft in drafts.items():
            with storing(file):
                os.link(draft, file)  # fails where there is one
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
    """Put `lines` at the end of a file that its owner alone may read, or make it with them. Raises as `write_file`.

    Of several processes that do so at once each adds its own.
    """
    with storing(file), _held(file.parent):
        try:
            before = file.read_bytes()
        except FileNotFoundError:
            before = b""
        if before and not before.endswith(b"\n"):
            before += b"\n"
        replace_file(file, before + lines.encode(), mode=PRIVATE)


def open_regular(file: Path) -> BufferedReader:
    """Open a regular file to read. Raises OSError, also for a pipe or a device: neither is waited for."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(file))
    return os.fdopen(descriptor, "rb")


def read_regular(file: Path, *, limit: int) -> bytes:
    """The content of a regular file of `limit` bytes at most. Raises OSError, also for what is longer, or no file."""
    with open_regular(file) as opened:
        content = opened.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit} bytes", str(file))
    return content


def is_draft(name: str) -> bool:
    """Whether a file of this name is one that a process left which ended while it wrote."""
    return _DRAFT.fullmatch(name) is not None


def remove_drafts(folder: Path) -> None:
    """Remove them from a folder in which nobody else writes now. Raises OSError."""
    for file in folder.iterdir():
        if is_draft(file.name):
            file.unlink()


def sync_folder(folder: Path) -> None:
    """Make names in a folder last. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_files(folder: Path) -> None:
    """Make all files in a folder last, whoever wrote them. Raises OSError."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    sync_folder(folder)


@contextlib.contextmanager
def storing(file: Path) -> Iterator[None]:
    """Say what an OSError within means for who wanted `file` to be written.

    Raises InputError for a place that cannot be, StorageError where there is no room or the disk fails.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.EEXIST:
            said = f"{file} is there already; move it away first, for nothing is written over"
            raise InputError(said) from None
        if error.errno in _PLACES:
            raise InputError(f"cannot write {file}: {error.strerror}") from None
        raise StorageError(
            f"cannot write {file}: {error.strerror or error}; what was there is as it was, make room and try again"
        ) from None


def _draft(file: Path, content: bytes, mode: int, *, like: os.stat_result | None = None) -> Path:
    """`content` in a synced file beside `file`, with mode and owner of what is there. Raises OSError, leaving none."""
    name = os.fsdecode(os.fsencode(file.name)[:_LONGEST_NAME])
    draft = file.with_name(f".{name}.{secrets.token_hex(4)}.draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        if like is not None:
            mine = os.fstat(descriptor)
            if (mine.st_uid, mine.st_gid) != (like.st_uid, like.st_gid):  # such as a service's file, written by root
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
    """Write all of `content`, also where the system takes less at once. Raises OSError."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Alone among the processes that change files in a folder by reading them first."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
