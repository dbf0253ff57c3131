"""A journal of escalations: a folder with a folder a tenant, in which each entry is a file.

    TENANT/01764547200123456789-9f86d081.entry     `_` in place of the name where nobody is known
    learnt.jsonl                                     drafters that were learnt from it, see `Learnt`
    lock                                             locked by the process that writes

Files appear whole, by a rename. So entries may be read, and those of a tenant removed, while a process writes.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cutline.core.escalations.escalation import ENVELOPE, MAX_ENTRY_BYTES, Escalation, decode, encode
from cutline.core.request import TENANT
from cutline.core.storage.envelope import SealingKey
from cutline.core.storage.files import PRIVATE, lock_folder, open_regular, read_regular, remove_drafts, replace_file
from cutline.errors import InputError

NOBODY = "_"  # the folder of the tenant ""
LEAST_BYTES = 1 << 20
_TIME_DIGITS = 20  # of nanoseconds since 1970, so that names sort by time
_ENTRY = re.compile(rf"[0-9]{{{_TIME_DIGITS}}}-[0-9a-f]{{8}}\.entry")
_HASHED = re.compile(r"_[0-9a-f]{16}")  # the folder of a tenant whose name could be none
_HEAD_BYTES = 128  # of a file, that tell by which key it is sealed


@dataclass(frozen=True, slots=True)
class EntryFile:
    """An entry's file, its `tenant`, and how many bytes it has."""

    path: Path
    tenant: str
    size: int

    @property
    def time(self) -> float:
        """When its question was answered, in seconds since 1970."""
        return int(self.path.name[:_TIME_DIGITS]) / 1e9


def files_in(journal: Path, tenant: str | None = None) -> list[EntryFile]:
    """The entries of a journal, oldest first: of all tenants, or of one. Raises InputError where there is none."""
    folders = [one for one in _folders(journal) if tenant is None or one.name == folder_of(tenant)]
    found = []
    for folder in folders:
        with suppress(FileNotFoundError):  # a tenant that is removed meanwhile
            for file in folder.iterdir():
                if _ENTRY.fullmatch(file.name):
                    with suppress(FileNotFoundError):
                        found.append(EntryFile(file, tenant_of(folder.name), file.stat().st_size))
    return sorted(found, key=lambda one: one.path.name)


def entries_in(journal: Path, key: SealingKey | None, tenant: str | None = None) -> Iterator[Escalation | None]:
    """The entries themselves, oldest first; None for each that is torn.

    Raises InputError where there is no journal, and for one that is sealed by another key.
    """
    for file in files_in(journal, tenant):
        with suppress(FileNotFoundError):  # it had to make room
            yield _read(file.path, key)


def is_torn(file: EntryFile, key: SealingKey | None) -> bool | None:
    """Whether a file is no whole entry; None where only its key would tell. Raises InputError for another key."""
    try:
        return _read(file.path, key) is None
    except FileNotFoundError:
        return False
    except InputError:
        if key is not None:
            raise
        return None


def _read(file: Path, key: SealingKey | None) -> Escalation | None:
    """The entry in a file, None for a torn one. Raises FileNotFoundError, and InputError without its key."""
    try:
        return decode(read_regular(file, limit=MAX_ENTRY_BYTES), key)
    except FileNotFoundError:
        raise
    except (OSError, ValueError):
        return None


def remove_tenant(journal: Path, tenant: str) -> int:
    """Remove all entries of a tenant; returns how many there were. Raises InputError where there is no journal."""
    count = len(files_in(journal, tenant))
    folder = journal / folder_of(tenant)
    if not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)
    if left := len(files_in(journal, tenant)):
        raise InputError(f"{left} entries of {folder} cannot be removed; remove that folder by hand")
    return count


def folder_of(tenant: str) -> str:
    """The name of a tenant's folder."""
    if re.fullmatch(TENANT, tenant) or _HASHED.fullmatch(tenant):
        return tenant
    return NOBODY + (hashlib.sha256(tenant.encode()).hexdigest()[:16] if tenant else "")


def tenant_of(folder: str) -> str:
    """The tenant of a folder, by a name that `folder_of` takes."""
    return "" if folder == NOBODY else folder


class EscalationJournal:
    """A journal that this process writes, of at most `limit` bytes: the oldest entries go first. For one thread.

    `size` is how many bytes it has.
    """

    def __init__(self, folder: Path, *, limit: int, key: SealingKey | None = None) -> None:
        """Open or make it. Raises InputError if it cannot be used, is in use, or was sealed otherwise."""
        if limit < LEAST_BYTES:
            raise InputError(f"a journal of {limit} bytes holds nothing; give {LEAST_BYTES} or more")
        self._folder, self._limit, self._key = folder, limit, key
        self._lock = lock_folder(folder, "--journal")
        try:
            for tenant in _folders(folder):
                remove_drafts(tenant)
            self._files = {one.path: one.size for one in files_in(folder)}  # the oldest first
            self.size = sum(self._files.values())
            self._check_key()
        except OSError as error:
            self.close()
            raise InputError(f"--journal {folder} cannot be used: {error.strerror}") from None
        except InputError:
            self.close()
            raise

    def put(self, entry: Escalation) -> int | None:
        """Store an entry durably; returns how many had to make room for it, None for one that is too large to be kept.

        Raises OSError, having stored nothing.
        """
        content = encode(entry, self._key)
        if len(content) > min(self._limit, MAX_ENTRY_BYTES):
            return None
        evicted = 0
        while self.size + len(content) > self._limit:
            oldest = next(iter(self._files))
            oldest.unlink(missing_ok=True)
            self.size -= self._files.pop(oldest)
            evicted += 1
        folder = self._folder / folder_of(entry.tenant)
        folder.mkdir(exist_ok=True, mode=0o700)
        file = folder / f"{int(entry.time * 1e9):0{_TIME_DIGITS}d}-{secrets.token_hex(4)}.entry"
        replace_file(file, content, mode=PRIVATE)
        self._files[file] = len(content)
        self.size += len(content)
        return evicted

    def close(self) -> None:
        """Release the lock."""
        os.close(self._lock)

    def _check_key(self) -> None:
        if not self._files:
            return
        with open_regular(next(reversed(self._files))) as file:
            if not ENVELOPE.is_closed_by(file.read(_HEAD_BYTES), self._key):
                raise InputError(f"--journal {self._folder} was sealed by another key, or by none; give each its own")


def _folders(journal: Path) -> list[Path]:
    """The tenants' folders. Raises InputError where there is no journal."""
    try:
        return [one for one in sorted(journal.iterdir()) if one.is_dir() and not one.is_symlink()]
    except OSError as error:
        raise InputError(f"no journal at {journal}: {error.strerror}") from None
