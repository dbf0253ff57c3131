"""What one may ask about a card, in several wordings, and the right answer to each."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from cutline.demo.cards import Card, Digit

WORDINGS: dict[str, tuple[str, ...]] = {
    "read": (
        "Read the digits.",
        "Which digits are on the card?",
        "What numbers do you see?",
        "List the digits in order.",
        "What does the card say?",
    ),
    "sum": (
        "What is the sum of the digits?",
        "Add up the digits.",
        "What do the numbers add up to?",
        "Give the total of all digits.",
    ),
    "count": (
        "How many digits are there?",
        "Count the digits.",
        "How many numbers do you see?",
        "What is the number of digits on the card?",
    ),
    "colour": (
        "What colour is the digit at the {place}?",
        "Name the colour at the {place}.",
        "In which colour is the {place} digit?",
        "The digit at the {place}: what is its colour?",
    ),
    "digit": (
        "Which digit is at the {place}?",
        "What number do you see at the {place}?",
        "Read the {place} digit.",
        "Name the digit at the {place}.",
    ),
    "describe": (
        "Describe the card.",
        "What is on this card?",
        "Tell me what you see.",
        "Give a description of the picture.",
    ),
}
KINDS = tuple(WORDINGS)


@dataclass(frozen=True, slots=True)
class CardQuestion:
    """A question about one card, its kind (a name of `KINDS`) and its right answer."""

    kind: str
    text: str
    answer: str


def ask(card: Card, kind: str, rng: np.random.Generator) -> CardQuestion:
    """A question of `kind` about `card`, in one of its wordings, at one of the card's digits where it names a place."""
    digit = card.digits[rng.integers(len(card.digits))]
    wording = WORDINGS[kind][rng.integers(len(WORDINGS[kind]))]
    return CardQuestion(kind, wording.format(place=digit.place), answer_to(card, kind, digit.place))


def answer_to(card: Card, kind: str, place: str) -> str:
    """The right answer to a question of `kind` about `card`, at `place` where it names one (there must be a digit)."""
    digits = card.digits
    match kind:
        case "read":
            return " ".join(str(digit.value) for digit in digits)
        case "sum":
            return _addition([digit.value for digit in digits])
        case "count":
            return str(len(digits))
        case "colour":
            return _at(digits, place).colour
        case "digit":
            return str(_at(digits, place).value)
        case "describe":
            shown = [f"a {digit.colour} {digit.value} at {digit.place}" for digit in digits]
            listed = shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
            return f"The card shows {listed}."
    raise ValueError(f"no question kind {kind!r}; there are {', '.join(KINDS)}")


def _at(digits: tuple[Digit, ...], place: str) -> Digit:
    return next(digit for digit in digits if digit.place == place)


def _addition(values: list[int]) -> str:
    """Step by step, as a child adds: "3 + 7 = 10, 10 + 1 = 11". One digit is its own sum."""
    totals = list(accumulate(values))
    steps = zip(totals, values[1:], totals[1:], strict=False)
    return ", ".join(f"{a} + {b} = {total}" for a, b, total in steps) or str(values[0])
