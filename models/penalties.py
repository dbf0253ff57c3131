"""What is changed of logits before a token is chosen: by a request's sampling, and by the model's own settings.

They are a part of the law of the next token: a function of the logits and the tokens before, the same in NumPy and
torch to the last bit, and the same as that of transformers' logits processors.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

from cutline.core.sampling import GREEDY, Sampling

_Token = Annotated[int, msgspec.Meta(ge=0, le=10**7)]
_Length = Annotated[int, msgspec.Meta(ge=0, le=10**7)]
_Tokens = tuple[_Token, ...]


class Penalties(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What is taken from the logits of every answer of a model, by the names that `generation_config.json` has for it.

    `repetition_penalty` lowers every token of prompt and answer, image tokens among them. No `no_repeat_ngram_size`
    tokens come twice in that order, and no sequence of `bad_words_ids` is completed. `suppress_tokens` never come,
    `begin_suppress_tokens` not as the first. No answer ends before `min_new_tokens`, or before it has `min_length`
    tokens with its prompt. Zero and none are no penalty.
    """

    repetition_penalty: Annotated[float, msgspec.Meta(ge=0.01, le=100)] = 1.0
    no_repeat_ngram_size: _Length = 0
    bad_words_ids: tuple[Annotated[_Tokens, msgspec.Meta(min_length=1)], ...] = ()
    suppress_tokens: _Tokens = ()
    begin_suppress_tokens: _Tokens = ()
    min_length: _Length = 0
    min_new_tokens: _Length = 0


NO_PENALTIES = Penalties()


class Past:
    """The tokens of one prompt and its answer as far as it is, and what becomes of the logits after them.

    That is by the model's own `penalties` and the request's `sampling`, in the order that transformers has.

    `first` is the position of the answer's first token, `stop_tokens` are those that end an answer, and the logits to
    come are like `like` (vocabulary,), an array of `xp` (numpy or torch). Not for two threads at once.
    """

    def __init__(
        self,
        penalties: Penalties,
        prompt: Sequence[int],
        *,
        sampling: Sampling = GREEDY,
        first: int,
        stop_tokens: Collection[int],
        like: Any,
        xp: Any = np,
    ) -> None:
        self.tokens = list[int]()
        self._penalties = penalties
        self._repetition = penalties.repetition_penalty
        if sampling.repetition_penalty is not None:
            self._repetition = sampling.repetition_penalty
        self._presence, self._frequency = sampling.presence_penalty, sampling.frequency_penalty
        # How often the answer has each token; as long as the vocabulary, so only where it is asked for.
        self._counts: Any = xp.zeros_like(like, dtype=xp.float32) if self._presence or self._frequency else None
        self._first, self._prompt = first, len(prompt)
        self._stops = frozenset(stop_tokens)
        self._xp = xp
        self._seen = xp.zeros_like(like, dtype=xp.bool)
        self._penalty = xp.full_like(like[:1], self._repetition, dtype=xp.float32)
        self._bias: Any = None
        if sampling.logit_bias:
            self._bias = xp.zeros_like(like, dtype=xp.float32)
            self._add(self._bias, dict(sampling.logit_bias))
        self._followers = defaultdict[tuple[int, ...], set[int]](set)  # what came after all but one of an n-gram
        self.extend(prompt)

    def extend(self, tokens: Sequence[int]) -> None:
        """Go on with `tokens`."""
        if not tokens:
            return
        size, begin = self._penalties.no_repeat_ngram_size, len(self.tokens)
        self.tokens += tokens
        if self._repetition != 1.0:
            self._seen[self._index(tokens)] = True
        if self._counts is not None and (new := Counter(self.tokens[max(begin, self._prompt) :])):
            self._add(self._counts, new)
        if size:
            for end in range(max(begin, size - 1), len(self.tokens)):
                self._followers[tuple(self.tokens[end - size + 1 : end])].add(self.tokens[end])

    def penalised(self, logits: Any) -> Any:
        """The logits (vocabulary,) of the next token, in float32; those given stay as they are."""
        xp = self._xp
        logits = xp.asarray(logits, dtype=xp.float32)
        if self._bias is not None:
            logits = logits + self._bias
        if self._repetition != 1.0:
            # Divided by an array: by a number, a GPU would multiply with the reciprocal, which rounds otherwise.
            lowered = xp.where(logits < 0, logits * self._penalty, logits / self._penalty)
            logits = xp.where(self._seen, lowered, logits)
        # One product and one difference a line: a library that fused them would round once instead of twice.
        if self._frequency:
            logits = logits - self._counts * xp.full_like(logits[:1], self._frequency)
        if self._presence:
            logits = xp.where(self._counts > 0, logits - xp.full_like(logits[:1], self._presence), logits)
        if banned := self._banned():
            masked = xp.zeros_like(logits, dtype=xp.bool)
            masked[self._index(sorted(banned))] = True
            logits = xp.where(masked, -float("inf"), logits)
        return logits

    def _banned(self) -> set[int]:
        """The tokens that may not come next."""
        penalties, tokens = self._penalties, self.tokens
        banned = set(penalties.suppress_tokens)
        answered = len(tokens) - self._prompt
        if answered == 0:
            banned.update(penalties.begin_suppress_tokens)
        if answered < penalties.min_new_tokens or self._first + answered < penalties.min_length:
            banned |= self._stops
        for *before, last in penalties.bad_words_ids:
            if len(before) <= len(tokens) and tokens[len(tokens) - len(before) :] == before:
                banned.add(last)
        if size := penalties.no_repeat_ngram_size:
            banned |= self._followers.get(tuple(tokens[len(tokens) - size + 1 :]), set())
        return banned

    def _add(self, sums: Any, values: Mapping[int, float]) -> None:
        """Add `values`, by their tokens, to `sums` (vocabulary,)."""
        added = self._xp.asarray(list(values.values()), dtype=self._xp.float32)
        # NumPy has one device.
        sums[self._index(list(values))] += added if self._xp is np else added.to(sums.device)

    def _index(self, tokens: Sequence[int]) -> Any:
        return self._xp.asarray(tokens, dtype=self._xp.int64)
