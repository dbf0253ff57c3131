"""What the agent learns from its traffic, held against worlds whose figures are known."""

from __future__ import annotations

import math
from itertools import accumulate, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.partitioner.estimators import (
    HALF_LIFE,
    MAX_CORRECTION,
    MAX_KINDS,
    NOISE,
    Average,
    Guess,
    LinkEstimate,
    Live,
    Observation,
    Opening,
)

OVERHEAD = 3e-3


def live(*, rtt: float = 0.05, uplink: float = 1e6) -> Live:
    return Live(
        at=0.0,
        link=LinkEstimate.around(rtt, uplink),
        acceptance=Average.of(0.8, 5),
        kept={"plain": Average.of(0.7, 20), "other": Average.of(0.7, 20)},
    )


def session(
    rng: np.random.Generator, *, rtt: float, uplink: float, sizes: tuple[int, ...] = (300, 20_000), queue: float = 0.0
) -> Opening:
    """An opening over such a link, its messages a millisecond apart, each time measured a little wrongly."""
    sent = [(index * 1e-3, size) for index, size in enumerate(sizes)]
    free = 0.0
    arrived = [free := max(at, free) + size / uplink for at, size in sent]
    prepare = 4e-3
    hiccup, jitter = rng.exponential(3e-4), 1 + 0.05 * rng.standard_normal()
    upload = (arrived[-1] - arrived[0]) * jitter
    answered = arrived[0] + rtt * jitter + upload + prepare + queue + OVERHEAD + hiccup
    return Opening(sent=sent, answered=answered, upload=upload, prepare=prepare, queue=queue)


figures = st.floats(math.log(1 / 10_000), math.log(10_000)).map(math.exp)
seeds = st.integers(0, 2**32 - 1)


@given(prior=st.floats(1e-9, 1e3), off=figures, seconds=st.floats(0.03, 3.0), seed=seeds)
def test_a_guess_finds_what_it_is_shown(prior: float, off: float, seconds: float, seed: int) -> None:
    """Whatever the unit, and however wrong the profile was."""
    true, rng = prior * off, np.random.default_rng(seed)
    amount = seconds / true
    guess = Guess.around(prior)
    assert guess.value == pytest.approx(prior)
    for _ in range(12):
        guess = guess.after(amount * guess.values, seconds * (1 + 0.05 * rng.standard_normal()))
    assert guess.value == pytest.approx(true, rel=0.15)
    assert guess.likely.sum() == pytest.approx(1)


@given(prior=st.floats(1e-9, 1e3), seconds=st.lists(st.floats(0, NOISE / 2), min_size=1, max_size=200))
def test_what_is_too_short_to_measure_only_proves_to_be_short(prior: float, seconds: list[float]) -> None:
    amount = NOISE / 20 / prior
    guess = Guess.around(prior)
    for one in seconds:
        guess = guess.after(amount * guess.values, one)
    assert amount * guess.value < NOISE
    assert guess.value > prior / 4, "a hundred times faster is as likely as it was"


@given(off=st.floats(5, 50), slower=st.booleans(), seed=seeds)
def test_a_hiccup_passes_and_a_change_stays(off: float, slower: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, after = 0.1, 0.1 * off if slower else 0.1 * 5 / off

    def shown(guess: Guess, true: float, times: int) -> Guess:
        for _ in range(times):
            guess = guess.after(guess.values, true * (1 + 0.03 * rng.standard_normal()))
        return guess

    settled = shown(Guess.around(0.1), before, 15)
    once = shown(settled, after, 1)
    assert abs(math.log(once.value / before)) < 0.75 * abs(math.log(off)) + 0.1
    assert shown(once, before, 3).value == pytest.approx(before, rel=0.15)
    assert shown(once, after, 4).value == pytest.approx(after, rel=0.2)


def test_a_guess_forgets() -> None:
    guess = Guess.around(1.0)
    for _ in range(10):
        guess = guess.after(guess.values, 5.0)
    assert guess.aged(1.0).value == pytest.approx(guess.value)
    assert guess.aged(0.0).value == pytest.approx(1.0)
    assert 1.0 < guess.aged(0.5).value < guess.value


@given(prior=st.floats(-5, 5), worth=st.floats(0.1, 20), seen=st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 30))))
def test_an_average_is_the_weighted_mean_in_which_all_that_came_before_counts_less(
    prior: float, worth: float, seen: list[tuple[float, float]]
) -> None:
    average = Average.of(prior, worth)
    for value, times in seen:
        average = average.after(value, times)
    values = [prior, *(value for value, _ in seen)]
    weights = [times * 0.85 ** (len(seen) - index) for index, times in enumerate([worth, *(t for _, t in seen)])]
    assert average.value == pytest.approx(np.average(values, weights=weights), abs=1e-6)
    assert average.count == pytest.approx(sum(weights))
    aged = average.aged(0.25)
    assert aged.value == pytest.approx(prior + (average.value - prior) / 4)


@given(
    sent=st.lists(st.tuples(st.floats(0, 0.2), st.integers(1, 100_000)), min_size=1, max_size=6),
    byte=st.floats(1e-9, 1e-4),
)
def test_messages_arrive_one_behind_the_other(sent: list[tuple[float, int]], byte: float) -> None:
    """The last one arrives when the wire has carried all that was given to it since it was last free."""
    starts = [0.0, *accumulate(wait for wait, _ in sent[1:])]
    messages = [(at, size) for at, (_, size) in zip(starts, sent, strict=True)]
    opening = Opening(sent=messages, answered=1.0, upload=0.0, prepare=0.0, queue=0.0)
    last = max(at + byte * sum(size for _, size in messages[index:]) for index, (at, _) in enumerate(messages))
    assert opening.arriving(np.array([byte]))[0] == pytest.approx(last - byte * messages[0][1], abs=1e-12)


@given(rtt=st.floats(0.02, 0.8), uplink=st.floats(2e4, 2e6), told=st.tuples(figures, figures), seed=seeds)
def test_the_link_is_found_whatever_its_profile_said(
    rtt: float, uplink: float, told: tuple[float, float], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    link = LinkEstimate.around(rtt * told[0], uplink * told[1])
    for _ in range(15):
        link = link.after(session(rng, rtt=rtt, uplink=uplink), overhead=OVERHEAD)
    # What is left of a wrong uplink in the first message's time goes to the round trip: some hundred bytes.
    assert link.trip.value == pytest.approx(rtt, rel=0.25, abs=2 * NOISE)
    assert 20_000 * link.byte.value == pytest.approx(20_000 / uplink, rel=0.25, abs=2 * NOISE)


def test_the_workers_own_time_is_not_the_links() -> None:
    rng = np.random.default_rng(0)
    quick = busy = live()
    for _ in range(10):
        quick = quick.after(
            Observation(kind=0, tokens=5, opening=session(rng, rtt=0.05, uplink=1e6)), overhead=OVERHEAD
        )
        waited = session(rng, rtt=0.05, uplink=1e6, queue=0.4)
        busy = busy.after(Observation(kind=0, tokens=5, opening=waited), overhead=OVERHEAD)
    assert busy.link.trip.value == pytest.approx(quick.link.trip.value, rel=0.3)
    assert quick.queue.value == pytest.approx(0.0, abs=1e-9)
    assert busy.queue.value == pytest.approx(0.4, rel=0.2)
    assert busy.aged(120.0).queue.value < 0.02, "a worker is busy for a while only"


@given(factor=st.floats(0.1, 10), mode=st.sampled_from(["cloud", "draft"]))
def test_a_correction_converges_when_predictions_are_off_by_a_factor(factor: float, mode: str) -> None:
    known, before = live(), 1.0
    for _ in range(40):
        known = known.corrected(mode, 1e3 * factor, 1e3)
        now = known.correction(mode)
        assert min(factor, 1.0) - 1e-3 <= now <= max(factor, 1.0) + 1e-3, "never beyond"
        assert abs(math.log(now)) >= abs(math.log(before)) - 1e-6, "nor back"
        before = now
    assert before == pytest.approx(min(max(factor, 1 / MAX_CORRECTION), MAX_CORRECTION), rel=0.03)
    assert known.correction("split") == 1.0
    assert known.aged(20 * HALF_LIFE).correction(mode) == pytest.approx(1.0, abs=0.01)


@given(st.floats(0, NOISE), st.floats(0, NOISE))
def test_what_noise_explains_is_hardly_corrected(measured: float, predicted: float) -> None:
    assert 0.7 < live().corrected("auto", measured, predicted).correction("auto") < 1.4


def test_lengths_are_kept_apart_by_kind_and_not_for_ever() -> None:
    known = live()
    for _ in range(20):
        known = known.after(Observation(kind="short", tokens=2), overhead=OVERHEAD)
        known = known.after(Observation(kind="long", tokens=40), overhead=OVERHEAD)
    assert known.expected_tokens("short") == pytest.approx(2, abs=1)
    assert known.expected_tokens("long") == pytest.approx(40, abs=2)
    assert 2 < known.expected_tokens("never asked") < 40
    for kind in range(200):
        known = known.after(Observation(kind=kind, tokens=10), overhead=OVERHEAD)
    assert len(known.lengths) <= MAX_KINDS + 1
    assert known.expected_tokens("short") == known.tokens.value


def test_the_rest_of_an_answer_is_learnt_too() -> None:
    known = live()
    for _ in range(30):
        seen = Observation(kind=0, tokens=8, group="plain", right=6, tried=12, kept=False, density=2.5)
        known = known.after(seen, overhead=OVERHEAD)
    assert known.acceptance.value == pytest.approx(0.5, abs=0.01)
    assert known.kept["plain"].value < 0.1
    assert known.kept["other"].value == 0.7, "of another group nothing was seen"
    assert known.density.value == pytest.approx(2.5, rel=0.01)
    untouched = known.after(Observation(kind=0, tokens=8), overhead=OVERHEAD)
    assert (untouched.acceptance, untouched.kept, untouched.link) == (known.acceptance, known.kept, known.link)
    assert known.aged(20 * HALF_LIFE).kept["plain"].value == pytest.approx(0.7, abs=0.01)


def test_two_figures_that_show_in_one_time_are_told_apart_by_their_priors_alone() -> None:
    """Bayes' rule, pair by pair: the surer figure moves less, and what both explain is shared."""
    sure, unsure = Guess.around(1.0, 0.5), Guess.around(1.0, 3.0)
    expected = sure.values[:, None] + unsure.values
    one, two = sure.together(unsure, expected, 6.0)
    weights = np.zeros(expected.shape)
    for i, j in product(range(len(sure.values)), range(len(unsure.values))):
        spread = max(NOISE, 0.1 * expected[i, j])
        off = max(abs(6.0 - expected[i, j]) - NOISE / 2, 0.0)
        fits = 0.95 * math.exp(-((off / spread) ** 2) / 2) / spread + 0.05 / 60.0
        weights[i, j] = sure.prior[i] * unsure.prior[j] * fits
    weights /= weights.sum()
    assert one.likely == pytest.approx(weights.sum(axis=1))
    assert two.likely == pytest.approx(weights.sum(axis=0))
    assert one.value < 1.5
    assert two.value > 2.5
    assert one.likely.sum() == pytest.approx(two.likely.sum()) == pytest.approx(1.0)
