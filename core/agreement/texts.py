"""What of a text counts when answers are compared: its words, numbers or value, and how alike two are."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from contextlib import suppress
from decimal import Decimal
from typing import Any

import msgspec

from cutline.core.json_errors import UNREADABLE

_MARKS = ".,;:!?…。、\"'“”\u2018\u2019«»()[]{}*_`"  # about a word, that do not change what it says
# A comma before three digits parts thousands; a sign counts where no word ends before it.
_NUMBER = re.compile(r"(?:(?<![\w.])[-\u2212])?(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)(?:\.\d+)?")


def normalized(text: str) -> str:
    """The words of `text` with one space between, in one case and one form, without the marks about them."""
    words = (word.strip(_MARKS) for word in unicodedata.normalize("NFKC", text).casefold().split())
    return " ".join(word for word in words if word)


def numbers_in(text: str) -> tuple[Decimal, ...]:
    """The numbers that are written in digits in `text`, in their order."""
    found = _NUMBER.findall(unicodedata.normalize("NFKC", text))
    return tuple(Decimal(one.replace(",", "").replace("\u2212", "-")) for one in found)


def choice_in(text: str, choices: Collection[str]) -> str | None:
    """The one of the normalized `choices` that stands in `text` as words; None where none does, or several do."""
    longest_first = sorted(choices, key=len, reverse=True)  # one that is part of another is not in it
    either = "|".join(map(re.escape, longest_first))
    found = set(re.findall(rf"(?<!\S)(?:{either})(?!\S)", normalized(text)))
    return found.pop() if len(found) == 1 else None


def same_json(ours: str, theirs: str) -> bool:
    """Whether both are JSON of the same value: whatever the order of keys, the white space, and 1 or 1.0."""
    with suppress(*UNREADABLE):
        return _same(msgspec.json.decode(ours), msgspec.json.decode(theirs))
    return False


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    truths = isinstance(one, bool), isinstance(other, bool)  # which Python takes for 0 and 1
    return truths[0] == truths[1] and bool(one == other)


def similarity(one: str, other: str) -> float:
    """1 less the Levenshtein distance, as a share of the longer text's characters; 1 of two empty ones."""
    longest = max(len(one), len(other))
    return 1.0 - distance(one, other) / longest if longest else 1.0


def distance(one: str, other: str) -> int:
    """The Levenshtein distance: how many characters to put in, take out or change make one text of the other."""
    row = list(range(len(other) + 1))  # of the part of `one` so far, to each beginning of `other`
    for count, character in enumerate(one, 1):
        before, row[0] = row[0], count
        for place, against in enumerate(other, 1):
            changed = before + (character != against)
            before = row[place]
            row[place] = min(changed, before + 1, row[place - 1] + 1)
    return row[-1]
