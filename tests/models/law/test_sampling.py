"""The law of the next token, against numpy's own Philox, scipy's distributions and transformers' warpers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from cutline.core.sampling import MAX_NAMED, Sampling
from cutline.errors import InputError
from cutline.models.law.noise import _log, _philox, gumbel
from cutline.models.law.sampling import _kept, _weights, choose

seeds = st.integers(0, 2**63 - 1)
positions = st.integers(0, 2**40)


def test_philox_gives_the_published_vectors() -> None:
    """Known answers of Random123's kat_vectors for philox4x32-10."""
    ones = 0xFFFFFFFF
    vectors = [
        ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ones] * 4, [ones] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ]
    for counter, key, expected in vectors:
        words = _philox([np.array([word], dtype=np.int64) for word in counter], list(key))
        assert [int(word[0]) for word in words] == expected


@given(seeds, positions, st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_noise_has_the_same_bits_from_numpy_and_torch(seed: int, position: int, size: int) -> None:
    ours, theirs = gumbel(seed, position, size), gumbel(seed, position, size, xp=torch)
    assert ours.dtype == np.float32
    assert theirs.dtype == torch.float32
    assert ours.tobytes() == theirs.numpy().tobytes()


def test_noise_depends_on_seed_and_position_alone() -> None:
    assert np.array_equal(gumbel(3, 9, 50), gumbel(3, 9, 80)[:50])
    assert not np.array_equal(gumbel(3, 9, 50), gumbel(4, 9, 50))
    assert not np.array_equal(gumbel(3, 9, 50), gumbel(3, 10, 50))


def test_noise_is_gumbel() -> None:
    noise = np.concatenate([gumbel(1, position, 4000) for position in range(10)])
    assert np.isfinite(noise).all()
    assert stats.kstest(noise, "gumbel_r").pvalue > 0.01


@given(st.floats(1e-300, 1e300))
def test_log_is_the_logarithm(x: float) -> None:
    assert _log(np.array([x]), np)[0] == pytest.approx(np.log(x), rel=1e-13, abs=1e-14)


@pytest.mark.sampled(3_000, 20_000)
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.8),
        Sampling(temperature=1.3, top_k=5),
        Sampling(temperature=1.0, top_p=0.7),
        Sampling(temperature=0.9, min_p=0.3),
        Sampling(temperature=1.2, top_k=9, top_p=0.9, min_p=0.1),
    ],
)
def test_tokens_have_the_distribution_of_the_warped_softmax(sampling: Sampling, rounds: int) -> None:
    logits = np.random.default_rng(0).normal(0, 1.5, 12).astype(np.float32)
    warped = torch.from_numpy(logits)[None] / sampling.temperature
    if sampling.top_k:
        warped = TopKLogitsWarper(sampling.top_k)(None, warped)
    if sampling.top_p < 1:
        warped = TopPLogitsWarper(sampling.top_p)(None, warped)
    if sampling.min_p:
        warped = MinPLogitsWarper(sampling.min_p)(None, warped)
    expected = warped.softmax(-1)[0].double().numpy()
    seen = np.bincount([choose(logits, sampling, position) for position in range(rounds)], minlength=12)
    kept = expected > 0
    assert seen[~kept].sum() == 0
    expected = expected[kept] / expected[kept].sum()
    assert stats.chisquare(seen[kept], expected * rounds).pvalue > 0.01


@given(
    st.builds(
        Sampling,
        temperature=st.floats(0.1, 3.0),
        top_k=st.integers(0, 40),
        top_p=st.floats(0.05, 1.0),
        min_p=st.floats(0.0, 1.0),
        seed=seeds,
    ),
    positions,
)
@settings(max_examples=100, deadline=None)
def test_numpy_and_torch_choose_the_same_token(sampling: Sampling, position: int) -> None:
    logits = np.random.default_rng(position % 1000).normal(0, 2, 40).astype(np.float32)
    assert choose(logits, sampling, position) == choose(torch.from_numpy(logits), sampling, position, xp=torch)


@pytest.mark.parametrize("seed", range(6))
def test_top_p_leaves_the_same_tokens_in_numpy_and_torch(seed: int) -> None:
    """Of a large vocabulary, where floats would be summed in another order."""
    dice = np.random.default_rng(seed)
    scaled = (dice.normal(0, 1 + seed % 3, 151_936) * 2).astype(np.float32)
    scaled[dice.integers(0, len(scaled), 50)] = -np.inf  # which a constraint forbids
    weights = _weights(np.sort(scaled)[::-1].copy(), np)
    assert weights.tobytes() == _weights(torch.from_numpy(np.sort(scaled)[::-1].copy()), torch).numpy().tobytes()
    exact = np.exp(np.sort(scaled)[::-1].astype(np.float64) - scaled.max())
    assert np.abs(weights / 2.0**40 - exact).max() <= 2.0**-39
    shares = np.cumsum(exact) / exact.sum()
    for top_p in dice.uniform(0.01, 1.0, 20):
        sampling = Sampling(temperature=1.0, top_p=top_p)
        kept = _kept(scaled, sampling, np)
        assert kept.tobytes() == _kept(torch.from_numpy(scaled), sampling, torch).numpy().tobytes()
        assert abs(kept.sum() - np.searchsorted(shares, top_p) - 1) <= 1


def test_greedy_is_argmax_and_the_best_token_is_always_kept() -> None:
    logits = np.array([0.1, 2.0, -1.0, 1.9], np.float32)
    assert choose(logits, Sampling(), 5) == 1
    assert choose(logits, Sampling(temperature=1.0, top_p=1e-6), 5) == 1
    assert _kept(logits, Sampling(temperature=1.0, top_k=2), np).tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": 1e-3},
        {"top_k": -1},
        {"top_k": 2**31},
        {"top_p": 0.0},
        {"min_p": 1.5},
        {"seed": -1},
        {"seed": 2**63},
        {"repetition_penalty": 0.0},
        {"presence_penalty": 2.5},
        {"frequency_penalty": float("inf")},
        {"logit_bias": ((1, 101.0),)},
        {"logit_bias": ((-1, 1.0),)},
        {"logit_bias": ((1, float("nan")),)},
        {"logit_bias": ((1, 1.0),) * (MAX_NAMED + 1)},
        {"stop_token_ids": (-1,)},
        {"stop_token_ids": (1,) * (MAX_NAMED + 1)},
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(InputError, match=f"^{name.replace('_', '-')} .*(give|from)"):
        Sampling(**wrong)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"top_p": 0.0}, "top-p is 0.0; give more than 0, and 1 at most"),
        ({"min_p": -1.0}, "min-p is -1.0; give 0 to 1"),
        ({"top_k": -1}, "top-k is -1; give 0 or more, below 2**31"),
    ],
)
def test_ranges_are_said_in_words(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as found:
        Sampling(**wrong)
    assert str(found.value) == words


def test_a_bias_of_a_token_that_is_not_there_is_refused() -> None:
    sampling = Sampling(logit_bias=((3, 1.0), (12, 1.0)))
    sampling.check_tokens(13)
    with pytest.raises(InputError, match="names the token 12; this model has 12"):
        sampling.check_tokens(12)
    with pytest.raises(InputError, match="stop-token-ids names the token 12; this model has 12"):
        Sampling(stop_token_ids=(3, 12)).check_tokens(12)
