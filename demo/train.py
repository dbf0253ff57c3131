"""The recipe: `python -m cutline.demo.train --out DIR` trains the demo's target and drafter from nothing.

Stages of a model. First the vision tower alone learns, supervised, which digit and which colour stands in each
quadrant: without it the digits stay at chance. Then the whole model learns to answer single questions, with the first
loss kept on as a side task. Then come conversations: several turns, two pictures, text before and behind a picture,
system turns, cards with distractors, and what is no question about a card. The drafter, which is small, needs a fourth
stage: conversations with more second and third questions, and more of the kinds that it is worst at. All see only
scans 0..1199, bent and thickened anew on every card.
"""

from __future__ import annotations

import argparse
import enum
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import SmolVLMForConditionalGeneration

from cutline.cli.terminal.time_left import TimeLeft
from cutline.demo import cards
from cutline.demo.publish import publish
from cutline.demo.shapes import SHAPES
from cutline.demo.tokenizer import TEMPLATE, train_tokenizer
from cutline.demo.training.conversations import ALL_ALIKE, LATER_TURNS, conversations, picture_kinds
from cutline.demo.training.lessons import Lesson, Teacher
from cutline.demo.training.scenes import Kind, draw
from cutline.learning import checkpoint

SEED = 7
CARDS = 64  # a step
KEPT = 200  # steps: as often the state is kept


class Stage(enum.StrEnum):
    """The stages of training, in their order."""

    TOWER = "tower"
    ANSWERS = "answers"
    CONVERSATIONS = "conversations"
    LATER_TURNS = "later turns"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps of a stage, and its peak learning rate."""

    steps: int
    rate: float


SCHEDULES = {
    "target": {
        Stage.TOWER: Schedule(2500, 2e-3),
        Stage.ANSWERS: Schedule(5000, 2e-3),
        Stage.CONVERSATIONS: Schedule(2000, 1.2e-3),
    },
    "drafter": {
        Stage.TOWER: Schedule(1500, 3e-3),
        Stage.ANSWERS: Schedule(4000, 3e-3),
        Stage.CONVERSATIONS: Schedule(3600, 2e-3),
        Stage.LATER_TURNS: Schedule(8000, 2e-3),
    },
}


MIXES = {Stage.CONVERSATIONS: ALL_ALIKE, Stage.LATER_TURNS: LATER_TURNS}


class Quadrants(nn.Module):
    """The side task: from the tower's patches (n, 64, width) to digit-or-none and colour logits a quadrant."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(16 * width, 11 + 4)

    def forward(self, patches: Tensor) -> Tensor:
        grid = patches.unflatten(1, (2, 4, 2, 4)).permute(0, 1, 3, 2, 4, 5)  # (n, 2, 2, 4, 4, width)
        logits: Tensor = self.head(grid.flatten(3).flatten(1, 2))  # (n, 4, 15)
        return logits

    def loss(self, patches: Tensor, batch: cards.Batch) -> Tensor:
        """Mean cross-entropy of digits (10 means none) and of colours where there is a digit."""
        logits = self(patches).float()
        values = torch.from_numpy(np.where(batch.values == cards.EMPTY, 10, batch.values))
        colours = torch.from_numpy(batch.colours)
        digit = nn.functional.cross_entropy(logits[..., :11].flatten(0, 1), values.flatten(), label_smoothing=0.05)
        colour = nn.functional.cross_entropy(
            logits[..., 11:].flatten(0, 1), colours.flatten(), ignore_index=cards.EMPTY
        )
        return digit + 0.3 * colour


def pixel_values(batch: cards.Batch) -> Tensor:
    """Cards as the models take them: (n, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(batch.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0


class Course:
    """One model's training: its stages in order, kept every `KEPT` steps, and gone on with where it was stopped."""

    def __init__(self, role: str, tokenizer: Tokenizer, state: Path) -> None:
        """`state` is the file where it stands is kept; it may be there already."""
        torch.manual_seed(SEED)
        self._role, self._state, self._schedules = role, state, SCHEDULES[role]
        self._rng = np.random.default_rng(SEED)
        self._teacher = Teacher(tokenizer)
        self.model = SmolVLMForConditionalGeneration(SHAPES[role].config(tokenizer.get_vocab()))
        self.model.train()
        # On CPU the fused attention's backward pass takes twice the time of the plain one at these lengths.
        self.model.model.text_model.config._attn_implementation = "eager"
        self._quadrants = Quadrants(SHAPES[role].width)
        self._modules = {"model": self.model, "quadrants": self._quadrants}

    def run(self, progress: Progress) -> SmolVLMForConditionalGeneration:
        """Train to the end, or on to it."""
        place = checkpoint.place_of(self._state)
        stages = list(self._schedules)
        if place is not None:
            checkpoint.set_random_state(self._rng, place.random)
            stages = stages[stages.index(Stage(place.stage)) :]
        for stage in stages:
            self._stage(stage, place, progress)
            place = None
        self.model.eval()
        return self.model

    def _stage(self, stage: Stage, place: checkpoint.CoursePlace | None, progress: Progress) -> None:
        """One stage, from its `place` on where it was begun before."""
        steps, rate = self._schedules[stage].steps, self._schedules[stage].rate
        learning = self.model.model.vision_model if stage is Stage.TOWER else self.model
        parameters = [*learning.parameters(), *self._quadrants.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
        done = 0
        if place is not None:
            done = place.steps
            checkpoint.restore(self._state, self._modules, optimizer)
        task = progress.add_task(f"{self._role}: {stage}", total=steps, completed=done)
        for step in range(done, steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * rate_at(step, steps)
            with torch.autocast("cpu", torch.bfloat16):
                loss = self._loss(stage)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if step % 10 == 9:
                progress.update(task, description=f"{self._role}: {stage}, loss {loss.item():.3f}")
            progress.advance(task)
            if step % KEPT == KEPT - 1 or step == steps - 1:
                place = checkpoint.CoursePlace(stage=stage, steps=step + 1, random=checkpoint.random_state(self._rng))
                checkpoint.save(self._state, place, self._modules, optimizer)

    def _loss(self, stage: Stage) -> Tensor:
        """What a step is to make less, on a batch of its own."""
        kinds = picture_kinds(CARDS, self._rng) if stage in MIXES else (Kind.CARD,) * CARDS
        scenes = draw(kinds, cards.Split.TRAIN, self._rng, augment=True)
        batch = scenes.batch
        patches = self.model.model.vision_model(pixel_values=pixel_values(batch)).last_hidden_state
        loss = self._quadrants.loss(patches, batch)
        if stage is Stage.TOWER:
            return loss
        if stage is Stage.ANSWERS:
            lesson = self._teacher.questions(batch, self._rng)
        else:
            lesson = self._teacher.conversations(conversations(scenes, MIXES[stage], self._rng))
        answers = torch.stack([answer_loss(self.model, patches, part) for part in lesson.parts()])
        return 0.5 * loss + answers.sum()


def answer_loss(model: SmolVLMForConditionalGeneration, patches: Tensor, lesson: Lesson) -> Tensor:
    """Cross-entropy of the answers given the tower's `patches` of the pictures they are about."""
    images = model.model.connector(patches)[lesson.pictures[lesson.pictures >= 0]]
    embeds = model.get_input_embeddings()(lesson.ids)
    embeds = embeds.masked_scatter((lesson.ids == model.config.image_token_id)[..., None], images.to(embeds.dtype))
    hidden = model.model.text_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    learned = lesson.labels != -100
    logits = model.lm_head(hidden[learned]).float()
    losses = nn.functional.cross_entropy(logits, lesson.labels[learned], reduction="none")
    weights = lesson.weights[learned]
    return (losses * weights).sum() / weights.sum()


def rate_at(step: int, steps: int) -> float:
    """Share of the peak learning rate: 100 steps of warm-up, then a cosine to nothing."""
    return min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))


def main() -> None:
    """Train, and write one Hugging Face folder a role."""
    parser = argparse.ArgumentParser(description="Train the demo's models from nothing, seeded; goes on if stopped.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the models, and for bundles/ of them")
    parser.add_argument("--role", choices=list(SHAPES), action="append", help="train only this one (default: both)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = train_tokenizer(SEED)
    with TimeLeft(Console(stderr=True)) as progress:
        for role in args.role or list(SHAPES):
            model = Course(role, tokenizer, args.out / f"{role}.state").run(progress)
            folder = args.out / role
            model.save_pretrained(folder)
            tokenizer.save(str(folder / "tokenizer.json"))
            (folder / "chat_template.jinja").write_text(TEMPLATE)
    if all((args.out / role / "config.json").is_file() for role in SHAPES):
        publish(args.out, args.out / "bundles")


if __name__ == "__main__":
    main()
