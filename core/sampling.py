"""The sampling options of a request: their ranges and meanings are defined here alone."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Annotated

import msgspec
from msgspec import Meta

from cutline.core.constraint import Constraint
from cutline.core.ranges import check_ranges
from cutline.errors import InputError

MAX_NAMED = 1024  # tokens that one request may name, to make them likelier or less likely, or to end its answer at

Temperature = Annotated[float, Meta(ge=0, le=100, description="0 is greedy.")]
TopK = Annotated[int, Meta(ge=0, le=2**31 - 1, description="Keep this many best tokens; 0 keeps all.")]
TopP = Annotated[float, Meta(gt=0, le=1, description="Keep the best tokens of this share of probability.")]
MinP = Annotated[float, Meta(ge=0, le=1, description="Keep tokens at least this share as likely as the likeliest.")]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1, description="The same seed gives the same answer.")]
RepetitionPenalty = Annotated[
    float, Meta(ge=0.01, le=100, description="Above 1 makes tokens that came before less likely; else the model's own.")
]
PresencePenalty = Annotated[
    float, Meta(ge=-2, le=2, description="Is taken from the logits of tokens that the answer has already.")
]
FrequencyPenalty = Annotated[
    float, Meta(ge=-2, le=2, description="Likewise, as many times as the answer has them already.")
]
Bias = Annotated[float, Meta(ge=-100, le=100)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
LogitBias = Annotated[
    tuple[tuple[TokenId, Bias], ...],
    Meta(max_length=MAX_NAMED, description="Is added to the logits of tokens, by their ids."),
]
StopTokenIds = Annotated[
    tuple[TokenId, ...],
    Meta(max_length=MAX_NAMED, description="Tokens that end the answer, by their ids, beside the model's own."),
]


def check_named(option: str, count: int) -> None:
    """Check how many tokens an option names. Raises InputError."""
    if count > MAX_NAMED:
        raise InputError(f"{option.replace('_', '-')} has {count} tokens; give {MAX_NAMED} at most")


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How tokens are sampled. The defaults take the likeliest token after the model's own logits processors.

    Each option is a function of the logits and the tokens before. Raises InputError for a value out of its range.
    """

    temperature: Temperature = 0.0
    top_k: TopK = 0
    top_p: TopP = 1.0
    min_p: MinP = 0.0
    seed: Seed = 0
    repetition_penalty: RepetitionPenalty | None = None
    presence_penalty: PresencePenalty = 0.0
    frequency_penalty: FrequencyPenalty = 0.0
    logit_bias: LogitBias = ()
    constraint: Constraint | None = None
    stop_token_ids: StopTokenIds = ()

    def __post_init__(self) -> None:
        check_ranges(self)
        if not all(-100 <= value <= 100 and 0 <= token < 2**31 for token, value in self.logit_bias):
            raise InputError("logit-bias takes the ids of tokens, and for each a number from -100 to 100")
        if not all(0 <= token < 2**31 for token in self.stop_token_ids):
            raise InputError("stop-token-ids takes the ids of tokens, numbers from 0 on")
        for name in ("logit_bias", "stop_token_ids"):
            check_named(name, len(getattr(self, name)))
        # Below 0.01 only the best token is ever drawn, and far below the division overflows.
        if 0.0 < self.temperature < 0.01:
            raise InputError(f"temperature is {self.temperature}; give 0 (greedy), or 0.01 to 100")

    def check_tokens(self, vocabulary: int) -> None:
        """Check that all tokens it names are in a vocabulary of this size. Raises InputError."""
        named = {"logit-bias": [token for token, _ in self.logit_bias], "stop-token-ids": self.stop_token_ids}
        for option, tokens in named.items():
            if (highest := max(tokens, default=0)) >= vocabulary:
                raise InputError(f"{option} names the token {highest}; this model has {vocabulary}")

    def stops(self, own: Collection[int]) -> frozenset[int]:
        """The tokens that end an answer of a model whose `own` stop tokens these are."""
        return frozenset(own).union(self.stop_token_ids)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, without noise."""
        return self.temperature == 0.0

    @property
    def penalises(self) -> bool:
        """Whether penalties or biases change the logits."""
        neutral = self.presence_penalty == 0.0 and self.frequency_penalty == 0.0 and not self.logit_bias
        return self.repetition_penalty is not None or self.constraint is not None or not neutral

    @property
    def conditions(self) -> Sampling:
        """The options that the acceptance rate of drafts depends on: not the seed, nor truncation if greedy."""
        unseeded = msgspec.structs.replace(self, seed=0)
        return msgspec.structs.replace(unseeded, top_k=0, top_p=1.0, min_p=0.0) if self.greedy else unseeded

    @property
    def kinds(self) -> tuple[str, ...]:
        """What sets it apart from the likeliest tokens of the model's own logits, in words for people."""
        bare = msgspec.structs.replace(self, constraint=None)
        kinds = {
            "sampled": not self.greedy,
            "penalised": bare.penalises,
            "constrained": self.constraint is not None,
            "stopped": bool(self.stop_token_ids),
        }
        return tuple(kind for kind, holds in kinds.items() if holds)


GREEDY = Sampling()


def chosen_seed(given: int | None, temperature: float) -> int:
    """The seed of an answer: the `given` one. For None or -1 a random one, or 0 if no noise is drawn."""
    if given is not None and given != -1:
        return given
    return int.from_bytes(os.urandom(8)) >> 1 if temperature > 0.0 else 0
