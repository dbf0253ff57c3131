from __future__ import annotations

import io
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import SmolVLMForConditionalGeneration

from cutline.core.conversation import question
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.questions import KINDS
from cutline.demo.requests import requests
from cutline.demo.shapes import FAMILY, SHAPES
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.prompt import PromptBuilder
from cutline.models.vocabulary import Vocabulary


def test_each_card_is_asked_every_kind_of_question() -> None:
    asked = list(requests(Split.EVALUATION, 5, seed=0))
    assert [one.question.kind for one in asked] == list(KINDS) * 5
    for first in range(0, len(asked), len(KINDS)):
        assert len({one.image for one in asked[first : first + len(KINDS)]}) == 1
    assert len({one.image for one in asked}) == 5


def test_the_same_seed_asks_the_same() -> None:
    def told(seed: int) -> list[tuple[bytes, str, str]]:
        return [(one.image, one.question.text, one.question.answer) for one in requests(Split.EVALUATION, 3, seed=seed)]

    assert told(1) == told(1) != told(2)


def test_the_image_is_the_card() -> None:
    for one in islice(requests(Split.EVALUATION, 3, seed=5), 0, None, len(KINDS)):
        opened = Image.open(io.BytesIO(one.image))
        assert opened.format == "PNG"
        np.testing.assert_array_equal(np.asarray(opened), one.card.pixels)
        np.testing.assert_array_equal(np.asarray(decode_image(one.image)), one.card.pixels)


@pytest.mark.parametrize("path", [TARGET, DRAFTER], ids=["target", "drafter"])
def test_every_request_fits_with_room_for_its_answer(path: object) -> None:
    bundle = Bundle.open(TARGET if path == TARGET else DRAFTER)
    prompts = PromptBuilder.open(bundle)
    for one in requests(Split.EVALUATION, 20, seed=0):
        pixels = bundle.manifest.family.preprocess(decode_image(one.image))
        prompt = prompts.build([question(one.question.text)], [pixels.grid])
        answer = prompts.vocabulary.encode(prompts.vocabulary.guard(one.question.answer))
        assert len(prompt.ids) + len(answer) + 1 <= bundle.manifest.decoder.context
        assert len(prompt.image_positions) == bundle.manifest.family.tokens(pixels.grid)


def flops(role: str) -> int:
    """What tower, connector, decoder and head cost for a card, a question of 20 tokens and an answer of 12."""
    bundle = Bundle.open(DRAFTER)
    special = Vocabulary.open(bundle).added
    words = {f"word {index}": index for index in range(len(special), bundle.manifest.decoder.vocabulary)}
    config = SHAPES[role].config(special | words)
    model = SmolVLMForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    ids = torch.full((1, FAMILY.tile_tokens + 20 + 12), 10)
    ids[0, 2 : 2 + FAMILY.tile_tokens] = config.image_token_id
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(input_ids=ids, pixel_values=torch.zeros(1, 1, 3, 64, 64))
    return int(counter.get_total_flops())


def test_the_drafter_computes_a_sixth_of_the_target_at_most() -> None:
    assert 6 * flops("drafter") <= flops("target")
