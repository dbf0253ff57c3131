from __future__ import annotations

import itertools

import pytest

from cutline.demo.bundles import TARGET
from cutline.demo.cards import Split
from cutline.demo.reference import Reference
from cutline.demo.requests import requests
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image, preprocess
from cutline.models.prompt import PromptBuilder, question
from cutline.protos.messages import Open

MAX_TOKENS = 40

Case = tuple[Open, bytes, tuple[int, ...]]


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """The demo's target."""
    return Bundle.open(TARGET)


@pytest.fixture(scope="session")
def cases(bundle: Bundle) -> list[Case]:
    """Questions of every kind about two cards: the opening, the image, and the answer of transformers' `generate`."""
    reference, prompts = Reference(bundle), PromptBuilder.open(bundle)
    found = []
    for one in itertools.islice(requests(Split.CALIBRATION, 2, seed=4), 12):
        pixels = preprocess(decode_image(one.image), bundle.manifest.image)
        prompt = prompts.build([question(one.question.text)], [pixels.grid]).ids
        opening = Open(
            model=bundle.manifest.identity,
            tokens=prompt,
            prompt_length=len(prompt),
            max_tokens=MAX_TOKENS,
            images=1,
        )
        found.append((opening, one.image, reference.answer(one.image, one.question.text, max_tokens=MAX_TOKENS)))
    return found


@pytest.fixture(scope="session")
def case(cases: list[Case]) -> Case:
    """The one with the longest answer."""
    return max(cases, key=lambda case: len(case[2]))
