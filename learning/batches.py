"""Examples as tensors: prompts and answers side by side, padded behind, with what is to be learnt of each place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cutline.learning.examples import Example, pixels_of
from cutline.models.bundle import Manifest


@dataclass(frozen=True, slots=True)
class ExampleBatch:
    """Some examples: `inputs` for transformers' own model, and the answers' `tokens` (n,), one place after another.

    `rows` and `places` (n,) say where in the logits of the last `kept` places the logits of each stand. Where a place's
    likeliest are known, `likely` (n, k) has their tokens and `odds` (n, k) their probabilities; those are 0 elsewhere.
    """

    inputs: dict[str, Tensor]
    kept: int
    rows: Tensor
    places: Tensor
    tokens: Tensor
    likely: Tensor
    odds: Tensor

    def logits(self, model: torch.nn.Module) -> Tensor:
        """What `model` says in each place of the answers: (n, vocabulary) float32."""
        made = model(**self.inputs, logits_to_keep=self.kept, use_cache=False).logits
        chosen: Tensor = made[self.rows, self.places].float()
        return chosen


def batches_of(examples: Sequence[Example], drafter: Manifest) -> list[ExampleBatch]:
    """The examples in as few batches as their pictures' shapes allow. Raises ImageError."""
    alike: dict[object, list[tuple[Example, dict[str, np.ndarray]]]] = {}
    for example in examples:
        given = drafter.family.as_given(pixels_of(example, drafter)) if example.images else {}
        shapes = tuple((name, array.shape[1:]) for name, array in sorted(given.items()))
        alike.setdefault((len(example.images), shapes), []).append((example, given))
    return [_batch([one for one, _ in some], [given for _, given in some], drafter) for some in alike.values()]


def distillation_loss(logits: Tensor, batch: ExampleBatch) -> Tensor:
    """Cross-entropy of the target's tokens, and of its likeliest in each place where they are known.

    All that are not among the likeliest count as one: so the second differs from the divergence of target and drafter,
    as far as that is known, by a constant.
    """
    logs = functional.log_softmax(logits, dim=-1)
    said = -logs.gather(1, batch.tokens[:, None])[:, 0]
    known = batch.odds.sum(1) > 0
    if not known.any():
        return said.mean()
    ours, theirs = logs[known].gather(1, batch.likely[known]), batch.odds[known]
    ours = ours.masked_fill(theirs == 0, 0.0)
    listed = (ours.exp() * (theirs > 0)).sum(1)
    rest = torch.log1p(-listed.clamp(max=1.0 - 1e-6))
    apart = -(theirs * ours).sum(1) - (1.0 - theirs.sum(1)).clamp(min=0.0) * rest
    return said.mean() + apart.sum() / len(said)


def memory_loss(logits: Tensor, before: Tensor) -> Tensor:
    """How far the drafter is from what it said `before`: the mean divergence of both logits (n, vocabulary)."""
    ours, theirs = functional.log_softmax(logits, dim=-1), functional.log_softmax(before, dim=-1)
    return functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")


def _batch(examples: Sequence[Example], given: Sequence[dict[str, np.ndarray]], drafter: Manifest) -> ExampleBatch:
    lengths = [len(one.prompt) + len(one.answer) for one in examples]
    longest = max(lengths)
    ids = np.full((len(examples), longest), drafter.stop_tokens[0], np.int64)
    for row, one in enumerate(examples):
        ids[row, : lengths[row]] = one.prompt + one.answer
    arrays = {name: np.concatenate([one[name] for one in given]) for name in given[0]}
    arrays |= {"input_ids": ids, "attention_mask": (np.arange(longest) < np.array(lengths)[:, None]).astype(np.int64)}
    arrays |= drafter.family.token_types(ids == drafter.image_token, ())
    kept = longest - min(len(one.prompt) for one in examples) + 1
    width = max((len(place) for one in examples for place in one.likely), default=1)
    rows, places, tokens = list[int](), list[int](), list[int]()
    likely, odds = list[list[int]](), list[list[float]]()
    for row, one in enumerate(examples):
        first = len(one.prompt) - 1 - (longest - kept)  # the logits behind the prompt's last token say the first one
        for index, token in enumerate(one.answer):
            rows.append(row)
            places.append(first + index)
            tokens.append(token)
            listed = one.likely[index] if one.likely else ()
            likely.append([of for of, _ in listed] + [0] * (width - len(listed)))
            odds.append([math.exp(log) for _, log in listed] + [0.0] * (width - len(listed)))
    return ExampleBatch(
        inputs={name: torch.from_numpy(array) for name, array in arrays.items()},
        kept=kept,
        rows=torch.tensor(rows),
        places=torch.tensor(places),
        tokens=torch.tensor(tokens),
        likely=torch.tensor(likely),
        odds=torch.tensor(odds),
    )
