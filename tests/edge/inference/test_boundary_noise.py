"""Noise on boundaries: how strong it is, that it is drawn once for good, and that it touches nothing else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cutline.core.conversation import question
from cutline.core.request import Mode, Request
from cutline.demo.bundles import TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.inference.boundary_noise import Noise, new_secret, noisy, normal
from cutline.edge.inference.kv_cache import Key
from cutline.edge.inference.target_prefix import Crossing, TargetSpan
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.prompt import PromptBuilder

BUNDLE = Bundle.open(TARGET)
MANIFEST = BUNDLE.manifest
PIXELS = MANIFEST.family.preprocess(decode_image(next(requests(Split.EVALUATION, 1, seed=5)).image))
PROMPT = PromptBuilder.open(BUNDLE).build([question("What is left?")], [PIXELS.grid]).ids
NAME, SECRET = b"\1" * 32, b"\2" * 32
ANSWER = (20, 21, 22)


def conversation(span: TargetSpan, noise: Noise | None, *, name: bytes = NAME) -> Crossing:
    return span.converse(PROMPT, [PIXELS], names=[name], noise=noise)


def opened(crossing: Crossing, answer: tuple[int, ...] = ()) -> NDArray[np.float32]:
    return np.concatenate(list(crossing.opening(answer)))


def drawn(blurred: NDArray[np.float32], clean: NDArray[np.float32], share: float) -> NDArray[np.float64]:
    """The standard normal values that made one of the other."""
    root = np.sqrt((clean.astype(np.float64) ** 2).mean(axis=1, keepdims=True))
    values: NDArray[np.float64] = (blurred - clean.astype(np.float64)) / (share * root)
    return values


def is_standard_normal(values: NDArray[np.float64]) -> bool:
    """Kolmogorov's test against the closed form, by which one true sample in 1000 fails."""
    ordered, count = np.sort(values.ravel()), values.size
    expected = np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in ordered])
    steps = np.arange(count + 1) / count
    return bool(max((steps[1:] - expected).max(), (expected - steps[:-1]).max()) < 1.95 / math.sqrt(count))


def test_values_are_standard_normal_and_independent() -> None:
    values = normal(b"seed", (200, 101)).astype(np.float64)
    assert is_standard_normal(values)
    assert not is_standard_normal(values * 1.05), "the test can fail"
    assert not is_standard_normal(values + 0.05)
    bound = 4 / math.sqrt(values.size)  # of four standard deviations
    flat = values.ravel()
    for lag in (1, 2, 101, values.size // 2):  # also of the pairs that Box and Muller make
        assert abs(np.mean(flat[:-lag] * flat[lag:])) < 4 / math.sqrt(values.size - lag)
        assert abs(np.mean((flat[:-lag] ** 2 - 1) * (flat[lag:] ** 2 - 1))) < 8 / math.sqrt(values.size - lag)
    assert abs(np.mean(flat * normal(b"Seed", (200, 101)).ravel())) < bound


@pytest.mark.parametrize("share", [0.01, 0.5, 3.0])
def test_its_strength_is_a_share_of_each_row(share: float) -> None:
    rows = np.random.default_rng(1).normal(scale=np.logspace(-3, 3, 40)[:, None], size=(40, 256)).astype(np.float32)
    blurred = noisy(rows, share, normal(b"seed", rows.shape))
    assert blurred.dtype == np.float32
    assert is_standard_normal(drawn(blurred, rows, share))
    assert np.array_equal(noisy(np.zeros((2, 8), np.float32), share, normal(b"", (2, 8))), np.zeros((2, 8)))


def test_what_differs_in_anything_has_noise_of_its_own() -> None:
    ones = np.ones((5, 64), np.float32)
    images = [
        Noise.at(cut, share, secret).on_image(ones, name, keep) / share
        for cut, share, secret, name, keep in [
            ("decoder.0", 1.0, SECRET, NAME, 1.0),
            ("decoder.1", 1.0, SECRET, NAME, 1.0),
            ("decoder.0", 2.0, SECRET, NAME, 1.0),
            ("decoder.0", 1.0, new_secret(), NAME, 1.0),
            ("decoder.0", 1.0, SECRET, b"\3" * 32, 1.0),
            ("decoder.0", 1.0, SECRET, NAME, 0.5),
        ]
    ]
    noise = Noise.at("decoder.1", 1.0, SECRET)
    prompts: list[list[Key]] = [[1, 2, 3, 4, 5], [0, 2, 3, 4, 5], [9, 1, 2, 3, 4, 5], [((NAME, 1.0), 0), 12, 3, 4, 5]]
    rows = np.concatenate([*images, *(noise.on_tokens(ones, keys) for keys in prompts)])
    alike = np.abs(np.corrcoef(rows)) - np.eye(len(rows))
    assert alike.max() < 0.65  # of 1225 pairs of 64 values each; equal ones have 1
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_tokens_have_the_noise_of_all_that_came_before() -> None:
    rows, noise = np.random.default_rng(2).normal(size=(6, 32)).astype(np.float32), Noise.at("decoder.1", 0.5, SECRET)
    keys: list[Key] = [((NAME, 1.0), 0), ((NAME, 1.0), 1), 7, 7, 8, 9]
    whole = noise.on_tokens(rows, keys)
    assert np.array_equal(whole[4:], noise.on_tokens(rows[4:], keys)), "in whatever pieces it goes"
    other = noise.on_tokens(rows, [*keys[:3], 6, *keys[4:]])
    assert [np.array_equal(*pair) for pair in zip(whole, other, strict=True)] == [True] * 3 + [False] * 3


@pytest.mark.parametrize("cut", ["vision.1", "decoder.0", "decoder.2"])
def test_it_is_on_all_that_crosses_and_on_nothing_else(cut: str) -> None:
    span = TargetSpan.open(BUNDLE, cut, threads=1)
    answer = ANSWER if cut == "decoder.2" else ()
    clean = opened(conversation(span, None), answer)
    blurred = opened(conversation(span, Noise.at(cut, 0.5, SECRET)), answer)
    assert is_standard_normal(drawn(blurred, clean, 0.5))
    np.testing.assert_allclose(opened(conversation(span, None), answer), clean, atol=1e-5)


@pytest.mark.parametrize("cut", ["decoder.0", "decoder.2"])
def test_who_has_it_sent_again_learns_nothing_new(cut: str) -> None:
    span, noise = TargetSpan.open(BUNDLE, cut, threads=1), Noise.at(cut, 0.5, SECRET)
    clean = opened(conversation(span, None))
    first = conversation(span, noise)
    seen = [opened(first), opened(first)]
    del first
    span.forget()  # as after a while: everything is computed anew
    seen += [opened(conversation(span, noise)) for _ in range(3)]
    for again in seen[1:]:
        np.testing.assert_allclose(again, seen[0], atol=1e-4)
    elsewhere = [opened(conversation(span, Noise.at(cut, 0.5, new_secret()))) for _ in range(4)]
    one, averaged = (np.std(drawn(rows, clean, 0.5)) for rows in (seen[0], np.mean(elsewhere, axis=0)))
    assert averaged == pytest.approx(one / 2, rel=0.1), "so would fresh noise be averaged away"


def test_a_token_that_is_taken_back_and_sent_again_has_its_noise() -> None:
    span = TargetSpan.open(BUNDLE, "decoder.2", threads=1)
    crossing = conversation(span, Noise.at("decoder.2", 0.5, SECRET))
    whole = opened(crossing, ANSWER)[len(PROMPT) :]
    wrong = crossing.again(1, (99, 98))
    np.testing.assert_allclose(crossing.again(1, ANSWER[1:]), whole[1:], atol=1e-4)
    assert np.abs(wrong - whole[1:]).max() > 0.1


def test_without_noise_none_of_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise AssertionError

    for name in ("on_image", "on_tokens"):
        monkeypatch.setattr(Noise, name, fails)
    for cut in ("decoder.0", "decoder.2"):
        assert len(opened(conversation(TargetSpan.open(BUNDLE, cut, threads=1), None)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"noise": 0.5}, "needs a cut after image"),
        ({"noise": 0.5, "mode": Mode.EDGE}, "needs a cut after image"),
        ({"noise": 0.5, "mode": Mode.CLOUD}, "needs a cut after image"),
        ({"noise": 0.5, "cut": "decoder.0", "exact": True}, "nothing to plan"),
        ({"noise": -0.1, "cut": "decoder.0"}, "noise is -0.1"),
        ({"noise": 11.0, "cut": "decoder.0"}, "noise is 11.0"),
        ({"noise": math.nan, "cut": "decoder.0"}, "noise is nan"),
    ],
)
def test_noise_that_means_nothing_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Request.about(b"", "What?", **options)
