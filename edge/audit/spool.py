"""Answers that wait for an audit, in a folder: with their pictures, sealed if there is a key, also over a restart.

    01764547200123456789-9f86d081.audit    a line of JSON, then the answer and its request, closed in an envelope
    lock                                     locked by the process that uses the folder

The line has what an audit that is lost counts by. Files appear whole, by a rename. Whoever gives an answer waits for no
disk, and no answer fails with it.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from cutline.core.agreement.measures import Wording
from cutline.core.json_errors import UNREADABLE
from cutline.core.request import MAX_IMAGE_BYTES, Request
from cutline.core.storage.envelope import Envelope, SealingKey
from cutline.core.storage.files import PRIVATE, lock_folder, read_regular, remove_drafts, replace_file
from cutline.errors import CutlineError, InputError

log = logging.getLogger(__name__)

ENVELOPE = Envelope("audit", "spool of audits", "--audit-key-file")
MAX_FILE_BYTES = MAX_IMAGE_BYTES + (8 << 20)
_TIME_DIGITS = 20  # of nanoseconds since 1970, so that names sort by time
_NAME = re.compile(rf"[0-9]{{{_TIME_DIGITS}}}-[0-9a-f]{{8}}\.audit")


class DueHead(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an audit counts by: at `time`, in seconds since 1970, an answer was kept by a gate, which it is `of`."""

    time: float
    of: str
    group: str
    confidence: float


class DueAudit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An answer that is to be audited: what it counts by, what was asked, and what was said."""

    head: DueHead
    request: Request
    wording: Wording


class AuditSpool:
    """A folder of audits that this process uses, sealed by a `key` if there is one; for one event loop."""

    def __init__(self, folder: Path, *, key: SealingKey | None = None) -> None:
        """Open or make it. Raises InputError if it cannot be used, or is in use."""
        self._folder, self._key, self._failing = folder, key, False
        self._lock = lock_folder(folder, "--audit-spool")
        try:
            remove_drafts(folder)
        except OSError as error:
            os.close(self._lock)
            raise InputError(f"--audit-spool {folder} cannot be used: {error.strerror}") from None
        self._thread = ThreadPoolExecutor(1, "audits")

    def load(self, of: str, *, since: float) -> Iterator[tuple[str, DueHead, DueAudit | None]]:
        """The audits of a gate that wait, oldest first, by the names of their files; None for one that is lost.

        That is one that is torn, or of before `since`. Those of other gates are removed. Those that another key sealed
        stay as they are, to wait for it; that is told.
        """
        sealed, why = 0, ""
        for file in sorted(one for one in self._folder.iterdir() if _NAME.fullmatch(one.name)):
            line, closed = _parts(file)
            try:
                head = msgspec.json.decode(line, type=DueHead)
            except UNREADABLE:
                log.warning("an audit in %s is torn, and nothing tells of which answer", file)
                file.unlink(missing_ok=True)
                continue
            if head.of != of:  # it says nothing of this gate
                file.unlink(missing_ok=True)
            elif head.time < since:
                yield file.name, head, None
            else:
                try:
                    yield file.name, head, self._read(head, closed)
                except InputError as error:
                    sealed, why = sealed + 1, str(error)
        if sealed:
            log.warning("%d audits in %s wait for their key: %s", sealed, self._folder, why)

    def put(self, name: str, audit: DueAudit) -> None:
        """Have an audit stored; never waits and never fails."""
        self._thread.submit(self._tried, self._put, name, audit)

    def remove(self, name: str) -> None:
        """Have an audit removed that is done, or lost."""
        self._thread.submit(self._tried, (self._folder / name).unlink, True)

    def close(self) -> None:
        """Do what is left to do, and let go of the folder."""
        self._thread.shutdown()
        os.close(self._lock)

    def _put(self, name: str, audit: DueAudit) -> None:
        content = ENVELOPE.close(msgspec.msgpack.encode(audit), self._key)
        replace_file(self._folder / name, msgspec.json.encode(audit.head) + b"\n" + content, mode=PRIVATE)

    def _read(self, head: DueHead, closed: bytes) -> DueAudit | None:
        """An audit of this head, None for a torn one. Raises InputError without its key."""
        try:
            found = msgspec.msgpack.decode(ENVELOPE.open(closed, self._key), type=DueAudit)
        except InputError:
            raise
        except (ValueError, *UNREADABLE, CutlineError):
            return None
        return found if found.head == head else None

    def _tried(self, work: Callable[..., object], *given: object) -> None:
        try:
            work(*given)
        except OSError as error:
            if not self._failing:  # a full disk stays so for a while
                log.error("no audit is kept for a next start until that is mended: %s", error.strerror or error)
            self._failing = True
        else:
            if self._failing:
                log.warning("audits are kept for a next start again")
            self._failing = False


def new_name(time: float) -> str:
    """A name for the file of an audit that became due at a time, in seconds since 1970."""
    return f"{int(time * 1e9):0{_TIME_DIGITS}d}-{secrets.token_hex(4)}.audit"


def _parts(file: Path) -> tuple[bytes, bytes]:
    """The line and the rest of a file, nothing of one that cannot be read."""
    try:
        line, _, closed = read_regular(file, limit=MAX_FILE_BYTES).partition(b"\n")
    except OSError:
        return b"", b""
    return line, closed
