"""Conversations that can be asked, and those that cannot."""

from __future__ import annotations

from typing import Any

import pytest

from cutline.core.conversation import ImagePart, Message, TextPart
from cutline.core.request import MAX_IMAGE_BYTES, MAX_IMAGES, Mode, Request
from cutline.core.wire import Wire
from cutline.errors import InputError, PromptError

ASKS = Message("user", (ImagePart(), TextPart("What is it?")))
SAYS = Message("assistant", (TextPart("A card."),))
MORE = Message("user", (TextPart("And then?"),))


def test_a_conversation_is_of_turns_and_images_or_none() -> None:
    asked = Request(messages=(ASKS, SAYS, MORE), images=(b"file",))
    assert asked.text == "And then?"
    Request(messages=(Message("system", (TextPart("Be brief."),)), MORE))
    Request(messages=(ASKS, SAYS, ASKS), images=(b"one", b"other"))
    assert Request.about(b"file", "What?", mode=Mode.EDGE).images == (b"file",)


@pytest.mark.parametrize(
    ("messages", "images", "said"),
    [
        ((), (), "the question is empty"),
        ((Message("user", (TextPart(" \n"),)),), (), "the question is empty"),
        ((ASKS, SAYS), (b"file",), "the last message is the assistant's"),
        ((MORE, Message("system", (TextPart("Be brief."),))), (), "the last message is the system's"),
        ((MORE,), (b"file",), "places for 0 images, but 1 came"),
        ((ASKS, SAYS, MORE), (), "places for 1 images, but 0 came"),
        ((ASKS,), (b"one", b"other"), "places for 1 images, but 2 came"),
        ((Message("user", (TextPart("\ud800"),)),), (), "code points"),
    ],
)
def test_what_is_no_question_is_refused(messages: Any, images: Any, said: str) -> None:
    with pytest.raises(PromptError, match=said) as refused:
        Request(messages=messages, images=images)
    assert "\n" not in str(refused.value)


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(PromptError, match="role must be one of"):
        Message("narrator", (TextPart("x"),))  # type: ignore[arg-type]


def test_no_more_is_asked_than_a_worker_takes() -> None:
    parts = (ImagePart(),) * MAX_IMAGES
    Request(messages=(Message("user", (*parts, TextPart("?"))),), images=(b"file",) * MAX_IMAGES)
    with pytest.raises(InputError, match=f"{MAX_IMAGES + 1} images are too many; give {MAX_IMAGES} at most"):
        Request(messages=(Message("user", (*parts, ImagePart(), TextPart("?"))),), images=(b"file",) * (MAX_IMAGES + 1))
    half = bytes(MAX_IMAGE_BYTES // 2)
    two = (Message("user", (ImagePart(), ImagePart(), TextPart("?"))),)
    Request(messages=two, images=(half, half))
    with pytest.raises(InputError, match="over 32 MiB together"):
        Request(messages=two, images=(half, half + b"x"))


def test_mode_and_wire_may_be_given_by_name() -> None:
    request = Request.about(b"x", "What?", mode="draft", cut="vision.1", wire="int8")
    assert (request.mode, request.wire) == (Mode.DRAFT, Wire.INT8)
    assert isinstance(request.mode, Mode)
    with pytest.raises(InputError, match="there is no mode 'magic'; choose edge, cloud, split, draft, auto"):
        Request.about(b"x", "What?", mode="magic")
    with pytest.raises(InputError, match="there is no wire format 'fp8'; choose fp32"):
        Request.about(b"x", "What?", wire="fp8")
