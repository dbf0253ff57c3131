"""The record of audits: what was seen of each group, in a file, so that an agent that starts anew does not forget."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from cutline.core.json_errors import UNREADABLE
from cutline.core.storage.files import PRIVATE, read_regular, replace_file, storing
from cutline.edge.audit.levels import LEVELS, SHUT, Watched

log = logging.getLogger(__name__)

MOST_BYTES = 4 << 20


class AuditRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was seen `of` a calibration, by group. Whose answers are audited goes by the `seed`."""

    of: str
    seed: int
    groups: Mapping[str, Watched] = {}


def read_record(file: Path, *, of: str) -> AuditRecord | None:
    """The record in a file; None if there is none, or one of another calibration.

    One that does not read is told in the log, and begun anew.
    """
    try:
        found = msgspec.json.decode(read_regular(file, limit=MOST_BYTES), type=AuditRecord)
        if any(not 0.0 <= one.strictness <= SHUT or len(one.since) != LEVELS for one in found.groups.values()):
            raise msgspec.ValidationError("it has other levels")
    except FileNotFoundError:
        return None
    except (OSError, *UNREADABLE) as error:
        log.warning("the record of audits in %s does not read, and is begun anew: %s", file, error)
        return None
    return found if found.of == of else None


def write_record(file: Path, record: AuditRecord) -> None:
    """Write a record in place of an older one. Raises StorageError, InputError."""
    with storing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, msgspec.json.encode(record), mode=PRIVATE)
