"""What `cutline calibrate` asks: the lines of a file, or the demo's cards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import msgspec

from cutline.cli.calibration.pricing import PricedQuestion
from cutline.core.json_errors import UNREADABLE
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.errors import InputError
from cutline.models.images import read_image_file

MAX_LINE = 1 << 20  # bytes
MAX_POPULATIONS = 50


@dataclass(frozen=True, slots=True)
class QuestionSource:
    """A question to ask, and `read`, which gives its image: only those being asked lie in memory.

    `place` is where it stands, as errors name it, and `picture` says which images are the same. The data may name a
    `population` that it belongs to.
    """

    place: str
    picture: str
    read: Callable[[], bytes]
    text: str
    answer: str | None
    population: str | None = None

    def asked(self) -> PricedQuestion:
        """The question with its image. Raises InputError."""
        with errors_at(self.place):
            return PricedQuestion(self.read(), self.text, self.answer)


class QuestionLine(msgspec.Struct):
    """A line of a file of questions."""

    image: str
    question: str
    answer: str | None = None
    group: Annotated[str, msgspec.Meta(min_length=1, max_length=80)] | None = None


@contextmanager
def errors_at(place: str) -> Iterator[None]:
    """Errors of what is given begin with where it was given."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{place}: {error}") from None


def demo_sources(cards: int, split: Split = Split.CALIBRATION, *, seed: int = 0) -> Iterator[QuestionSource]:
    """The questions about `cards` cards of a split of the demo's."""
    for number, request in enumerate(requests(split, cards, seed=seed), 1):
        question, picture = request.question, sha256(request.image).hexdigest()
        yield QuestionSource(
            f"question {number}", picture, partial(bytes, request.image), question.text, question.answer
        )


def file_sources(data: Path) -> Iterator[QuestionSource]:
    """The questions in the file `data`, each of whose images is there. Raises InputError, naming the line."""
    populations = set[str | None]()
    for place, line in lines_of(data):
        source = _source(place, line, data.parent)
        populations.add(source.population)
        if len(populations) > MAX_POPULATIONS:
            raise InputError(f'{place}: "group" has more than {MAX_POPULATIONS} names; of so many nothing can be told')
        yield source


def lines_of(data: Path) -> Iterator[tuple[str, bytes]]:
    """Where each line of the file `data` stands, and the line. Raises InputError."""
    try:
        with data.open("rb") as file:
            lines = enumerate(iter(partial(file.readline, MAX_LINE + 1), b""), 1)
            for number, line in lines:
                if len(line) > MAX_LINE:
                    raise InputError(f"{data} line {number}: it is longer than {MAX_LINE >> 20} MiB")
                if line.strip():
                    yield f"{data} line {number}", line
    except OSError as error:
        raise InputError(f"cannot read {data}: {error.strerror}") from None


def _source(place: str, line: bytes, folder: Path) -> QuestionSource:
    try:
        said = msgspec.json.decode(line, type=QuestionLine)
    except UNREADABLE as error:
        raise InputError(f'{place} is not {{"image": FILE, "question": TEXT}}: {error}') from None
    path = image_at(place, said.image, folder)
    return QuestionSource(place, said.image, partial(read_image_file, path), said.question, said.answer, said.group)


def image_at(place: str, name: str, folder: Path) -> Path:
    """The file that an image's `name` stands for in a line at `place`, beside its file. Raises InputError."""
    path = folder / name
    try:
        found = path.is_file()  # False also for what can be no path
    except OSError as error:
        raise InputError(f"{place}: cannot read {name[:80]!r}: {error.strerror}") from None
    if not found:
        raise InputError(f"{place}: there is no file {name[:80]!r} in {folder}")
    return path
