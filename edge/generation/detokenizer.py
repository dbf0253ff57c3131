"""An answer's tokens as text, which ends before the first of some words."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cutline.edge.generation.result import Likely, Provenance, Token
from cutline.models.vocabulary import StreamDecoder, Vocabulary
from cutline.protos.messages import Likelihood


class Transcript:
    """Tokens become text in order. What may be the beginning of a word in `stop` is held back until that is known.

    The texts of all tokens, joined, are the answer's; once it is `stopped` nothing is added any more. Tokens have their
    likelihoods where they are `likely`.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str] = (), *, likely: bool = True) -> None:
        self.tokens: list[Token] = []
        self.stopped = False
        self._vocabulary = vocabulary
        self._stop = tuple(stop)
        self._likely = likely
        self._decoder = StreamDecoder(vocabulary)
        self._held: list[Token] = []

    @property
    def text(self) -> str:
        """The answer so far, without the space around it."""
        return "".join(token.text for token in self.tokens).strip()

    def guess(self, tokens: Sequence[int]) -> tuple[int, str]:
        """Where the answer's text ends so far, and how it goes on if the answer is `tokens`; for any thread."""
        position = len(self.tokens)
        text = self._vocabulary.decode(tokens[position:])
        return position, text[: min((at for word in self._stop if (at := text.find(word)) >= 0), default=len(text))]

    def empty(self) -> Transcript:
        """Another one, without tokens."""
        return Transcript(self._vocabulary, self._stop, likely=self._likely)

    def add(self, token: int, source: Provenance, likelihood: Likelihood | None = None) -> tuple[Token, ...]:
        """The tokens that are settled with this one, if any."""
        if self.stopped:
            return ()
        if not self._likely:
            likelihood = None
        logprob, likely = (None, ()) if likelihood is None else (likelihood.logprob, likelihood.alternatives)
        alternatives = tuple(Likely(one, self._vocabulary.decode([one]), of) for one, of in likely)
        self._held.append(Token(token, self._decoder.push(token), source, logprob, alternatives))
        held = "".join(one.text for one in self._held)
        ends = [at for word in self._stop if (at := held.find(word)) >= 0]
        if ends:
            self.stopped = True
            self._held = _before(self._held, min(ends))
            return self._release(len(self._held))
        return self._release(_safe(self._held, len(held) - _beginning(held, self._stop)))

    def finish(self) -> tuple[Token, ...]:
        """The answer is over: the tokens that were still held back."""
        if (rest := self._decoder.finish()) and self._held and not self.stopped:
            self._held[-1] = msgspec.structs.replace(self._held[-1], text=self._held[-1].text + rest)
        elif rest and self.tokens and not self.stopped:
            self.tokens[-1] = msgspec.structs.replace(self.tokens[-1], text=self.tokens[-1].text + rest)
        return self._release(len(self._held))

    def _release(self, count: int) -> tuple[Token, ...]:
        released = tuple(self._held[:count])
        del self._held[:count]
        self.tokens += released
        return released


def _beginning(text: str, words: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of one of `words`."""
    longest = max((len(word) - 1 for word in words), default=0)
    return next((n for n in range(longest, 0, -1) if any(len(w) > n and text.endswith(w[:n]) for w in words)), 0)


def _safe(tokens: Sequence[Token], characters: int) -> int:
    """How many of the first tokens end within so many characters."""
    count = 0
    for token in tokens:
        characters -= len(token.text)
        if characters < 0:
            break
        count += 1
    return count


def _before(tokens: Sequence[Token], characters: int) -> list[Token]:
    """The tokens of the first so many characters, the last of them cut short."""
    kept: list[Token] = []
    for token in tokens:
        if characters <= 0:
            break
        kept.append(msgspec.structs.replace(token, text=token.text[:characters]))
        characters -= len(token.text)
    return kept
