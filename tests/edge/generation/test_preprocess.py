"""From conversations to what the models take."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from cutline.core.conversation import ImagePart, Message, TextPart
from cutline.core.request import Mode, Request
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.generation import preprocess
from cutline.edge.generation.generation import Execution
from cutline.edge.generation.preprocess import Preparer
from cutline.edge.offload.backends.upload_cache import Uploads
from cutline.errors import InputError, PromptError
from cutline.models.bundle import Bundle
from cutline.models.families.smolvlm import SmolVLM
from cutline.models.images import TRAVELLING, decode_image, read_header
from cutline.models.prompt import TEMPLATE as TEMPLATE_FILE
from cutline.models.prompt import PromptBuilder

BUNDLE = Bundle.open(DRAFTER)
FAMILY, TOKEN = BUNDLE.manifest.family, BUNDLE.manifest.image_token
PROMPTS = PromptBuilder.open(BUNDLE)
TEMPLATE = BUNDLE.file(TEMPLATE_FILE).read_text()
FILES = list(dict.fromkeys(one.image for one in requests(Split.EVALUATION, 3, seed=3)))


def preparer(**options: Any) -> Preparer:
    return Preparer(BUNDLE.manifest, PROMPTS, Bundle.open(TARGET), **{"planned": False, **options})


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(width: int, height: int) -> bytes:
    return saved(Image.new("RGB", (width, height)), "PNG")


def conversation(*images: int) -> Request:
    """A turn about each image, and one about none."""
    turns = [
        message
        for index in images
        for message in (
            Message("user", (ImagePart(), TextPart(f"What is number {index}?"))),
            Message("assistant", (TextPart("A card."),)),
        )
    ]
    return Request(
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
    asked = Request(
        messages=conversation(0, 1).messages, images=tuple(FILES[:2]), cut="decoder.0", keep_image_tokens=0.5
    )
    found = preparer().prepare(asked)
    assert found.asked.count(TOKEN) == found.prompt.count(TOKEN) // 2


def test_a_known_picture_is_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made, ready = list[bytes](), preparer()

    def decode(file: bytes) -> Image.Image:
        made.append(file)
        return decode_image(file)

    monkeypatch.setattr(preprocess, "decode_image", decode)
    first = ready.prepare(conversation(0, 1))
    assert made == FILES[:2]
    again = ready.prepare(conversation(2, 1, 0))
    assert made == FILES[:3]
    assert again.pixels[1:] == (first.pixels[1], first.pixels[0])
    monkeypatch.setattr(preprocess, "PICTURES_BYTES", 0)
    ready = preparer()
    ready.prepare(conversation(0))
    ready.prepare(conversation(0))
    assert made == [*FILES[:3], FILES[0], FILES[0]]


def test_a_prompt_that_is_too_long_is_refused_before_much_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(SmolVLM, "preprocess", never)
    with pytest.raises(PromptError, match="the model holds 512"):
        preparer().prepare(conversation(*[0, 1, 2] * 5))


def test_images_are_bounded_together() -> None:
    messages = (Message("user", (*[ImagePart()] * 5, TextPart("?"))),)
    with pytest.raises(InputError, match="over 67 megapixels together"):
        preparer().prepare(Request(messages=messages, images=(png(4096, 4096),) * 5))


@pytest.mark.threat("late", "bombs")
def test_pictures_that_do_not_fit_are_refused_by_their_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(preprocess, "decode_image", never)
    with pytest.raises(PromptError, match="the model holds 512"):
        preparer().prepare(conversation(*[0, 1, 2] * 5))
    messages = (Message("user", (*[ImagePart()] * 12, TextPart("?"))),)
    with pytest.raises(InputError, match="over 67 megapixels together"):
        preparer().prepare(Request(messages=messages, images=(png(4096, 4096),) * 12))


def test_of_a_large_picture_only_what_the_model_sees_is_kept() -> None:
    found = preparer().prepare(Request.about(saved(Image.new("RGB", (4000, 3000), "teal"), "JPEG"), "What?"))
    assert (found.images[0].size, found.reduced) == ((64, 48), 0)


def test_a_large_photograph_is_reduced_and_travels_as_what_the_model_sees() -> None:
    file = saved(Image.linear_gradient("L").resize((6000, 4000)).convert("RGB"), "JPEG")
    found = preparer().prepare(Request.about(file, "What?"))
    assert found.reduced == 1
    (sent,) = Uploads().pack("worker", found, Execution(mode=Mode.CLOUD), None, FAMILY).files
    there = FAMILY.preprocess(decode_image(sent, TRAVELLING))
    assert np.array_equal(there.values, found.pixels[0].values)


@pytest.mark.parametrize("size", [(100, 75), (400, 400), (400, 30)])
@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "AVIF", "JPEG"])
@pytest.mark.parametrize("split", [False, True])
def test_whatever_came_a_worker_reads_what_travels_and_sees_the_same(
    kind: str, size: tuple[int, int], split: bool
) -> None:
    """Also where a picture is too small or too thin to travel as the model sees it."""
    family = SmolVLM(tile=64, patch=8, tile_tokens=16, longest_edge=192 if split else 64, split=split)
    ready = Preparer(msgspec.structs.replace(BUNDLE.manifest, family=family), PROMPTS, None, planned=False)
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = saved(Image.fromarray(noise), kind)
    header = read_header(file)
    seen = ready._decode(file, header, None)
    sent = family.shrink(file, seen.picture) if seen.file is None else seen.file
    there = family.preprocess(decode_image(sent, TRAVELLING))
    here = family.preprocess(decode_image(file))
    assert there.grid == here.grid == seen.pixels.grid
    assert np.array_equal(there.values, here.values)
    assert np.array_equal(seen.pixels.values, here.values)


def test_a_png_that_says_late_that_it_is_turned_gets_the_prompt_of_what_it_is() -> None:
    family = SmolVLM(tile=64, patch=8, tile_tokens=2, longest_edge=128, split=True)
    manifest = msgspec.structs.replace(BUNDLE.manifest, family=family)
    ready = Preparer(manifest, PromptBuilder(manifest, PROMPTS.vocabulary, TEMPLATE), None, planned=False)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.new("RGB", (128, 64), "teal"), "PNG", exif=exif.tobytes())
    at = data.index(b"eXIf") - 4
    length = 12 + int.from_bytes(data[at : at + 4], "big")
    late = data[:at] + data[at + length : -12] + data[at : at + length] + data[-12:]
    found = [ready.prepare(Request.about(one, "What?")) for one in (data, late)]
    assert found[0].pixels[0].grid == found[1].pixels[0].grid == (2, 1)
    assert found[0].prompt == found[1].prompt


def test_a_cut_needs_the_target() -> None:
    asked = Request.about(FILES[0], "What?", cut="decoder.1")
    preparer().prepare(asked)
    with pytest.raises(InputError, match="--target"):
        Preparer(BUNDLE.manifest, PROMPTS, None, planned=False).prepare(asked)


def test_a_family_whose_tokens_follow_no_size_takes_a_detail_and_refuses_a_number() -> None:
    plain = Request.about(FILES[0], "What?")
    low = Request(messages=(Message("user", (ImagePart("low"), TextPart("What?"))),), images=(FILES[0],))
    found, expected = preparer().prepare(low), preparer().prepare(plain)
    assert found.request == plain, "nothing is changed, so nothing is said to be"
    assert (found.prompt, found.names, found.reduced) == (expected.prompt, expected.names, 0)
    with pytest.raises(InputError, match=r"cannot have 1 image tokens or fewer with .*; give more image_tokens"):
        preparer().prepare(Request.about(FILES[0], "What?", image_tokens=1))
