"""How tokens are chosen, as a request says it: its ranges and what each field means stand here, and nowhere else."""

from __future__ import annotations

import os
from typing import Annotated

import msgspec
from msgspec import Meta

from cutline.core.ranges import check_ranges
from cutline.errors import InputError

MAX_BIASES = 1024  # tokens that one request may make likelier or less likely

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
LogitBias = Annotated[
    tuple[tuple[Annotated[int, Meta(ge=0, le=2**31 - 1)], Bias], ...],
    Meta(max_length=MAX_BIASES, description="Is added to the logits of tokens, by their ids."),
]


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How tokens are chosen. Without any of it the likeliest is, of logits as the model's own settings leave them.

    Each field is a function of the logits and the tokens before. Raises InputError on what is out of its range.
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

    def __post_init__(self) -> None:
        check_ranges(self)
        if not all(-100 <= value <= 100 and 0 <= token < 2**31 for token, value in self.logit_bias):
            raise InputError("logit-bias takes the ids of tokens, and for each a number from -100 to 100")
        if len(self.logit_bias) > MAX_BIASES:
            raise InputError(f"logit-bias has {len(self.logit_bias)} tokens; give {MAX_BIASES} at most")
        # Below a hundredth nothing but the best token is drawn, and further down the division overflows.
        if 0.0 < self.temperature < 0.01:
            raise InputError(f"temperature is {self.temperature}; give 0 (greedy), or 0.01 to 100")

    def check_tokens(self, vocabulary: int) -> None:
        """That it names none but the tokens of so many. Raises InputError."""
        if (most := max((token for token, _ in self.logit_bias), default=0)) >= vocabulary:
            raise InputError(f"logit-bias names the token {most}; this model has {vocabulary}")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken of those logits that are left."""
        return self.temperature == 0.0

    @property
    def penalises(self) -> bool:
        """Whether it changes logits by the tokens before, or by their ids."""
        neutral = self.presence_penalty == 0.0 and self.frequency_penalty == 0.0 and not self.logit_bias
        return self.repetition_penalty is not None or not neutral

    @property
    def conditions(self) -> Sampling:
        """Without what makes a drafter foresee the target no better or worse: a seed, and what greedy leaves out."""
        kept = msgspec.structs.replace(self, seed=0)
        return msgspec.structs.replace(kept, top_k=0, top_p=1.0, min_p=0.0) if self.greedy else kept


GREEDY = Sampling()


def chosen_seed(given: int | None, temperature: float) -> int:
    """The seed of an answer: the one that was given, or where that is None or -1 a new one, if any noise is drawn."""
    if given is not None and given != -1:
        return given
    return int.from_bytes(os.urandom(8)) >> 1 if temperature > 0.0 else 0
