"""Retokenization: a text that one model says, in the tokens of another.

Both vocabularies have the same text and cut it elsewhere. What is said is not over yet, and the next character may
change the tokens of the last word: a token counts as firm only once a word behind it has begun. Even so a tokenizer's
own tokens cannot be foretold everywhere; one that turns out otherwise is a draft that is wrong, and costs no more.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from cutline.models.law.sampling import agreeing
from cutline.models.vocabulary import StreamDecoder, Vocabulary

ANCHOR = 24  # characters before a seam from which on is encoded, so that tokens are those of the whole text
FARTHEST = 200  # characters back that a word's beginning is looked for
LONGEST = 32  # characters of a word; of a longer one all but so many are firm
WIDE = 0x2E80  # from here on scripts are written without spaces, and a character or two are a word


class TokenizedText:
    """A text that grows token by token: `tokens`, the `text` of its whole characters, and where in it each token ends.

    Of a character that is cut short nothing is in the text.
    """

    def __init__(self, vocabulary: Vocabulary, tokens: Sequence[int] = ()) -> None:
        self.tokens: list[int] = []
        self.ends: list[int] = []
        self.text = ""
        self._decoder = StreamDecoder(vocabulary)
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """Append a token."""
        self.text += self._decoder.push(token)
        self.tokens.append(token)
        self.ends.append(len(self.text))

    def replace(self, start: int, end: int, text: str) -> None:
        """Have `text` in place of the characters `[start, end)`, which stand for the same tokens."""
        grown = len(text) - (end - start)
        self.text = self.text[:start] + text + self.text[end:]
        self.ends = [
            one if one <= start else max(start, min(one, start + len(text))) if one < end else one + grown
            for one in self.ends
        ]


def settled(text: str, start: int) -> int:
    """Up to where the characters of `text` from `start` on keep their tokens: before its last word."""
    end = place = len(text)
    if end - start > 0 and ord(text[-1]) >= WIDE:
        return max(start, end - 2)
    while start < place and end - place < LONGEST and _kind(text[place - 1]) == _kind(text[-1]):
        place -= 1
    return place


def firm(vocabulary: Vocabulary, before: TokenizedText, text: str, upto: int) -> list[int]:
    """The tokens that follow `before`, where the whole is `text`: as far as what is behind `upto` changes none.

    `text` begins with that of `before`.
    """
    first, place = _anchor(before)
    given = before.tokens[first:]
    found = _common(vocabulary, text, place, upto)
    if found[: len(given)] == given:
        return found[len(given) :]
    # The tokens of `before` are not those that its text has by itself. One may begin where they end all the same.
    sizes = accumulate((len(vocabulary.bytes_of(token)) for token in found), initial=0)
    seam = sum(len(vocabulary.bytes_of(token)) for token in given)
    for count, size in enumerate(sizes):
        if size == seam:
            return found[count:]
    return _common(vocabulary, text, len(before.text), upto)


def rewritten(vocabulary: Vocabulary, said: TokenizedText, text: str) -> list[int]:
    """The tokens of `text`, those of `said` kept as far as both begin alike, up to a word's beginning before that."""
    place, boundaries = agreeing(said.text, text), set(said.ends)
    words = 0
    while place > 0:
        if _begins_word(text, place) and place in boundaries:
            words += 1
            if words > 1:  # the word before is kept back, too: it could have been one with what is new
                break
        place -= 1
    kept = bisect_left(said.ends, place) + 1 if place else 0
    return [*said.tokens[:kept], *vocabulary.encode_plain(text[place:])]


def _common(vocabulary: Vocabulary, text: str, place: int, upto: int) -> list[int]:
    """The tokens of `text` from `place` to `upto` that stay the same if the rest of it is encoded with them."""
    known = vocabulary.encode_plain(text[place:upto])
    if upto == len(text):
        return list(known)
    return list(known[: agreeing(known, vocabulary.encode_plain(text[place:]))])


def _anchor(before: TokenizedText) -> tuple[int, int]:
    """The token from which on is encoded, and the character at which it begins: a word's, a while before the end."""
    end = len(before.text)
    for index in range(len(before.tokens) - 1, 0, -1):
        place = before.ends[index - 1]
        if end - place >= ANCHOR and (_begins_word(before.text, place) or end - place > FARTHEST):
            return index, place
    return 0, 0


def _begins_word(text: str, place: int) -> bool:
    """Whether a word begins at `place`, with the space before it: there every tokenizer begins a token."""
    return 0 < place < len(text) - 1 and text[place] == " " and text[place - 1].isalpha() and text[place + 1].isalpha()


def _kind(character: str) -> str:
    """Letters, digits and their marks; white space; or signs."""
    if character.isalnum() or character == "_" or unicodedata.category(character).startswith("M"):
        return "letters"
    return "space" if character.isspace() else "signs"
