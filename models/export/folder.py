"""Reads files of a Hugging Face folder, with errors of one line that name the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from cutline.core.json_errors import UNREADABLE
from cutline.errors import InputError

Settings = dict[str, Any]

_POINTER = b"version https://git-lfs.github.com/spec/"


def content_of(path: Path) -> bytes | None:
    """The content of the file at `path`, None if there is none. Raises InputError if it is empty or a pointer."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    if not content.strip():
        raise InputError(f"{path} is empty; fetch the folder again")
    refuse_pointer(path)
    return content


def refuse_pointer(path: Path) -> None:
    """Raises InputError if the file is a Git LFS pointer."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise InputError(f"{path} is a pointer of Git LFS and not the file itself; fetch it (git lfs pull)")


def settings_of(path: Path) -> Settings | None:
    """The object in the JSON file at `path` without its null values; None if there is no file.

    Raises InputError.
    """
    content = content_of(path)
    if content is None:
        return None
    try:
        settings = msgspec.json.decode(content, type=Settings)
    except UNREADABLE as error:
        raise InputError(f"{path} does not read as a JSON object ({error})") from None
    return {key: value for key, value in settings.items() if value is not None}


def first_line(error: Exception) -> str:
    """The first paragraph of a library's error, on one line of at most 160 characters."""
    return " ".join(str(error).partition("\n\n")[0].split())[:160] or type(error).__name__
