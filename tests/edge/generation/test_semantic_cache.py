"""The memory of answers: what it finds, what it forgets, and what it never mistakes for what it has seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cutline.core.request import Mode, Request
from cutline.core.sampling import Sampling
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.generation.result import Answer, Provenance, Recalled, Token
from cutline.edge.generation.semantic_cache import BLOCK, ENTRIES, SIDE, SemanticCache, distance, miniatures
from cutline.models.images import decode_image

PICTURES = [decode_image(one.image) for one in requests(Split.EVALUATION, 12, seed=5)][::6]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def answered(text: str = "red", **options: object) -> Answer:
    fields: dict[str, object] = {
        "text": text,
        "tokens": [Token(5, text, Provenance.DRAFT)],
        "mode": Mode.DRAFT,
        "latency_ms": 80.0,
        "ttft_ms": 70.0,
        "bytes_up": 9000,
        "bytes_down": 30,
        "rounds": 1,
        "drafted": 1,
        "accepted": 1,
        "exact": True,
        "worker": "127.0.0.1:1",
        "cut": "image",
        "wire": None,
        "confidence": None,
        "complete": True,
    }
    return Answer(**(fields | options))  # type: ignore[arg-type]


def asking(text: str = "Which colour?", **options: object) -> Request:
    return Request.about(b"never read", text, **options)


def noisy(picture: Image.Image, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, 4, (*picture.size[::-1], 3))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).round().astype(np.uint8))


def test_the_same_scene_is_remembered_and_says_since_when() -> None:
    memory = SemanticCache(60.0, clock=(clock := Clock()))
    memory.keep(asking(), PICTURES[:1], answered())
    clock.now += 3.0
    found = memory.find(asking(), [noisy(PICTURES[0], 1)])
    assert found is not None
    answer, recalled = found
    assert answer == answered()
    assert recalled.age_ms == pytest.approx(3000.0)
    assert 0.0 < recalled.distance < 0.05


@pytest.mark.parametrize("other", PICTURES[1:])
def test_another_scene_is_not(other: Image.Image) -> None:
    memory = SemanticCache(60.0)
    memory.keep(asking(), PICTURES[:1], answered())
    assert memory.find(asking(), [other]) is None


@pytest.mark.parametrize(
    "question",
    [
        asking("Which digit?"),
        asking(mode=Mode.CLOUD),
        asking(max_tokens=3),
        asking(stop=("x",)),
        asking(logprobs=0),
        asking(tenant="harbour"),
        asking(sampling=Sampling(temperature=0.5, seed=1)),
    ],
)
def test_another_question_is_not(question: Request) -> None:
    memory = SemanticCache(60.0)
    memory.keep(asking(), PICTURES[:1], answered())
    assert memory.find(question, PICTURES[:1]) is None
    assert memory.find(asking(), PICTURES[:1]) is not None


def test_the_nearest_of_several_answers() -> None:
    memory = SemanticCache(60.0)
    nearer, farther = (Image.blend(PICTURES[0], PICTURES[1], share) for share in (0.01, 0.02))
    memory.keep(asking(), [farther], answered("far"))
    memory.keep(asking(), [nearer], answered("near"))
    found = memory.find(asking(), PICTURES[:1])
    assert found is not None
    assert found[0].text == "near"


def test_what_is_old_is_forgotten() -> None:
    memory = SemanticCache(60.0, clock=(clock := Clock()))
    memory.keep(asking(), PICTURES[:1], answered())
    clock.now += 60.0
    assert memory.find(asking(), PICTURES[:1]) is not None
    clock.now += 0.1
    assert memory.find(asking(), PICTURES[:1]) is None


@pytest.mark.parametrize(
    "options", [{"complete": False}, {"alone_from": 1}, {"recalled": Recalled(age_ms=1.0, distance=0.0)}]
)
def test_what_is_never_remembered(options: dict[str, Any]) -> None:
    memory = SemanticCache(60.0)
    memory.keep(asking(), PICTURES[:1], answered(**options))
    assert memory.find(asking(), PICTURES[:1]) is None


def test_it_holds_so_many_and_drops_the_question_asked_longest_ago() -> None:
    memory = SemanticCache(60.0)
    for number in range(ENTRIES + 1):
        memory.keep(asking(f"Number {number}?"), PICTURES[:1], answered())
    assert memory.find(asking("Number 0?"), PICTURES[:1]) is None
    assert memory.find(asking("Number 1?"), PICTURES[:1]) is not None


def test_several_images_must_all_be_near() -> None:
    memory = SemanticCache(60.0)
    memory.keep(asking(), PICTURES[:2], answered())
    assert memory.find(asking(), PICTURES[:2]) is not None
    assert memory.find(asking(), [PICTURES[0], PICTURES[2]]) is None


@given(
    st.tuples(st.integers(0, SIDE // BLOCK - 1), st.integers(0, SIDE // BLOCK - 1)),
    st.floats(0.05, 1.0),
    st.lists(st.floats(0, 0.04), min_size=1, max_size=3),
)
def test_a_change_in_one_block_counts_whole(block: tuple[int, int], change: float, elsewhere: Sequence[float]) -> None:
    first = np.zeros((SIDE, SIDE, 3), np.float32)
    second = np.full_like(first, elsewhere[0])
    row, column = (BLOCK * place for place in block)
    second[row : row + BLOCK, column : column + BLOCK] = change
    assert distance(first, second) == pytest.approx(change, rel=1e-5)
    assert distance(first, first) == 0.0


def test_a_miniature_is_small_and_in_colour() -> None:
    (shown,) = miniatures([Image.new("RGB", (640, 480), (255, 0, 51))])
    assert shown.shape == (SIDE, SIDE, 3)
    assert shown[3, 7].tolist() == pytest.approx([1.0, 0.0, 0.2])
