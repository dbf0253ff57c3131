"""What `cutline calibrate` asks: the lines of a file, or the demo's cards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from cutline.cli.calibration.pricing import PricedQuestion
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.errors import InputError
from cutline.evaluation.questions import BadRow, lines_of, read_rows

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
    for row in read_rows(data):
        place = f"{data} line {row.number}"
        if isinstance(row, BadRow):
            raise InputError(f"{place}: {row.why}")
        populations.add(row.group)
        if len(populations) > MAX_POPULATIONS:
            raise InputError(f'{place}: "group" has more than {MAX_POPULATIONS} names; of so many nothing can be told')
        answer = row.answers[0] if row.answers else None
        yield QuestionSource(place, row.picture, row.read, row.text, answer, row.group)


def whole_lines(data: Path) -> Iterator[tuple[str, bytes]]:
    """Where each line of the file `data` stands, and the line. Raises InputError."""
    for number, line in lines_of(data):
        place = f"{data} line {number}"
        if isinstance(line, BadRow):
            raise InputError(f"{place}: {line.why}")
        yield place, line
