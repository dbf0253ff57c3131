"""Distillation: low-rank additions to a drafter's layers learn what its target said, beside what it said itself.

Only the additions (LoRA, by `peft`) change. So what the drafter said before is at hand at any step, with them switched
off: of questions that it must not forget it is to say that again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from cutline.learning import checkpoint
from cutline.learning.batches import ExampleBatch, batches_of, distillation_loss, memory_loss
from cutline.learning.examples import Example
from cutline.models.bundle import Manifest
from cutline.models.export.quiet import quiet

SEED = 7
KEPT = 20  # steps: as often the state is kept
WARM = 20  # steps until the rate is at its peak


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationPlan:
    """How much is learnt: each example so many times, `batch` of them a step and as many that are not to be forgotten.

    `rate` is the peak learning rate, `rank` that of the additions.
    """

    epochs: int = 4
    batch: int = 16
    rate: float = 1e-3
    rank: int = 16

    def steps(self, examples: int) -> int:
        """The steps that so many examples take."""
        return self.epochs * math.ceil(examples / self.batch)


class Distillation:
    """Teaches a transformers `model` that a `drafter`'s bundle was made of, and keeps its place in the file `state`.

    `work` names what is done: a state of other work is begun anew.
    """

    def __init__(self, model: Any, drafter: Manifest, plan: DistillationPlan, *, state: Path, work: str) -> None:
        torch.manual_seed(SEED)
        additions = LoraConfig(r=plan.rank, lora_alpha=2 * plan.rank, target_modules="all-linear", bias="none")
        with quiet():
            self._model: Any = get_peft_model(model, additions)
        self._drafter, self._plan, self._state, self._work = drafter, plan, state, work
        self._learnt = nn.ParameterList([one for one in self._model.parameters() if one.requires_grad])

    def run(
        self, examples: Sequence[Example], memory: Sequence[Example], *, told: Callable[[int, float], object]
    ) -> Any:
        """Learn the examples, or go on with that; returns the model with what it learnt in its own weights.

        `told` is given the steps that are done, and the loss of the last. Raises ImageError.
        """
        total = self._plan.steps(len(examples))
        optimizer = torch.optim.AdamW(self._learnt, lr=self._plan.rate, weight_decay=0.0)
        done = self._restored(optimizer)
        self._model.train()
        for step in range(done, total):
            for group in optimizer.param_groups:
                group["lr"] = self._plan.rate * _share(step, total)
            loss = self._step(self._drawn(examples, step), self._drawn(memory, step))
            nn.utils.clip_grad_norm_(self._learnt, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step % KEPT == KEPT - 1 or step == total - 1:
                place = checkpoint.CoursePlace(stage=self._work, steps=step + 1, random={})
                checkpoint.save(self._state, place, {"additions": self._learnt}, optimizer)
            told(step + 1, loss)
        return self._model.merge_and_unload().eval()

    def _step(self, examples: Sequence[Example], memory: Sequence[Example]) -> float:
        """Add up what a step's examples say of the way to go; returns the loss of what is learnt."""
        said = 0.0
        for batch, share in self._batches(examples):
            loss = distillation_loss(batch.logits(self._model), batch) * share
            loss.backward()
            said += loss.item()
        for batch, share in self._batches(memory):
            with torch.no_grad(), self._model.disable_adapter():
                before = batch.logits(self._model)
            (memory_loss(batch.logits(self._model), before) * share).backward()
        return said

    def _batches(self, examples: Sequence[Example]) -> list[tuple[ExampleBatch, float]]:
        """Batches with the share of all examples' tokens that each has."""
        batches = batches_of(examples, self._drafter)
        count = sum(len(batch.tokens) for batch in batches)
        return [(batch, len(batch.tokens) / count) for batch in batches]

    def _drawn(self, among: Sequence[Example], step: int) -> list[Example]:
        """The examples of a step: all of them once before any comes again, in an order that is new each time."""
        found = []
        for number in range(step * self._plan.batch, (step + 1) * self._plan.batch) if among else ():
            turn, place = divmod(number, len(among))
            found.append(among[np.random.default_rng((SEED, turn)).permutation(len(among))[place]])
        return found

    def _restored(self, optimizer: torch.optim.Optimizer) -> int:
        """Bring back what an earlier attempt at this work did; returns the steps of it."""
        place = checkpoint.place_of(self._state)
        if place is None or place.stage != self._work:
            return 0
        checkpoint.restore(self._state, {"additions": self._learnt}, optimizer)
        return place.steps


def _share(step: int, steps: int) -> float:
    """Share of the peak learning rate: a warm-up, then a cosine to nothing."""
    return min(1.0, (step + 1) / WARM) * 0.5 * (1 + math.cos(math.pi * step / steps))
