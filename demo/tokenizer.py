"""The tokenizer and chat template that drafter and target share: byte-level BPE, every digit a token of its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from cutline.demo import cards, questions
from cutline.models.families.smolvlm import GLOBAL, SmolVLM

VOCABULARY = 512
PAD, START, END = "<pad>", "<|im_start|>", "<end_of_utterance>"
SPECIAL = (PAD, START, END, *SmolVLM.markers, GLOBAL)

TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message.role | capitalize }}:"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def train_tokenizer(seed: int) -> Tokenizer:
    """A tokenizer fitted to the questions and answers of 4,000 training cards."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed), trainer)
    return tokenizer


def _corpus(seed: int) -> Iterator[str]:
    rng = np.random.default_rng(seed)
    batch = cards.draw(cards.Split.TRAIN, 4000, rng)
    for index in range(len(batch.pixels)):
        question = questions.ask(batch.card(index), questions.KINDS[index % len(questions.KINDS)], rng)
        yield f"User:{question.text}"
        yield f"\nAssistant:{question.answer}"
