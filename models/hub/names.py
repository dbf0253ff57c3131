"""What a model is called: OWNER/NAME[@REVISION] on a hub, and OWNER/NAME or NAME in the user's own folder."""

from __future__ import annotations

import re

import msgspec

from cutline.errors import InputError

_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_NAME = re.compile(rf"((?:{_PART}/)?{_PART})(?:@([\w./-]{{1,100}}))?", re.ASCII)
_SLASH = "--"  # stands for it in names of folders; hubs have no name with it either


class ModelName(msgspec.Struct, frozen=True):
    """A model's `name`, and the revision of it if one was given: a branch, a tag, or the beginning of a commit."""

    name: str
    revision: str | None = None

    @classmethod
    def read(cls, text: str) -> ModelName:
        """The name that a text is. Raises InputError."""
        found = _NAME.fullmatch(text)
        if found is None or ".." in text or _SLASH in text:
            raise InputError(f"{text[:80]!r} names no model; give OWNER/NAME, or OWNER/NAME@REVISION")
        return cls(found[1], found[2])

    @property
    def owned(self) -> bool:
        """Whether it has an owner, as every name on a hub has."""
        return "/" in self.name

    @property
    def last(self) -> str:
        """Without the owner."""
        return self.name.rpartition("/")[2]

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def folder_name(name: str, version: str) -> str:
    """The name of the folder of a version of a model: the beginning of a commit, or a bundle's role."""
    return _SLASH.join((*name.split("/"), version))


def name_in(folder: str) -> str:
    """The model's name in that of its folder."""
    return "/".join(folder.split(_SLASH)[:-1])
