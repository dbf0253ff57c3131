"""The recipe: `python -m cutline.demo.train --out DIR` trains the demo's target and drafter from nothing.

Two stages a model. First the vision tower alone learns, supervised, which digit and which colour stands in each
quadrant: without it the digits stay at chance. Then the whole model learns to answer, with the first loss kept on
as a side task. Both see only scans 0..1199, bent and thickened anew on every card.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import SmolVLMForConditionalGeneration

from cutline.demo import cards, questions
from cutline.demo.publish import publish
from cutline.demo.shapes import FAMILY, SHAPES
from cutline.demo.tokenizer import END, PAD, START, TEMPLATE, train_tokenizer

SEED = 7
CARDS = 64  # a step
ASKED = 3  # questions a card


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps of each stage, and the peak learning rate of both."""

    tower_steps: int
    answer_steps: int
    rate: float = 2e-3


SCHEDULES = {"target": Schedule(2500, 5000), "drafter": Schedule(1500, 4000, 3e-3)}


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


@dataclass(frozen=True, slots=True)
class Lesson:
    """Question-and-answer rows for a batch of cards: ids (rows, length), labels alike with -100 where not learned."""

    ids: Tensor
    labels: Tensor
    card: Tensor

    def parts(self) -> Iterator[Lesson]:
        """The shorter two thirds of the rows and the rest, each padded no further than it needs."""
        lengths = (self.labels != -100).int().mul(torch.arange(self.ids.shape[1])).amax(dim=1) + 2
        for rows in lengths.argsort().split(len(lengths) * 2 // 3):
            end = int(lengths[rows].max())
            yield Lesson(self.ids[rows, :end], self.labels[rows, :end], self.card[rows])


class Teacher:
    """Writes lessons: `ASKED` questions about each card of a batch, tokenized and padded."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pad = tokenizer.get_vocab()[PAD]

    def lesson(self, batch: cards.Batch, rng: np.random.Generator) -> Lesson:
        """Questions about every card of `batch`, in random kinds and wordings, with their answers."""
        texts: list[str] = []
        owners: list[int] = []
        for index in range(len(batch.pixels)):
            card = batch.card(index)
            for kind in rng.choice(questions.KINDS, ASKED, replace=False):
                question = questions.ask(card, str(kind), rng)
                texts += [prompt_text(question.text), question.answer + END]
                owners.append(index)
        encoded = self._tokenizer.encode_batch_fast(texts)
        rows = [(encoded[i].ids, encoded[i + 1].ids) for i in range(0, len(encoded), 2)]
        length = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids = np.full((len(rows), length), self._pad, np.int64)
        labels = np.full((len(rows), length), -100, np.int64)
        for row, (prompt, answer) in enumerate(rows):
            end = len(prompt) + len(answer)
            ids[row, :end] = prompt + answer
            labels[row, len(prompt) - 1 : end - 1] = answer
        return Lesson(torch.from_numpy(ids), torch.from_numpy(labels), torch.tensor(owners))


def prompt_text(question: str) -> str:
    """The chat template's result for one image and one question, image tokens spelled out."""
    return f"{START}User:{FAMILY.expand((0, 0))}{question}{END}\nAssistant:"


def train(role: str, tokenizer: Tokenizer, progress: Progress) -> SmolVLMForConditionalGeneration:
    """Train the model of `role` (a key of `SHAPES`) in both stages."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    shape, schedule = SHAPES[role], SCHEDULES[role]
    model = SmolVLMForConditionalGeneration(shape.config(tokenizer.get_vocab()))
    model.train()
    # On CPU the fused attention's backward pass takes twice the time of the plain one at these lengths.
    model.model.text_model.config._attn_implementation = "eager"
    quadrants = Quadrants(shape.width)
    teacher = Teacher(tokenizer)
    for stage, steps in (("tower", schedule.tower_steps), ("answers", schedule.answer_steps)):
        learning = model.model.vision_model if stage == "tower" else model
        parameters = [*learning.parameters(), *quadrants.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=schedule.rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
        task = progress.add_task(f"{role}: {stage}", total=steps, loss=math.nan)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate * rate_at(step, steps)
            batch = cards.draw(cards.Split.TRAIN, CARDS, rng, augment=True)
            with torch.autocast("cpu", torch.bfloat16):
                patches = model.model.vision_model(pixel_values=pixel_values(batch)).last_hidden_state
                loss = quadrants.loss(patches, batch)
                if stage == "answers":
                    parts = teacher.lesson(batch, rng).parts()
                    loss = 0.5 * loss + sum(answer_loss(model, patches, part) for part in parts)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if step % 10 == 9:
                progress.update(task, completed=step + 1, loss=loss.item())
    model.eval()
    return model


def answer_loss(model: SmolVLMForConditionalGeneration, patches: Tensor, lesson: Lesson) -> Tensor:
    """Cross-entropy of the answers given the tower's `patches` of the cards they are about.

    A row weighs as the square root of its answer's length: between one vote a token, which starves the one-token
    answers, and one vote an answer, which starves the sentences.
    """
    images = model.model.connector(patches)[lesson.card]
    embeds = model.get_input_embeddings()(lesson.ids)
    embeds = embeds.masked_scatter((lesson.ids == model.config.image_token_id)[..., None], images.to(embeds.dtype))
    hidden = model.model.text_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    learned = lesson.labels != -100
    logits = model.lm_head(hidden[learned]).float()
    losses = nn.functional.cross_entropy(logits, lesson.labels[learned], reduction="none")
    lengths = learned.sum(dim=1, keepdim=True).expand_as(learned)[learned]
    weights = lengths.rsqrt()
    return (losses * weights).sum() / weights.sum()


def rate_at(step: int, steps: int) -> float:
    """Share of the peak learning rate: 100 steps of warm-up, then a cosine to nothing."""
    return min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))


def main() -> None:
    """Train, and write one Hugging Face folder a role."""
    parser = argparse.ArgumentParser(description="Train the demo's models from nothing, seeded.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the models, and for bundles/ of them")
    parser.add_argument("--role", choices=list(SHAPES), action="append", help="train only this one (default: both)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = train_tokenizer(SEED)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    )
    with Progress(*columns, TimeRemainingColumn()) as progress:
        for role in args.role or list(SHAPES):
            model = train(role, tokenizer, progress)
            folder = args.out / role
            model.save_pretrained(folder)
            tokenizer.save(str(folder / "tokenizer.json"))
            (folder / "chat_template.jinja").write_text(TEMPLATE)
    if all((args.out / role / "config.json").is_file() for role in SHAPES):
        publish(args.out, args.out / "bundles")


if __name__ == "__main__":
    main()
