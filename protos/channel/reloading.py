"""Values that are reloaded when the files they come from change."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from cutline.errors import InputError
from cutline.protos.channel.credentials import file_version

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Renewed(Generic[_T]):
    """The result of `read`, which reads `files`, and is called again once one of them changed. Logs name it `what`.

    If a changed file cannot be read, the old value stays: perhaps one of a pair is not written yet. Raises InputError
    if the first read fails. For any threads.
    """

    def __init__(self, what: str, files: tuple[Path, ...], read: Callable[[], _T]) -> None:
        self._what = what
        self._files = files
        self._read = read
        self._versions = self._file_versions()
        self._value = read()

    def now(self) -> _T:
        """The current value."""
        self.changed()
        return self._value

    def changed(self) -> _T | None:
        """The new value if the files have changed and can be read, else None."""
        return None if self._file_versions() == self._versions else self.reload()

    def reload(self) -> _T | None:
        """Read the files, changed or not; returns the new value, or None if they cannot be read."""
        self._versions = self._file_versions()  # taken before reading, so that a change meanwhile is read later
        try:
            self._value = value = self._read()
        except InputError as error:
            log.error("%s; what was read before still counts", error)
            return None
        log.info("%s was read anew", self._what)
        return value

    def _file_versions(self) -> object:
        return tuple(file_version(file) for file in self._files)
