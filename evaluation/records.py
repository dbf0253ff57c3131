"""What came of each question in each mode, a line each in a file that a killed evaluation goes on with."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from cutline.core.json_errors import UNREADABLE
from cutline.core.request import Mode
from cutline.core.storage.files import PRIVATE, storing, write_all
from cutline.edge.generation.result import Answer
from cutline.errors import InputError


class EvalRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to the question on line `number` in a `mode`, or `why` there is none.

    `answers` are the right ones, where they are known; `tokens` are the answer's, of another server's model
    if it is `foreign`. `asked` says that a worker, or an upstream, was.
    """

    number: int
    mode: Mode | None = None
    group: str | None = None
    answers: tuple[str, ...] = ()
    text: str = ""
    tokens: tuple[int, ...] = ()
    foreign: bool = False
    confidence: float | None = None
    latency_ms: float = 0.0
    ttft_ms: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    rounds: int = 0
    joules: float | None = None
    asked: bool = False
    why: str | None = None


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    of: str
    modes: tuple[Mode, ...]


def record_of(number: int, mode: Mode, answer: Answer, *, answers: tuple[str, ...], group: str | None) -> EvalRecord:
    """What is kept of an `answer` to a question with these right `answers`."""
    return EvalRecord(
        number=number,
        mode=mode,
        group=group,
        answers=answers,
        text=answer.text,
        tokens=tuple(token.id for token in answer.tokens),
        foreign=answer.exact is None,
        confidence=answer.confidence,
        latency_ms=answer.latency_ms,
        ttft_ms=answer.ttft_ms,
        bytes_up=answer.bytes_up,
        bytes_down=answer.bytes_down,
        rounds=answer.rounds,
        joules=None if answer.energy is None else answer.energy.joules,
        asked=answer.worker is not None,
    )


class RecordFile:
    """An open file of records. `open_records` makes one."""

    def __init__(self, path: Path, descriptor: int, whole: int, last: int) -> None:
        self.path = path
        self.last = last  # line of the data that is done
        self._descriptor = descriptor
        self._whole = whole

    def put(self, records: list[EvalRecord]) -> None:
        """Add all that came of one question. Raises StorageError; what was there stays."""
        lines = b"".join(msgspec.json.encode(one) + b"\n" for one in records)
        with storing(self.path):
            try:
                write_all(self._descriptor, lines)
            except OSError:
                os.ftruncate(self._descriptor, self._whole)
                raise
        self._whole += len(lines)
        self.last = records[-1].number

    def every(self) -> Iterator[list[EvalRecord]]:
        """The records of each question, in the order of the data."""
        return (some for some, _ in _questions(self.path))


@contextmanager
def open_records(path: Path, *, of: str, modes: tuple[Mode, ...]) -> Iterator[RecordFile]:
    """Open, or make, the file at `path` of records `of` some questions in these `modes`, and hold its lock.

    A question that a kill cut short is dropped. Raises InputError for a file of others, or that another process holds.
    """
    header = msgspec.json.encode(_Header(of, modes)) + b"\n"
    with storing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process works on {path}; wait for it") from None
        with storing(path):
            with path.open("rb") as file:
                begun = file.readline()
            if begun != header:
                if not header.startswith(begun):
                    raise InputError(
                        f"{path} has answers to other questions, or in other modes; remove it, or give another as --out"
                    )
                os.ftruncate(descriptor, 0)  # a kill cut the header short, if there is any
                write_all(descriptor, header)
            whole, last = len(header), 0
            for records, end in _questions(path):
                if records[0].why is None and len(records) != len(modes):
                    break
                whole, last = end, records[0].number
            os.ftruncate(descriptor, whole)
        yield RecordFile(path, descriptor, whole, last)
    finally:
        os.close(descriptor)


def _questions(path: Path) -> Iterator[tuple[list[EvalRecord], int]]:
    """The records of each question in a file, and where they end; what is torn, and all behind it, is left out."""
    records = list[EvalRecord]()
    with path.open("rb") as file:
        at = end = len(file.readline())
        for line in file:
            try:
                if not line.endswith(b"\n"):
                    break
                record = msgspec.json.decode(line, type=EvalRecord)
            except UNREADABLE:
                break
            if records and record.number != records[0].number:
                yield records, end
                records = []
            records.append(record)
            at += len(line)
            end = at
    if records:
        yield records, end
