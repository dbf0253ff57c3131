"""Lessons: the rows of token ids that a training step learns from, and which of their tokens are answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from cutline.demo import cards, questions
from cutline.demo.shapes import FAMILY
from cutline.demo.tokenizer import END, PAD, START
from cutline.demo.training.conversations import Dialogue, DialogueTurn

ASKED = 3  # questions a card


@dataclass(frozen=True, slots=True)
class Lesson:
    """Rows of ids (rows, length); labels alike, -100 where nothing is learned; how much each label weighs.

    `pictures` (rows, most pictures) are the indices of each row's pictures in their order, -1 behind the last.
    An answer weighs as the square root of its length: between one vote a token, which starves the one-token answers,
    and one vote an answer, which starves the sentences.
    """

    ids: Tensor
    labels: Tensor
    weights: Tensor
    pictures: Tensor

    def parts(self) -> Iterator[Lesson]:
        """Thirds of the rows by length, each padded no further than it needs."""
        lengths = (self.labels != -100).int().mul(torch.arange(self.ids.shape[1])).amax(dim=1) + 2
        for rows in lengths.argsort().split(-(-len(lengths) // 3)):
            end = int(lengths[rows].max())
            yield Lesson(self.ids[rows, :end], self.labels[rows, :end], self.weights[rows, :end], self.pictures[rows])


class Teacher:
    """Writes lessons in the demo's chat template, tokenized and padded."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pad = tokenizer.get_vocab()[PAD]

    def questions(self, batch: cards.Batch, rng: np.random.Generator) -> Lesson:
        """`ASKED` questions about every card of `batch`, in random kinds and wordings, a row each."""
        rows: list[Dialogue] = []
        for index in range(len(batch.pixels)):
            card = batch.card(index)
            for kind in rng.choice(questions.KINDS, ASKED, replace=False):
                question = questions.ask(card, str(kind), rng)
                turn = DialogueTurn(
                    (index,), text_first=False, text=question.text, answer=question.answer, kind=question.kind
                )
                rows.append(Dialogue(None, (turn,)))
        return self.conversations(rows)

    def conversations(self, rows: Sequence[Dialogue]) -> Lesson:
        """A row a conversation, all its right answers to be learned."""
        pieces = [piece for row in rows for turn in transcript(row) for piece in turn]
        encoded = iter(self._tokenizer.encode_batch_fast(pieces))
        length, told = 0, []
        for row in rows:
            parts = [(next(encoded).ids, next(encoded).ids, turn.learned) for turn in row.turns]
            length = max(length, sum(len(prompt) + len(answer) for prompt, answer, _ in parts))
            told.append(parts)
        ids = np.full((len(rows), length), self._pad, np.int64)
        labels = np.full((len(rows), length), -100, np.int64)
        weights = np.zeros((len(rows), length), np.float32)
        for index, parts in enumerate(told):
            end = 0
            for prompt, answer, learned in parts:
                start, end = end + len(prompt), end + len(prompt) + len(answer)
                ids[index, start - len(prompt) : end] = prompt + answer
                if learned:
                    labels[index, start - 1 : end - 1] = answer
                    weights[index, start - 1 : end - 1] = len(answer) ** -0.5
        shown = [[picture for turn in row.turns for picture in turn.pictures] for row in rows]
        pictures = np.full((len(rows), max(1, *map(len, shown))), -1, np.int64)
        for index, those in enumerate(shown):
            pictures[index, : len(those)] = those
        return Lesson(*map(torch.from_numpy, (ids, labels, weights, pictures)))


def transcript(conversation: Dialogue) -> Iterator[tuple[str, str]]:
    """What each turn adds: all up to where its answer begins, and the answer with its end.

    The chat template's result, image tokens spelled out. Its tokens are those of the whole: the borders are at special
    tokens, and behind "Assistant:", where no token reaches across.
    """
    system = f"System:{conversation.system}{END}\n" if conversation.system is not None else ""
    before = START + system
    for turn in conversation.turns:
        shown = FAMILY.expand((0, 0), 0) * len(turn.pictures)
        asked = turn.text + shown if turn.text_first else shown + turn.text
        yield f"{before}User:{asked}{END}\nAssistant:", turn.answer + END
        before = "\n"
