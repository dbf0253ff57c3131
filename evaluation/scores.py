"""Whether an answer is right, or how much so, by name: those of agreement, and what only people's data have."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutline.core.agreement.measures import TOKENS, Wording, is_own, measure_named
from cutline.core.agreement.texts import normalized
from cutline.errors import InputError
from cutline.evaluation.captions import Cider, bleu, bleu_counts

Row = NDArray[np.floating[Any]]
CIDER = "cider"
PEOPLE = 3  # that have to have said so for a whole point of VQA's accuracy

_ARTICLES = {"a", "an", "the"}
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_WORDS)} | {"none": "0"}
_NUMBERS = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")  # those of names, such as bbox_2d, are none


@dataclass(frozen=True, slots=True)
class Score:
    """A score by its `name`. Of each answer there is a `row` of what is summed, and `whole` makes a mean row a figure.

    `shares` says that an answer is right or wrong, so that figures are shares.
    """

    name: str
    row: Callable[[str, Sequence[str]], Row]
    whole: Callable[[Row], float] = lambda mean: float(mean[0])
    shares: bool = False


def score_named(name: str, references: Callable[[], Iterable[Sequence[str]]] = lambda: ()) -> Score:
    """The score of this name, for data with these `references`. Raises InputError."""
    kind, _, rest = name.partition(":")
    if kind == "exact" and not rest:
        return _best(name, lambda text, right: float(text.strip() == right.strip()), shares=True)
    if kind == "vqa" and not rest:
        return Score(name, lambda text, answers: np.array([vqa(text, answers)]))
    if kind == "iou":
        bar = _bar(rest)
        if bar is None:
            return _best(name, iou, shares=False)
        return _best(name, lambda text, right: float(iou(text, right) >= bar), shares=True)
    if kind == "bleu" and not rest:
        return Score(name, bleu_counts, bleu)
    if kind == CIDER and not rest:
        cider = Cider(references())
        return Score(name, lambda text, answers: np.array([cider.score(text, answers)]))
    if kind == TOKENS or is_own(name):
        raise InputError(f"a right answer is text, which {kind[:40]!r} does not compare; give {NAMES}")
    try:
        measure = measure_named(name)
    except InputError as error:
        if rest:
            raise
        raise InputError(f"there is no score {kind[:40]!r}; give {NAMES}") from error
    shares = kind != "anls" or bool(rest)

    def said(text: str, right: str) -> float:
        found = measure.score(Wording(text), Wording(right))
        return float(found >= measure.bar) if shares else found

    return _best(name, said, shares=shares)


NAMES = "exact, text, vqa, anls[:BAR], number, choice:ONE,OTHER, json, bleu, cider or iou[:BAR]"


def vqa(text: str, answers: Sequence[str]) -> float:
    """VQA's accuracy: of ten people's answers a third of a point for each that is the same, left out one by one.

    Where there are too few people for that, it takes one that says the same.
    """
    said, same = vqa_words(text), [vqa_words(one) for one in answers]
    count = same.count(said)
    if len(same) <= PEOPLE:
        return float(count > 0)
    with_it = min(1.0, (count - 1) / PEOPLE) if count else 0.0
    without = min(1.0, count / PEOPLE)
    return (count * with_it + (len(same) - count) * without) / len(same)


def vqa_words(text: str) -> str:
    """A text as VQA compares it: words without articles, numbers in digits."""
    return " ".join(_DIGITS.get(word, word) for word in normalized(text).split() if word not in _ARTICLES)


def boxes_in(text: str) -> list[tuple[float, ...]]:
    """The boxes (left, top, right, bottom) that a text gives, four numbers each."""
    found = list(map(float, _NUMBERS.findall(text)))
    return [tuple(found[at : at + 4]) for at in range(0, len(found) - 3, 4)]


def iou(text: str, right: str) -> float:
    """The intersection over union of the boxes in two texts, paired from the best on; one without a partner has 0."""
    ours, theirs = boxes_in(text), boxes_in(right)
    most, total = max(len(ours), len(theirs)), 0.0
    while ours and theirs:
        alike, one, other = max((_overlap(one, other), one, other) for one in ours for other in theirs)
        total += alike
        ours.remove(one)
        theirs.remove(other)
    return total / most if most else 0.0


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    sides = [max(0.0, min(one[axis + 2], other[axis + 2]) - max(one[axis], other[axis])) for axis in (0, 1)]
    both = sides[0] * sides[1]
    whole = sum(max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]) for box in (one, other)) - both
    return both / whole if whole else 0.0


def _best(name: str, said: Callable[[str, str], float], *, shares: bool) -> Score:
    def row(text: str, answers: Sequence[str]) -> Row:
        return np.array([max(said(text, one) for one in answers)])

    return Score(name, row, shares=shares)


def _bar(rest: str) -> float | None:
    if not rest:
        return None
    try:
        bar = float(rest)
    except ValueError:
        bar = 0.0
    if not 0.0 < bar <= 1.0:
        raise InputError(f"iou takes a share from which on a box is right, as in iou:0.5; it was given {rest[:40]!r}")
    return bar
