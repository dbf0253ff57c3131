"""A drafter that says a given text in the tokens of one vocabulary, before a target of another."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cutline.edge.inference.drafter import Drafted
from cutline.edge.inference.retokenized_drafter import RetokenizedConversation
from cutline.models.law.sampling import agreeing
from cutline.models.vocabulary import Vocabulary
from cutline.testing.models.tokenizers import DOCS, END

ODDS = 0.5
SCRIPTS = (
    "abcdefghij klmnop ",
    "абвгдежз ий ",
    "日本語中文字かな",
    "हिन्दी नमस्ते ",
    "🙂🚀👩‍🚀 é é ñ",
    " \n\t.,!?-()▁",
    "0123456789 ",
)
PROSE = [
    part
    for file in sorted(DOCS.rglob("*.md"))
    for part in re.split(r"\n\n+", file.read_text())
    if 60 < len(part) < 400 and part[0].isalpha()
]


class Says:
    """A drafter that says a text in its own tokens, some of them wrong."""

    def __init__(self, words: Vocabulary, text: str, *, wrong: float = 0.0) -> None:
        self.words, self.wrong, self.rng = words, wrong, np.random.default_rng(len(text))
        self.tokens = words.encode_plain(text)
        self.text = words.decode(self.tokens)
        self.end = words.added[END]

    def draft(self, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
        said = list(answer)
        for _ in range(limit):
            token = int(self.rng.integers(300, 800)) if self.rng.random() < self.wrong else self._next(said)
            yield Drafted(token, ODDS)
            if token == self.end:
                return
            said.append(token)

    def pooled(self) -> list[NDArray[np.float32]]:
        """It sees no image."""
        return []

    def _next(self, said: list[int]) -> int:
        if tuple(said) == self.tokens[: len(said)]:
            return (*self.tokens, self.end)[len(said)]
        text, place = self.text.encode(), len(b"".join(map(self.words.bytes_of, said)))
        whole = len(text[:place].decode(errors="ignore").encode())  # where the character begins that is being said
        for token in self.words.encode_plain(text[whole:].decode()):
            if whole >= place:
                return token
            whole += len(self.words.bytes_of(token))
        return self.end


def drafting(own: Vocabulary, target: Vocabulary, says: Says) -> RetokenizedConversation:
    """What such a drafter drafts, in the target's tokens."""
    return RetokenizedConversation(says, own=own, target=target, own_stops={own.added[END]}, stop=target.added[END])


def sayable(own: Vocabulary, target: Vocabulary, text: str) -> str:
    """`text` as both vocabularies write it."""
    for words in (own, target, own, target):
        text = words.decode(words.encode_plain(text))
    return text


def accepted(own: Vocabulary, target: Vocabulary, texts: Sequence[str], rng: np.random.Generator) -> float:
    """The share of what is offered that is the target's own, where the drafter says the target's text."""
    offered = right = 0
    for asked in texts:
        text = sayable(own, target, asked)
        truth = [*target.encode_plain(text), target.added[END]]
        conversation, answer = drafting(own, target, Says(own, text)), list[int]()
        while len(answer) < len(truth):
            drafts = [one.token for one in conversation.draft(answer, int(rng.integers(1, 13)))]
            good = agreeing(drafts, truth[len(answer) :])
            offered += min(len(drafts), good + 1)
            right += good
            answer = truth[: len(answer) + good + 1]  # and the worker says one token behind them
    return right / offered


def mixed(rng: np.random.Generator, characters: int) -> str:
    """A text of characters of many scripts, side by side."""
    return "".join(rng.choice([*script]) for script in rng.choice(SCRIPTS, characters))
