"""How a worker's log is written: lines for people, or a JSON object a line for machines."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import time
from pathlib import Path
from typing import Any

from cutline.errors import InputError

FORMS = ("text", "json")


def write_logs(form: str, audit: Path | None = None) -> None:
    """Write logs to stderr as one of FORMS, and what is audited to the end of a file as well. Raises InputError."""
    if form not in FORMS:
        raise InputError(f"--log is {form}; choose {' or '.join(FORMS)}")
    formatter = JsonLines() if form == "json" else TextLines("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if audit is not None:
        try:
            os.close(os.open(audit, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
            # Notices where another process has moved the file away, to begin a new one.
            file = logging.handlers.WatchedFileHandler(audit, encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {audit}: {error.strerror}") from None
        file.setFormatter(JsonLines())
        logging.getLogger("cutline.audit").addHandler(file)
    for handler in handlers:
        handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=handlers)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a record says beside its message."""
    return getattr(record, "fields", {})


class TextLines(logging.Formatter):
    """A line for people: the message, and its fields after it."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        said = " ".join(f"{key}={value}" for key, value in fields_of(record).items() if value != "")
        line = super().format(record)
        return f"{line} {said}" if said else line


class JsonLines(logging.Formatter):
    """A JSON object in one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; times are UTC."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=True)
