"""A conversation of a drafter that has a vocabulary of its own, in its target's tokens."""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cutline.edge.inference.drafter import Drafted, DraftSource
from cutline.models.pairs.retokenization import TokenizedText, firm, rewritten, settled
from cutline.models.vocabulary import Vocabulary


class RetokenizedConversation:
    """Drafts with `own` tokens and gives what they say in the `target`'s. For one thread at a time.

    Of what the drafter has said, a word is held back until the next begins. `own_stops` end what the drafter says; the
    answer ends with `stop` then. A token has the probability of what of the drafter's tokens begins in it, so that all
    together have that of the text.
    """

    def __init__(
        self,
        drafting: DraftSource,
        *,
        own: Vocabulary,
        target: Vocabulary,
        own_stops: Collection[int],
        stop: int,
    ) -> None:
        self._drafting = drafting
        self._own, self._target = own, target
        self._own_stops, self._stop = own_stops, stop
        self._said = TokenizedText(own)
        self._odds: list[float] = []  # of each of its tokens; 1 of those that the drafter did not choose
        self._end: float | None = None  # the probability of its end, once it has ended

    def draft(self, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
        """As `DraftSource.draft`, in the target's tokens."""
        given = TokenizedText(self._target, answer)
        self._go_on_from(given.text)
        steps, tried, over, count = self._steps(), -1, self._end is not None, 0
        while True:
            place = len(given.text)
            upto = len(self._said.text) if over else settled(self._said.text, place)
            if upto > place and upto != tried:
                tried = upto = self._normalized(place, upto)
                for token in firm(self._target, given, self._said.text, upto):
                    before = len(given.text)
                    given.push(token)
                    yield Drafted(token, self._probability(before, len(given.text)))
                    count += 1
                    if count == limit:
                        return
            if over:
                break
            over = not next(steps, False)
        if self._end is not None:
            yield Drafted(self._stop, self._end)

    def pooled(self) -> list[NDArray[np.float32]]:
        """As `DraftSource.pooled`."""
        return self._drafting.pooled()

    def _steps(self) -> Iterator[bool]:
        """Have the drafter say one token after another; true for each, until it ends or its context is full."""
        for drafted in self._drafting.draft(tuple(self._said.tokens), sys.maxsize - len(self._said.tokens)):
            if drafted.token in self._own_stops:
                self._end = drafted.probability
                return
            self._said.push(drafted.token)
            self._odds.append(drafted.probability)
            yield True

    def _go_on_from(self, text: str) -> None:
        """Have the drafter's text begin with `text`, of which it may be ahead already."""
        if self._said.text.startswith(text):
            return
        tokens, before = rewritten(self._own, self._said, text), self._said
        self._said = TokenizedText(self._own, tokens)
        if self._said.text != text:  # its vocabulary writes that otherwise
            self._said.replace(0, len(self._said.text), text)
        kept = next((n for n, (a, b) in enumerate(zip(before.tokens, tokens, strict=False)) if a != b), len(tokens))
        odds = self._odds[:kept]
        self._odds = [*odds, *[1.0] * (len(tokens) - len(odds))]
        self._end = None

    def _normalized(self, start: int, end: int) -> int:
        """Write the characters `[start, end)` of what was said as the target does; returns their new end."""
        text = self._said.text[start:end]
        if self._target.normalizes and (normal := self._target.decode(self._target.encode_plain(text))) != text:
            self._said.replace(start, end, normal)
            return start + len(normal)
        return end

    def _probability(self, start: int, end: int) -> float:
        """The probability, by the drafter, of its tokens that begin at one of the characters `[start, end)`."""
        ends = self._said.ends
        first = 0 if start == 0 else bisect_left(ends, start) + 1
        last = bisect_left(ends, end) + 1
        return math.prod(self._odds[first:last]) if start < end else 1.0
