"""Measures of agreement, each by its name: whether two answers say the same, in one sense of it.

A name says all that there is to a measure, such as `choice:yes,no` or `anls:0.8`, so that whoever reads it in a
calibration measures alike. A user's own function has a name, too, `FILE.py:function`, but is on that user's machine
alone: nothing here loads one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cutline.core.agreement.texts import choice_in, normalized, numbers_in, same_json, similarity
from cutline.errors import InputError

TOKENS = "tokens"  # the measure of a calibration that names none
TEXT = "text"
ANLS_BAR = 0.8  # that of `anls` alone
ALIKE = 0.5  # similarity below which ANLS counts nothing


@dataclass(frozen=True, slots=True)
class Wording:
    """What somebody answered: the `text`, and the `tokens` where they are the target's."""

    text: str
    tokens: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure by its whole `name`. Two answers agree whose `score`, from 0 to 1, is `bar` or more."""

    name: str
    score: Callable[[Wording, Wording], float]
    bar: float = 1.0

    @property
    def of_tokens(self) -> bool:
        """Whether it takes two models of the same tokens to compare by it."""
        return self.name == TOKENS

    def agrees(self, ours: Wording, theirs: Wording) -> bool:
        """Whether the answers agree; the second is the one that counts."""
        return self.score(ours, theirs) >= self.bar


def measure_named(name: str) -> Measure:
    """The measure of this name. Raises InputError, also for a user's own function, which no name can stand for."""
    kind, _, rest = name.partition(":")
    if is_own(name):
        raise InputError(f"{name[:80]!r} is a function of whoever calibrated by it, and is not here")
    if kind not in _MADE:
        raise InputError(f"there is no measure {kind[:40]!r} of agreement; give {NAMES}")
    return _MADE[kind](rest)


def is_own(name: str) -> bool:
    """Whether a measure is a function in somebody's file."""
    return ".py:" in name


def anls(ours: str, theirs: str) -> float:
    """The normalized Levenshtein similarity, 0 below one half: what ANLS averages.

    As Biten et al. 2019 have it ("Scene text visual question answering"): of lower case, without white space around.
    """
    alike = similarity(ours.strip().lower(), theirs.strip().lower())
    return alike if alike >= ALIKE else 0.0


def _tokens(rest: str) -> Measure:
    _nothing(TOKENS, rest)

    def score(ours: Wording, theirs: Wording) -> float:
        return float(ours.tokens is not None and ours.tokens == theirs.tokens)

    return Measure(TOKENS, score)


def _text(rest: str) -> Measure:
    _nothing(TEXT, rest)
    return Measure(TEXT, lambda ours, theirs: float(normalized(ours.text) == normalized(theirs.text)))


def _number(rest: str) -> Measure:
    _nothing("number", rest)

    def score(ours: Wording, theirs: Wording) -> float:
        found = numbers_in(theirs.text)
        return float(bool(found) and numbers_in(ours.text) == found)

    return Measure("number", score)


def _choice(rest: str) -> Measure:
    choices = _choices(rest)

    def score(ours: Wording, theirs: Wording) -> float:
        found = choice_in(theirs.text, choices)
        return float(found is not None and choice_in(ours.text, choices) == found)

    return Measure(f"choice:{','.join(choices)}", score)


def _choices(rest: str) -> Sequence[str]:
    choices = tuple(dict.fromkeys(normalized(one) for one in rest.split(",")))
    if len(choices) < 2 or "" in choices:
        raise InputError(f"choice needs two choices or more, as in choice:yes,no; it was given {rest[:40]!r}")
    return choices


def _json(rest: str) -> Measure:
    _nothing("json", rest)
    return Measure("json", lambda ours, theirs: float(same_json(ours.text, theirs.text)))


def _anls(rest: str) -> Measure:
    try:
        bar = float(rest) if rest else ANLS_BAR
    except ValueError:
        bar = 0.0
    if not ALIKE <= bar <= 1.0:
        raise InputError(f"anls agrees from a similarity on, {ALIKE} to 1, as in anls:0.8; it was given {rest[:40]!r}")
    return Measure(f"anls:{bar:g}", lambda ours, theirs: anls(ours.text, theirs.text), bar)


def _nothing(kind: str, rest: str) -> None:
    if rest:
        raise InputError(f"{kind} takes nothing behind its name; it was given {rest[:40]!r}")


_MADE: dict[str, Callable[[str], Measure]] = {
    TOKENS: _tokens,
    TEXT: _text,
    "number": _number,
    "choice": _choice,
    "json": _json,
    "anls": _anls,
}
NAMES = "tokens, text, number, choice:ONE,OTHER, json, anls[:BAR] or FILE.py:function"
