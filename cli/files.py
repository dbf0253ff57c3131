"""Files that hold secrets."""

from __future__ import annotations

import os
from pathlib import Path

from cutline.errors import InputError


def write_private(file: Path, content: bytes) -> None:
    """Write a new file that its owner alone may read. Raises InputError; nothing is ever written over."""
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
            opened.write(content)
    except FileExistsError:
        raise InputError(f"{file} is there already; move it away first, for nothing is written over") from None
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}") from None
