"""Penalties and biases on logits, from a request's sampling and from the model's own settings.

They are part of the law of the next token: a function of the logits and the tokens before, bit for bit the same in
NumPy and torch, and equal to transformers' logits processors.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np

from cutline.core.sampling import GREEDY, Sampling

if TYPE_CHECKING:  # its library is loaded where somebody asks for it
    from cutline.models.law.grammars import Matcher

_Token = Annotated[int, msgspec.Meta(ge=0, le=10**7)]
_Length = Annotated[int, msgspec.Meta(ge=0, le=10**7)]
_Tokens = tuple[_Token, ...]


class Penalties(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A model's own penalties, named as in `generation_config.json`. The defaults are no penalty.

    `repetition_penalty` lowers every token of prompt and answer, image tokens too. No n-gram of `no_repeat_ngram_size`
    tokens occurs twice, and no sequence of `bad_words_ids` is completed. `suppress_tokens` never occur, and
    `begin_suppress_tokens` not as the first token. No answer ends before `min_new_tokens`, or before prompt and answer
    together have `min_length` tokens.
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
    """The tokens of a prompt and its answer so far, and the penalties and biases that follow from them.

    They come from the model's `penalties` and the request's `sampling`, in transformers' order. A `matcher`, at the
    answer's beginning, adds the mask of the answer's constraint.

    `first` is the position of the answer's first token; the model's `stop_tokens` end an answer, as the request's do.
    `like` (vocabulary,), an array of `xp` (numpy or torch), has the shape and device of the logits. For one thread at a
    time.
    """

    def __init__(
        self,
        penalties: Penalties,
        prompt: Sequence[int],
        *,
        sampling: Sampling = GREEDY,
        matcher: Matcher | None = None,
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
        # The count of each token in the answer; as it is as long as the vocabulary, only if it is needed.
        self._counts: Any = xp.zeros_like(like, dtype=xp.float32) if self._presence or self._frequency else None
        self._first, self._prompt = first, len(prompt)
        self.matcher = matcher
        self._stops = sampling.stops(stop_tokens)
        self._xp = xp
        self._seen = xp.zeros_like(like, dtype=xp.bool)
        self._penalty = xp.full_like(like[:1], self._repetition, dtype=xp.float32)
        self._bias: Any = None
        if sampling.logit_bias:
            self._bias = xp.zeros_like(like, dtype=xp.float32)
            self._add(self._bias, dict(sampling.logit_bias))
        self._followers = defaultdict[tuple[int, ...], set[int]](
            set
        )  # tokens that followed the first n - 1 of an n-gram
        self.extend(prompt)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append `tokens`."""
        if not tokens:
            return
        size, begin = self._penalties.no_repeat_ngram_size, len(self.tokens)
        if self.matcher is not None:
            self.matcher.consume(tokens[max(0, self._prompt - begin) :])
        self.tokens += tokens
        chosen_from = len(self._seen)  # some prompts have a token behind those
        if self._repetition != 1.0:
            self._seen[self._index([token for token in tokens if token < chosen_from])] = True
        if self._counts is not None and (new := Counter(self.tokens[max(begin, self._prompt) :])):
            self._add(self._counts, new)
        if size:
            for end in range(max(begin, size - 1), len(self.tokens)):
                if self.tokens[end] < chosen_from:
                    self._followers[tuple(self.tokens[end - size + 1 : end])].add(self.tokens[end])

    def penalised(self, logits: Any) -> Any:
        """The `logits` (vocabulary,) of the next token with penalties and biases, as a new float32 array."""
        xp = self._xp
        logits = xp.asarray(logits, dtype=xp.float32)
        if self._bias is not None:
            logits = logits + self._bias
        if self._repetition != 1.0:
            # Divided by an array: for a number a GPU would multiply by the reciprocal, which rounds differently.
            lowered = xp.where(logits < 0, logits * self._penalty, logits / self._penalty)
            logits = xp.where(self._seen, lowered, logits)
        # As separate operations, so that both libraries round twice; a fused one would round once.
        if self._frequency:
            logits = logits - self._counts * xp.full_like(logits[:1], self._frequency)
        if self._presence:
            logits = xp.where(self._counts > 0, logits - xp.full_like(logits[:1], self._presence), logits)
        banned = self._banned()
        if self.matcher is not None:
            allowed = self.matcher.allowed()
            left = allowed.copy()
            left[sorted(banned)] = False
            # Where nothing is left the constraint has the last word: no answer that breaks it is of any use.
            masked = xp.asarray(~(left if left.any() else allowed))
            logits = xp.where(masked if xp is np else masked.to(logits.device), -float("inf"), logits)
        elif banned:
            masked = xp.zeros_like(logits, dtype=xp.bool)
            masked[self._index(sorted(banned))] = True
            logits = xp.where(masked, -float("inf"), logits)
        return logits

    def _banned(self) -> set[int]:
        """The tokens that must not come next."""
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
        """Add the `values` of tokens to `sums` (vocabulary,)."""
        added = self._xp.asarray(list(values.values()), dtype=self._xp.float32)
        # NumPy arrays have no device to move to.
        sums[self._index(list(values))] += added if self._xp is np else added.to(sums.device)

    def _index(self, tokens: Sequence[int]) -> Any:
        return self._xp.asarray(tokens, dtype=self._xp.int64)
