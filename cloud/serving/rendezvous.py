"""Where the ranks of a worker meet: a folder that nobody else can reach, gone with the worker or at the next start."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "cutline-ranks-"


@contextlib.contextmanager
def rendezvous() -> Iterator[Path]:
    """A new folder, held by this process. Those of workers that were killed are removed; nobody holds them any more."""
    _remove_left()
    with contextlib.ExitStack() as stack:
        while (folder := _held(stack)) is None:
            pass
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def _held(stack: contextlib.ExitStack) -> Path | None:
    """A new folder; None where a worker that starts just now took it for one that was left, before it was held."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        stack.enter_context(_lock(folder, fcntl.LOCK_EX))
    except FileNotFoundError:
        return None
    return folder if folder.exists() else None


def _remove_left() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Another user's cannot be opened, or not be removed, and one that is held not be locked.
        with contextlib.suppress(OSError), _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(folder)


@contextlib.contextmanager
def _lock(folder: Path, kind: int) -> Iterator[None]:
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(held, kind)
        yield
    finally:
        os.close(held)
