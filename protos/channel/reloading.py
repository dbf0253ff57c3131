"""What is made of files that may change while a server or an agent runs."""

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
    """What `read` makes of `files`, and makes anew once one of them has changed; the log calls it `what`.

    Files that then do not read change nothing: perhaps one of a pair is not written yet. Raises InputError if they do
    not read at first.
    """

    def __init__(self, what: str, files: tuple[Path, ...], read: Callable[[], _T]) -> None:
        self._what = what
        self._files = files
        self._read = read
        self._versions = self._look()
        self._made = read()

    def now(self) -> _T:
        """What the files make now."""
        self.changed()
        return self._made

    def changed(self) -> _T | None:
        """What they make now if that is another than before, else None. Any thread may ask."""
        return None if self._look() == self._versions else self.anew()

    def anew(self) -> _T | None:
        """What they make now, changed or not, unless they do not read."""
        self._versions = self._look()  # before they are read: what changes meanwhile is read again
        try:
            self._made = made = self._read()
        except InputError as error:
            log.error("%s; what was read before still counts", error)
            return None
        log.info("%s was read anew", self._what)
        return made

    def _look(self) -> object:
        return tuple(file_version(file) for file in self._files)
