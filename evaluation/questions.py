"""Files of questions, lines of JSON or CSV, read one by one: what is wrong about one is said of that line alone."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TextIO

import msgspec

from cutline.core.json_errors import UNREADABLE
from cutline.errors import InputError
from cutline.models.images import read_image_file

MAX_LINE = 1 << 20  # bytes
COLUMNS = ("image", "question", "answer", "group")  # of CSV; the last two may be missing


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """A question on the line `number` about what the data calls `picture`, whose file `read` gives.

    Its right `answers` may be several, or unknown: none then. The data may name a `group` to count it with.
    """

    number: int
    picture: str
    read: Callable[[], bytes]
    text: str
    answers: tuple[str, ...] = ()
    group: str | None = None


@dataclass(frozen=True, slots=True)
class BadRow:
    """`why` the line `number` is no question."""

    number: int
    why: str


class QuestionLine(msgspec.Struct):
    """A line of JSON. An `answer` that is no text is compared as JSON; a list of texts are several right ones."""

    image: str
    question: str
    answer: Any = None
    group: Annotated[str, msgspec.Meta(min_length=1, max_length=80)] | None = None


def read_rows(data: Path) -> Iterator[QuestionRow | BadRow]:
    """The questions in the file `data`, which is CSV if its name says so. Raises InputError where it cannot be read."""
    read = _csv_lines if data.suffix.lower() == ".csv" else _json_lines
    for number, said in read(data):
        if isinstance(said, BadRow):
            yield said
            continue
        try:
            image = image_at(said.image, data.parent)
        except InputError as error:
            yield BadRow(number, str(error))
            continue
        answers = _answers(said.answer)
        if not said.question.strip():
            yield BadRow(number, "the question is empty")
        else:
            yield QuestionRow(number, said.image, partial(read_image_file, image), said.question, answers, said.group)


def survey(data: Path) -> tuple[str, int]:
    """The SHA-256 of the file `data`, and how many lines it has. Raises InputError."""
    if data.exists() and not data.is_file():
        raise InputError(f"{data} is no file, which is read more than once; write the questions into one")
    digest, lines = hashlib.sha256(), 0
    try:
        with data.open("rb") as file:
            while piece := file.read(MAX_LINE):
                digest.update(piece)
                lines += piece.count(b"\n")
    except OSError as error:
        raise InputError(f"cannot read {data}: {error.strerror}") from None
    return digest.hexdigest(), lines


def lines_of(data: Path) -> Iterator[tuple[int, bytes | BadRow]]:
    """The number of each line of the file `data` that is not empty, and the line. Raises InputError."""
    try:
        with data.open("rb") as file:
            for number, line in enumerate(iter(partial(file.readline, MAX_LINE + 1), b""), 1):
                if len(line) > MAX_LINE:
                    yield number, BadRow(number, f"it is longer than {MAX_LINE >> 20} MiB")
                    while line and not line.endswith(b"\n"):  # of whoever reads on
                        line = file.readline(MAX_LINE)
                elif line.strip():
                    yield number, line
    except OSError as error:
        raise InputError(f"cannot read {data}: {error.strerror}") from None


def image_at(name: str, folder: Path) -> Path:
    """The file that an image's `name` stands for in data in `folder`. Raises InputError."""
    path = folder / name
    try:
        found = path.is_file()  # False also for what can be no path
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {name[:80]!r}: {getattr(error, 'strerror', None) or error}") from None
    if not found:
        raise InputError(f"there is no file {name[:80]!r} in {folder}")
    return path


def _json_lines(data: Path) -> Iterator[tuple[int, QuestionLine | BadRow]]:
    for number, line in lines_of(data):
        if isinstance(line, BadRow):
            yield number, line
            continue
        try:
            yield number, msgspec.json.decode(line, type=QuestionLine)
        except UNREADABLE as error:
            yield number, BadRow(number, f'it is not {{"image": FILE, "question": TEXT}}: {error}')


def _csv_lines(data: Path) -> Iterator[tuple[int, QuestionLine | BadRow]]:
    try:
        with data.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.reader(_bounded(file), strict=True)
            try:
                heading = [name.strip().lower() for name in next(rows, [])]
            except csv.Error as error:
                raise InputError(f"{data} is no CSV: {error}") from None
            if not set(COLUMNS[:2]) <= set(heading):
                raise InputError(
                    f"{data} begins with {', '.join(heading)[:80]!r}; give the columns {', '.join(COLUMNS)}"
                )
            while True:
                try:
                    cells = next(rows, None)
                except csv.Error as error:
                    yield rows.line_num, BadRow(rows.line_num, f"it is no CSV: {error}")
                    continue
                if cells is None:
                    return
                if any(cells):
                    yield rows.line_num, _csv_row(rows.line_num, heading, cells)
    except OSError as error:
        raise InputError(f"cannot read {data}: {error.strerror}") from None


def _bounded(file: TextIO) -> Iterator[str]:
    """The lines of a text, each of MAX_LINE characters at most: what is longer has a cell that CSV refuses."""
    while line := file.readline(MAX_LINE):
        yield line
        while len(line) == MAX_LINE and not line.endswith(("\n", "\r")):
            line = file.readline(MAX_LINE)


def _csv_row(number: int, heading: list[str], cells: list[str]) -> QuestionLine | BadRow:
    if len(cells) != len(heading):
        return BadRow(number, f"it has {len(cells)} cells, and there are {len(heading)} columns")
    if not "".join(cells).isprintable() and any("\udc80" <= one <= "\udcff" for one in "".join(cells)):
        return BadRow(number, "it is no text in UTF-8")
    said = {name: cell for name, cell in zip(heading, cells, strict=True) if name in COLUMNS and cell}
    try:
        return msgspec.convert({"image": "", "question": ""} | said, QuestionLine)
    except msgspec.ValidationError as error:
        return BadRow(number, str(error))


def _answers(said: Any) -> tuple[str, ...]:
    match said:
        case None:
            return ()
        case str():
            return (said,)
        case list() if said and all(isinstance(one, str) for one in said):
            return tuple(said)
        case _:
            return (msgspec.json.encode(said).decode(),)
