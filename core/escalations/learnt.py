"""Which drafters were learnt from a journal, so that they can be marked once an answer of it is deleted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from cutline.core.json_errors import UNREADABLE
from cutline.core.storage.files import extend_file

RECORD = "learnt.jsonl"


class LearntRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The `bundle` of a drafter that learnt from a journal, whose identity was `identity`, and the `tenants` in it."""

    bundle: str
    identity: str
    tenants: tuple[str, ...]


def note_learnt(journal: Path, record: LearntRecord) -> None:
    """Note in a journal what was learnt from it. Raises InputError, StorageError."""
    extend_file(journal / RECORD, msgspec.json.encode(record).decode() + "\n")


def learnt_from(journal: Path) -> Iterator[LearntRecord]:
    """What was learnt from a journal. A line that does not read is passed over."""
    try:
        lines = (journal / RECORD).read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            yield msgspec.json.decode(line, type=LearntRecord)
        except UNREADABLE:
            continue
