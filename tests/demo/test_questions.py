"""The questions, their right answers, and the size of the two models."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch.utils.flop_counter import FlopCounterMode
from transformers import SmolVLMForConditionalGeneration

from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Card, Digit, Split, draw
from cutline.demo.questions import KINDS, WORDINGS, ask
from cutline.demo.requests import requests
from cutline.demo.shapes import SHAPES
from cutline.models.bundle import Bundle
from cutline.models.families.smolvlm import IMAGE

CARD = Card(
    np.zeros((64, 64, 3), np.uint8),
    (Digit(3, "red", "top left"), Digit(7, "blue", "bottom left"), Digit(9, "red", "bottom right")),
)


def test_every_kind_has_wordings_enough() -> None:
    assert all(len(set(wordings)) >= 4 for wordings in WORDINGS.values())
    assert len(set(itertools.chain(*WORDINGS.values()))) == sum(map(len, WORDINGS.values()))


def test_answers_of_a_known_card() -> None:
    rng = np.random.default_rng(0)
    assert ask(CARD, "read", rng).answer == "3 7 9"
    assert ask(CARD, "sum", rng).answer == "3 + 7 = 10, 10 + 9 = 19"
    assert ask(CARD, "count", rng).answer == "3"
    assert ask(CARD, "describe", rng).answer == (
        "The card shows a red 3 at top left, a blue 7 at bottom left and a red 9 at bottom right."
    )
    for kind, pick in (("colour", lambda digit: digit.colour), ("digit", lambda digit: str(digit.value))):
        for _ in range(20):
            question = ask(CARD, kind, rng)
            (digit,) = [digit for digit in CARD.digits if digit.place in question.text]
            assert question.answer == pick(digit)


def test_sums_add_up() -> None:
    rng = np.random.default_rng(1)
    batch = draw(Split.TRAIN, 200, rng)
    for index in range(200):
        card = batch.card(index)
        answer = ask(card, "sum", rng).answer
        total = sum(digit.value for digit in card.digits)
        assert int(re.findall(r"\d+", answer)[-1]) == total
        for a, b, c in re.findall(r"(\d+) \+ (\d+) = (\d+)", answer):
            assert int(a) + int(b) == int(c)


def test_requests_follow_from_their_seed() -> None:
    first, again, other = (list(requests(Split.EVALUATION, 3, seed)) for seed in (1, 1, 2))
    assert [(one.image, one.question) for one in first] == [(one.image, one.question) for one in again]
    assert [one.image for one in first] != [one.image for one in other]
    assert [one.question.kind for one in first] == list(KINDS) * 3


def test_descriptions_are_sentences_of_10_to_40_tokens() -> None:
    tokenizer = Tokenizer.from_file(str(TARGET / "tokenizer.json"))
    rng = np.random.default_rng(2)
    batch = draw(Split.EVALUATION, 300, rng)
    lengths = [len(tokenizer.encode(ask(batch.card(i), "describe", rng).answer).ids) for i in range(300)]
    assert min(lengths) >= 10
    assert max(lengths) <= 40


def test_drafter_and_target_speak_one_language() -> None:
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (DRAFTER / name).read_bytes() == (TARGET / name).read_bytes()
    drafter, target = Bundle.open(DRAFTER).manifest, Bundle.open(TARGET).manifest
    assert drafter.target == target.identity
    assert drafter.family == target.family


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_drafter_computes_at_most_a_sixth() -> None:
    tokenizer = Tokenizer.from_file(str(TARGET / "tokenizer.json"))
    image = tokenizer.get_vocab()[IMAGE]
    flops = {}
    for role, shape in SHAPES.items():
        model = SmolVLMForConditionalGeneration(shape.config(tokenizer.get_vocab())).eval()
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model(
                input_ids=torch.tensor([[1, *[image] * 16, *range(20, 50)]]), pixel_values=torch.rand(1, 1, 3, 64, 64)
            )
        flops[role] = counter.get_total_flops()
    assert flops["drafter"] <= flops["target"] / 6
    assert Bundle.open(DRAFTER).manifest.line.decoder == SHAPES["drafter"].decoder_layers
