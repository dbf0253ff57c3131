"""How the log of a worker or an agent is written: lines for people, or a JSON object a line for machines."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from cutline.errors import InputError

log = logging.getLogger(__name__)

FORMS = ("text", "json")
LONGEST_LINE = 4096  # characters, of a line for people without its fields
LONGEST_FIELD = 200


def write_logs(form: str, audit: Path | None = None) -> None:
    """Write logs to stderr as one of FORMS, and what is audited to the end of a file as well. Raises InputError."""
    formatter = _formatter(form)
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    handlers[0].addFilter(_is_news)
    if audit is not None:
        try:
            os.close(os.open(audit, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
            # Notices where another process has moved the file away, to begin a new one.
            file = AuditFile(audit, encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {audit}: {error.strerror}") from None
        file.setFormatter(JsonLines())
        logging.getLogger("cutline.audit").addHandler(file)
    for handler in handlers:
        handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=handlers)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # whose addresses are nobody else's to read


def change_form(form: str) -> None:
    """Have what `write_logs` began go on as another of FORMS. Raises InputError."""
    formatter = _formatter(form)
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, JsonLines | TextLines):
            handler.setFormatter(formatter)


def _formatter(form: str) -> logging.Formatter:
    if form not in FORMS:
        raise InputError(f"--log is {form}; choose {' or '.join(FORMS)}")
    return JsonLines() if form == "json" else TextLines("%(asctime)s %(levelname)s %(name)s: %(message)s")


class AuditFile(logging.handlers.WatchedFileHandler):
    """The audit's file. Where it cannot be written the log says so, once until it can again."""

    _failing = False
    _failed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; what finds no room is tried again with the next one."""
        self._failed = False
        super().emit(record)
        self._failing = self._failed

    def handleError(self, record: logging.LogRecord) -> None:
        """Say what failed, in place of a traceback for every record."""
        error, self._failed = sys.exc_info()[1], True
        if not self._failing:
            why = error.strerror if isinstance(error, OSError) else error
            log.error("the audit file %s cannot be written: %s", self.baseFilename, why)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether the log needs a record: of each session it has a line that says more than the audit's."""
    return record.name != "cutline.audit" or "session" not in fields_of(record)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a record says beside its message."""
    return getattr(record, "fields", {})


class TextLines(logging.Formatter):
    """A line for people: the message, and its fields after it."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        said = "".join(f" {key}={_word(value)}" for key, value in fields_of(record).items() if value != "")
        return super().format(record) + said

    def formatMessage(self, record: logging.LogRecord) -> str:
        """What stands before the fields, in one line whatever it quotes."""
        return printable(super().formatMessage(record), LONGEST_LINE)

    def formatException(self, ei: Any) -> str:
        """A traceback, none of whose lines looks like one of the log's."""
        return textwrap.indent(super().formatException(ei), "  ")


def printable(text: str, most: int | None = None) -> str:
    """`text` with escapes in place of what a terminal would obey, cut after so many characters."""
    shown = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text[:most])
    return shown if len(text[:most]) == len(text) else f"{shown}..."


def _word(value: object) -> str:
    """A field's value that nobody takes for two fields."""
    text = printable(str(value), LONGEST_FIELD)
    return json.dumps(text, ensure_ascii=False) if any(one in text for one in ' ="') else text


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
