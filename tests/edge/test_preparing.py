"""From conversations to what the models take."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge import preparing
from cutline.edge.preparing import Preparer
from cutline.edge.question import Question
from cutline.errors import InputError, PromptError
from cutline.models.bundle import Bundle
from cutline.models.families.smolvlm import SmolVLM
from cutline.models.images import decode_image
from cutline.models.prompt import ImagePart, Message, PromptBuilder, TextPart

BUNDLE = Bundle.open(DRAFTER)
FAMILY, TOKEN = BUNDLE.manifest.family, BUNDLE.manifest.image_token
PROMPTS = PromptBuilder.open(BUNDLE)
FILES = list(dict.fromkeys(one.image for one in requests(Split.EVALUATION, 3, seed=3)))


def preparer(**options: Any) -> Preparer:
    return Preparer(BUNDLE.manifest, PROMPTS, Bundle.open(TARGET), **{"planned": False, **options})


def png(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height)).save(out, "PNG")
    return out.getvalue()


def conversation(*images: int) -> Question:
    """A turn about each image, and one about none."""
    turns = [
        message
        for index in images
        for message in (
            Message("user", (ImagePart(), TextPart(f"What is number {index}?"))),
            Message("assistant", (TextPart("A card."),)),
        )
    ]
    return Question(
        messages=(*turns, Message("user", (TextPart("And now?"),))), images=tuple(FILES[index] for index in images)
    )


def test_every_message_and_image_is_in_the_prompt() -> None:
    asked = conversation(0, 1)
    found = preparer().prepare(asked)
    assert found.prompt == PROMPTS.build(asked.messages, [(0, 0), (0, 0)]).ids == found.asked
    text = PROMPTS.vocabulary.decode([token for token in found.prompt if token != TOKEN])
    assert text.index("number 0") < text.index("A card.") < text.index("number 1") < text.index("And now?")
    assert found.prompt.count(TOKEN) == 2 * FAMILY.tokens((0, 0))
    for picture, pixels, file in zip(found.images, found.pixels, asked.images, strict=True):
        assert picture == decode_image(file)
        assert np.array_equal(pixels.values, FAMILY.preprocess(decode_image(file)).values)
    assert found.names is not None
    assert len(set(found.names)) == 2


def test_no_image_is_fine() -> None:
    found = preparer().prepare(conversation())
    assert (found.images, found.pixels, found.names) == ((), (), ())
    assert TOKEN not in found.prompt


def test_merged_image_tokens_shorten_every_image() -> None:
    asked = Question(
        messages=conversation(0, 1).messages, images=tuple(FILES[:2]), cut="decoder.0", keep_image_tokens=0.5
    )
    found = preparer().prepare(asked)
    assert found.asked.count(TOKEN) == found.prompt.count(TOKEN) // 2


def test_a_known_picture_is_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made, ready = list[bytes](), preparer()

    def decode(file: bytes) -> Image.Image:
        made.append(file)
        return decode_image(file)

    monkeypatch.setattr(preparing, "decode_image", decode)
    first = ready.prepare(conversation(0, 1))
    assert made == FILES[:2]
    again = ready.prepare(conversation(2, 1, 0))
    assert made == FILES[:3]
    assert again.pixels[1:] == (first.pixels[1], first.pixels[0])
    monkeypatch.setattr(preparing, "PICTURES_BYTES", 0)
    ready = preparer()
    ready.prepare(conversation(0))
    ready.prepare(conversation(0))
    assert made == [*FILES[:3], FILES[0], FILES[0]]


def test_a_prompt_that_is_too_long_is_refused_before_much_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(SmolVLM, "preprocess", never)
    with pytest.raises(PromptError, match="the model holds 256"):
        preparer().prepare(conversation(*range(3), *range(3), *range(3), *range(3)))


def test_images_are_bounded_together() -> None:
    messages = (Message("user", (*[ImagePart()] * 5, TextPart("?"))),)
    with pytest.raises(InputError, match="over 67 megapixels together"):
        preparer().prepare(Question(messages=messages, images=(png(4096, 4096),) * 5))


def test_a_cut_needs_the_target() -> None:
    asked = Question.about(FILES[0], "What?", cut="decoder.1")
    preparer().prepare(asked)
    with pytest.raises(InputError, match="--target"):
        Preparer(BUNDLE.manifest, PROMPTS, None, planned=False).prepare(asked)
