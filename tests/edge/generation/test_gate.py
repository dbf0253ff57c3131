from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, binomtest

from cutline.cli.terminal.gate_view import view_of
from cutline.core.agreement.measures import Wording
from cutline.core.agreement.shares import binomial_tail
from cutline.demo.bundles import DRAFTER
from cutline.edge.generation.conditions import GROUPS, PLAIN
from cutline.edge.generation.gate import (
    ANSWERS,
    MAX_TOKENS,
    TARGET,
    Gate,
    Group,
    Population,
    Sample,
    calibrate_gate,
    calibrate_group,
    confidence_of,
    open_gate,
    save_gate,
    upstream_named,
)
from cutline.edge.generation.result import Decision, Gated
from cutline.edge.inference.drafter import Drafted
from cutline.errors import BundleError
from cutline.models.bundle import MANIFEST, Bundle, write_manifest
from cutline.testing.models.manifests import edit_manifest

STOP = 9


def group(threshold: float) -> Group:
    return Group(threshold=threshold, risk=0.05, confidence=0.9, requests=1, kept=1, disagreed=0)


def gate(threshold: float) -> Gate:
    return Gate({PLAIN: group(threshold), GROUPS[3]: group(2.0)})


@given(count=st.integers(1, 2000), share=st.floats(0, 1), rate=st.floats(1e-6, 1 - 1e-6))
def test_binomial_tail_is_scipys(count: int, share: float, rate: float) -> None:
    errors = int(share * count)
    assert binomial_tail(errors, count, rate) == pytest.approx(binom.cdf(errors, count, rate), rel=1e-8, abs=1e-12)


def kept_by(threshold: float, confidences: Sequence[float]) -> NDArray[np.bool_]:
    return np.asarray(confidences) >= threshold


pairs = st.lists(st.tuples(st.floats(0, 1) | st.sampled_from([0.25, 0.5, 1.0]), st.booleans()), max_size=300)


@settings(max_examples=200)
@given(pairs=pairs, risk=st.floats(0.01, 0.5), confidence=st.floats(0.5, 0.99))
def test_a_gates_figures_are_those_of_its_threshold(
    pairs: list[tuple[float, bool]], risk: float, confidence: float
) -> None:
    confidences, agreed = [one for one, _ in pairs], [other for _, other in pairs]
    found = calibrate_group(confidences, agreed, risk=risk, confidence=confidence)
    kept = kept_by(found.threshold, confidences)
    assert found.requests == len(pairs)
    assert found.kept == kept.sum()
    assert found.disagreed == (kept & ~np.array(agreed, bool)).sum()
    if found.kept:
        assert binom.cdf(found.disagreed, found.kept, risk) <= (1 - confidence) * (1 + 1e-9)
    else:
        assert found.threshold > 1


def test_nothing_to_calibrate_on_keeps_nothing() -> None:
    found = calibrate_group([], [])
    assert (found.requests, found.kept) == (0, 0)
    assert found.threshold > 1


def test_too_few_to_tell_keeps_nothing() -> None:
    assert calibrate_group([0.9] * 44, [True] * 44).threshold > 1
    assert calibrate_group([0.9] * 45, [True] * 45).threshold == 0.9  # 0.95**45 < 0.1 < 0.95**44


def test_answers_that_all_agree_are_all_kept() -> None:
    confidences = np.random.default_rng(0).random(500)
    found = calibrate_group(confidences.tolist(), [True] * 500)
    assert found.threshold == confidences.min()
    assert (found.kept, found.disagreed) == (500, 0)


def test_answers_that_all_differ_are_never_kept() -> None:
    found = calibrate_group(np.random.default_rng(0).random(500).tolist(), [False] * 500)
    assert found.kept == 0
    assert found.threshold > 1


def test_answers_of_one_confidence_stand_or_fall_together() -> None:
    good, bad = [True] * 100, [True] * 50 + [False] * 50
    found = calibrate_group([0.9] * 100 + [0.5] * 100, good + bad)
    assert (found.threshold, found.kept, found.disagreed) == (0.9, 100, 0)


def test_the_order_of_the_requests_does_not_matter() -> None:
    rng = np.random.default_rng(5)
    confidences = rng.random(400).round(2)
    agreed = rng.random(400) < confidences
    order = rng.permutation(400)
    shuffled = calibrate_group(confidences[order].tolist(), agreed[order].tolist())
    assert calibrate_group(confidences.tolist(), agreed.tolist()) == shuffled


def true_risk(threshold: float, disagreement: NDArray[np.float64]) -> float:
    """The risk among kept answers when confidence is uniform and `disagreement` holds its chances on a fine grid."""
    grid = (np.arange(len(disagreement)) + 0.5) / len(disagreement)
    kept = grid >= threshold
    return float(disagreement[kept].mean()) if kept.any() else 0.0


@pytest.mark.parametrize("requests", [150, 900])
@pytest.mark.parametrize("shape", ["falling", "flat", "worse", "rising"])
def test_the_guarantee_holds(shape: str, requests: int) -> None:
    """Calibrate on many sets from a known law: a gate's true risk is above `risk` in at most 1 - confidence of them."""
    risk, confidence, sets = 0.05, 0.9, 600
    grid = (np.arange(10_000) + 0.5) / 10_000
    disagreement = {
        "falling": (1 - grid) ** 2,  # the drafter knows what it knows
        "flat": np.full_like(grid, risk * 1.001),  # every threshold breaks the risk, by a hair
        "worse": np.full_like(grid, 0.08),
        "rising": 0.1 * grid,  # confidence misleads
    }[shape]
    rng = np.random.default_rng(17)
    broken, kept = 0, 0
    for _ in range(sets):
        confidences = rng.random(requests)
        agreed = rng.random(requests) >= disagreement[(confidences * len(grid)).astype(int)]
        found = calibrate_group(confidences.tolist(), agreed.tolist(), risk=risk, confidence=confidence)
        kept += found.kept
        broken += true_risk(found.threshold, disagreement) > risk
    # So many breaks would come about once in a million runs if the chance of one were just 1 - confidence.
    assert broken <= binom.ppf(1 - 1e-6, sets, 1 - confidence)
    if shape == "falling" and requests > 500:
        assert kept / sets / requests > 0.2, "a gate that keeps next to nothing is safe, and useless"


def drafted(*probabilities: float, end: int = STOP) -> list[Drafted]:
    """An answer of tokens with these probabilities, the last of which is `end`."""
    tokens = [*range(20, 19 + len(probabilities)), end]
    return [Drafted(token, probability) for token, probability in zip(tokens, probabilities, strict=True)]


def test_confidence_is_the_probability_of_the_whole_answer() -> None:
    assert confidence_of(drafted(0.9, 0.5, 0.8)) == pytest.approx(0.36)
    assert confidence_of([]) == 1.0


def test_a_group_keeps_from_its_threshold_on() -> None:
    assert group(0.5).keeps(drafted(0.5), {STOP})
    assert not group(0.5).keeps(drafted(math.nextafter(0.5, 0)), {STOP})
    assert not calibrate_group([], []).keeps(drafted(1.0), {STOP})


def test_an_answer_that_no_calibration_could_keep_is_not_kept() -> None:
    """One that a limit or a word cut short, one that is longer than any there was, none at all."""
    assert not group(0.0).keeps(drafted(1.0, 1.0, end=20), {STOP})
    assert not group(0.0).keeps([], {STOP})
    assert group(0.0).keeps(drafted(*[1.0] * MAX_TOKENS), {STOP})
    assert not group(0.0).keeps(drafted(*[1.0] * (MAX_TOKENS + 1)), {STOP})


def sample(name: str, confidence: float, drafted: tuple[int, ...], truth: tuple[int, ...]) -> Sample:
    return Sample(group=name, confidence=confidence, agreed=drafted == truth, drafted=drafted, truth=truth)


def samples(name: str, *, count: int, wrong: int = 0, confidence: float = 0.9) -> list[Sample]:
    """So many samples of a group, the first of which the drafter has wrong."""
    return [sample(name, confidence, (7, STOP), (8 if at < wrong else 7, STOP)) for at in range(count)]


def test_each_group_has_a_threshold_of_its_own() -> None:
    """All samples together would be kept, as wrong as a third of them are."""
    good, bad, few, none = GROUPS[:4]
    some = [*samples(good, count=1200), *samples(bad, count=100, wrong=40), *samples(few, count=20)]
    found = calibrate_gate(some, GROUPS[:4], risk=0.05)
    assert found.of(good) == found.groups[good]
    assert (found.groups[good].kept, found.groups[good].threshold) == (1200, 0.9)
    assert [found.of(name) for name in (bad, few, none, GROUPS[4], "any other")] == [None] * 5
    assert [found.groups[name].requests for name in (bad, few, none)] == [100, 20, 0]


def test_a_closed_group_says_how_many_samples_would_open_it() -> None:
    """As many as none may be wrong of (0.95**45 < 0.1 < 0.95**44); none would where too many are wrong."""
    names = GROUPS[:4]
    some = [
        *samples(names[1], count=20),
        *samples(names[2], count=100, wrong=40),
        *samples(names[3], count=60, wrong=2),
    ]
    found = calibrate_gate(some, names, risk=0.05).groups
    assert [found[name].needs for name in names[:3]] == [45, 25, None]
    needs = found[names[3]].needs
    assert needs is not None
    for share, opens in ((0.5, False), (2.0, True)):  # it is a rough figure, of answers as often wrong as those
        count = round(share * (60 + needs))
        more = samples(names[3], count=count, wrong=math.ceil(count / 30))
        assert (calibrate_gate(more, [names[3]]).of(names[3]) is not None) == opens


@pytest.fixture
def copied(tmp_path: Path) -> Bundle:
    """The demo's drafter without a calibration, in a folder that may change."""
    folder = tmp_path / "drafter"
    shutil.copytree(DRAFTER, folder)
    write_manifest(folder, msgspec.structs.replace(Bundle.open(DRAFTER).manifest, calibration=None))
    return Bundle.open(folder)


def test_a_saved_gate_comes_back_and_changes_no_identity(copied: Bundle) -> None:
    identity = copied.manifest.identity
    for threshold in (0.123456789, 0.5, 2.0):  # the second takes the place of the first
        save_gate(copied, gate(threshold))
        again = Bundle.open(copied.path)
        assert open_gate(again) == gate(threshold)
        assert again.manifest.identity == identity
        copied = again


@pytest.mark.parametrize("at", [(os, "write"), (os, "fsync"), (Path, "replace")], ids=str)
def test_a_save_that_is_interrupted_leaves_the_gate_that_was_there(
    copied: Bundle, monkeypatch: pytest.MonkeyPatch, at: tuple[object, str]
) -> None:
    save_gate(copied, gate(0.25))
    copied = Bundle.open(copied.path)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*at, interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_gate(copied, gate(0.5))
    assert open_gate(Bundle.open(copied.path)) == gate(0.25)


def test_saving_a_gate_vouches_for_no_other_file(copied: Bundle) -> None:
    (copied.path / "tokenizer.json").write_bytes(b"{}")
    save_gate(copied, gate(0.5))
    with pytest.raises(BundleError, match=r"tokenizer\.json .*hash differs"):
        Bundle.open(copied.path)


def test_a_bundle_that_was_never_calibrated(copied: Bundle) -> None:
    with pytest.raises(BundleError, match="cutline calibrate"):
        open_gate(copied)


BOUNDLESS = {"threshold": 0.5, "risk": 0.0, "confidence": 0.9, "requests": 9, "kept": 9, "disagreed": 0}


@pytest.mark.parametrize(
    "content", [{}, {"threshold": "high"}, {"groups": {"a": {}}}, BOUNDLESS, BOUNDLESS | {"risk": 1.0}], ids=str
)
def test_a_calibration_that_does_not_read(copied: Bundle, content: dict[str, Any]) -> None:
    edit_manifest(copied.path, lambda said: said.update(calibration=content))
    with pytest.raises(BundleError, match="calibrate again"):
        open_gate(Bundle.open(copied.path))


def test_a_calibration_that_was_tampered_with(copied: Bundle) -> None:
    save_gate(copied, gate(0.9))
    content = (copied.path / MANIFEST).read_bytes()
    assert content.count(b'"threshold": 0.9') == 1
    (copied.path / MANIFEST).write_bytes(content.replace(b'"threshold": 0.9', b'"threshold": 0.0'))
    with pytest.raises(BundleError, match="digest"):
        Bundle.open(copied.path)


def test_what_the_passed_on_answers_are_like_is_counted() -> None:
    truths = [(1, 2), *[(3, 4, 5, 6), (7, 8, 9), (4, 4, 4)]]
    drafted = [(1, 2), (3, 4, 9, 9, 9), (7, 8, 9), (4,)]
    pairs = zip((0.9, 0.2, 0.8, 0.5), drafted, truths, strict=True)
    some = [sample(PLAIN, sure, ours, theirs) for sure, ours, theirs in pairs]
    # Beside them enough that agree, and are surer, to keep those from 0.8 on.
    every = [*some, *[sample(PLAIN, 0.95, (1, 2), (1, 2))] * 60]
    found = calibrate_gate(every, [PLAIN]).groups[PLAIN]
    assert found.threshold == 0.8
    assert found.tokens == pytest.approx((2 + 4 + 3 + 3 + 60 * 2) / 64)
    assert found.foreseen == pytest.approx((2 + 2 + 3 + 1 + 60 * 2) / (8 + 2 + 60 * 2))  # two have a token that was not
    assert found.passed_tokens == 3.5
    assert found.passed_foreseen == pytest.approx(3 / 5)
    assert calibrate_gate(every[4:], [PLAIN]).groups[PLAIN].passed_tokens is None


def test_a_calibration_from_before_there_were_groups_is_of_plain_questions(copied: Bundle) -> None:
    before = {"threshold": 0.25, "risk": 0.02, "confidence": 0.9, "requests": 1800, "kept": 1563, "disagreed": 20}
    edit_manifest(copied.path, lambda said: said.update(calibration=before))
    found = open_gate(Bundle.open(copied.path))
    assert list(found.groups) == [PLAIN]
    assert found.of(PLAIN) == msgspec.convert(before, Group)
    assert not any(found.of(name) for name in GROUPS if name != PLAIN)


@given(reserve=st.floats(0.0, 0.045), seed=st.integers(0, 100))
def test_a_reserve_keeps_less_than_the_promise_would_allow(reserve: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sure = rng.uniform(0.5, 1.0, 400)
    samples = [sample(PLAIN, float(one), (1,), (1 if rng.random() < one else 2,)) for one in sure]
    (held,) = calibrate_gate(samples, [PLAIN], risk=0.05, reserve=reserve).groups.values()
    (strict,) = calibrate_gate(samples, [PLAIN], risk=0.05 - reserve).groups.values()
    (whole,) = calibrate_gate(samples, [PLAIN], risk=0.05).groups.values()
    assert (held.threshold, held.kept, held.disagreed) == (strict.threshold, strict.kept, strict.disagreed)
    assert held.kept <= whole.kept
    assert (held.risk, held.reserve) == (0.05, reserve)


def test_a_promise_holds_before_those_that_it_is_about() -> None:
    """The target's before workers or alone, an upstream's before that model, and what is right before everybody."""
    against = {"a": TARGET, "b": upstream_named("big"), "c": ANSWERS}
    made = Gate({name: msgspec.structs.replace(group(0.5), against=whom) for name, whom in against.items()})
    assert set(made.before(None).groups) == {"a", "c"}
    assert set(made.before("big").groups) == {"b", "c"}
    assert set(made.before("bigger").groups) == {"c"}
    assert made.before("bigger").said("b", Decision.KEPT) == Gated(group="b", calibrated=False, decision=Decision.KEPT)


def test_a_calibration_says_how_it_compared() -> None:
    some = samples(PLAIN, count=100)
    found = calibrate_gate(some, [PLAIN, GROUPS[3]], agree="anls:0.8", against=ANSWERS)
    assert {(one.agree, one.against) for one in found.groups.values()} == {("anls:0.8", ANSWERS)}
    said = found.said(PLAIN, Decision.KEPT)
    assert (said.promised, said.agree, said.against) == (0.05, "anls:0.8", ANSWERS)
    assert found.said(PLAIN, Decision.PASSED).promised is None


def test_answers_of_no_target_tell_nothing_of_its_tokens() -> None:
    some = [Sample(group=PLAIN, confidence=0.9, agreed=True, drafted=(1,), truth=None)] * 50
    found = calibrate_gate(some, [PLAIN], agree="text", against=ANSWERS).groups[PLAIN]
    assert (found.kept, found.tokens, found.foreseen, found.passed_tokens) == (50, None, None, None)


def test_a_gate_compares_as_its_calibration_did() -> None:
    made = Gate({PLAIN: msgspec.structs.replace(group(0.5), agree="number"), GROUPS[3]: group(0.5)})
    ours, theirs = Wording("3 cars", (1,)), Wording("three: 3", (2,))
    assert made.agrees(PLAIN, ours, theirs)
    assert not made.agrees(GROUPS[3], ours, theirs)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"agree": "judge.py:same"}, "judge.py:same, which is not on this device"),
        ({"against": ANSWERS}, "known answers"),
        ({"against": "upstream:big"}, "the upstream's big"),
    ],
)
def test_what_no_audit_can_compare_is_named(change: dict[str, str], said: str) -> None:
    assert said in (Gate({PLAIN: msgspec.structs.replace(group(0.5), **change)}).unaudited or "")
    closed = msgspec.structs.replace(group(2.0), kept=0, **change)
    assert Gate({PLAIN: group(0.5), GROUPS[3]: closed}).unaudited is None


def test_populations_are_counted_as_the_whole_is() -> None:
    rng = np.random.default_rng(3)
    names, sure = rng.choice(["left", "right"], 600), rng.random(600).round(2)
    agreed = rng.random(600) > np.where(names == "left", 0.1, 0.4) * (1 - sure) ** 2
    some = [
        Sample(group=PLAIN, confidence=float(one), agreed=bool(same), drafted=(1,), truth=(1,), population=str(name))
        for one, same, name in zip(sure, agreed, names, strict=True)
    ]
    found = calibrate_gate(some, [PLAIN], risk=0.1).groups[PLAIN]
    assert found.kept
    kept = sure >= found.threshold
    for name in ("left", "right"):
        mine = names == name
        counted = found.populations[name]
        assert (counted.requests, counted.kept, counted.disagreed) == (
            mine.sum(),
            (mine & kept).sum(),
            (mine & kept & ~agreed).sum(),
        )
    assert found.disagreed


def test_bias_is_the_largest_difference_between_populations() -> None:
    counts = {"a": (10, 8, 2), "b": (10, 2, 1), "c": (10, 5, 2)}
    some = {
        name: Population(requests=requests, kept=kept, disagreed=disagreed)
        for name, (requests, kept, disagreed) in counts.items()
    }
    view = view_of(msgspec.structs.replace(group(0.5), populations=some))
    assert (view.bias_kept, view.bias_differ) == pytest.approx((0.8 - 0.2, 1 / 2 - 2 / 8))
    found = binomtest(2, 8).proportion_ci(0.95, method="exact")
    assert view.populations["a"].differ is not None
    assert (view.populations["a"].differ.low, view.populations["a"].differ.high) == pytest.approx(tuple(found))
    none = {"a": some["a"], "none": Population(requests=5, kept=0, disagreed=0)}
    view = view_of(msgspec.structs.replace(group(0.5), populations=none))
    assert (view.bias_kept, view.bias_differ, view.populations["none"].differ) == (0.8, 0.0, None)


def test_an_older_calibration_compared_tokens_with_the_target(copied: Bundle) -> None:
    """One in which neither stands."""
    plain = msgspec.to_builtins(group(0.9))
    old = {name: plain[name] for name in ("threshold", "risk", "confidence", "requests", "kept", "disagreed")}
    edit_manifest(copied.path, lambda said: said.update(calibration={"groups": {PLAIN: old}}))
    found = open_gate(Bundle.open(copied.path)).groups[PLAIN]
    assert (found.agree, found.against, found.populations) == ("tokens", "target", {})
