"""What records come to: figures worked out otherwise, intervals by definition, and files that a kill cut short."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy.stats import binomtest

from cutline.core.request import Mode
from cutline.errors import InputError
from cutline.evaluation.figures import drop, figures_of, resampled, wilson
from cutline.evaluation.records import EvalRecord, open_records
from cutline.evaluation.report import Evaluation, group_rows, render, rows_of
from cutline.evaluation.scores import score_named

MODES = (Mode.EDGE, Mode.CLOUD)
EXACT = score_named("exact")


def asked(number: int, edge: str, cloud: str, right: str, sure: float = 0.9) -> list[EvalRecord]:
    """A question's answers, of letters that are their tokens."""
    how: dict[str, Any] = {"number": number, "answers": (right,), "group": "even" if number % 2 == 0 else "odd"}
    return [
        EvalRecord(
            mode=Mode.EDGE, text=edge, tokens=tuple(edge.encode()), confidence=sure, latency_ms=number, ttft_ms=1, **how
        ),
        EvalRecord(
            mode=Mode.CLOUD, text=cloud, tokens=tuple(cloud.encode()), latency_ms=100, bytes_up=10, asked=True, **how
        ),
    ]


QUESTIONS = [
    asked(1, "a", "a", "a", 0.95),
    asked(2, "b", "a", "a", 0.92),
    asked(3, "a", "a", "a", 0.35),
    [EvalRecord(number=4, why="there is no file")],
    asked(5, "c", "c", "a", 0.31),
]


def test_figures_are_those_of_the_records() -> None:
    found = figures_of(QUESTIONS, MODES, EXACT, limit_ms=3.0)
    edge, cloud = found[Mode.EDGE], found[Mode.CLOUD]
    assert (edge.n, edge.known) == (4, 4)
    assert edge.score is not None
    assert cloud.score is not None
    assert (edge.score.value, cloud.score.value) == (0.5, 0.75)
    assert edge.to_cloud is not None
    assert edge.to_cloud.value == pytest.approx(-0.25)
    assert edge.to_cloud.low <= -0.25 <= edge.to_cloud.high
    assert (edge.same, edge.kept_same, cloud.same, cloud.kept_same) == (0.75, 0.75, 1.0, None)
    assert (edge.p50_ms, edge.within, cloud.within, cloud.bytes_up, cloud.asked) == (2.5, 0.75, 0.0, 10.0, 1.0)
    # Two bins of two answers: (0.95 + 0.92) / 2 sure of one right, (0.35 + 0.31) / 2 sure of one.
    assert edge.calibration_error == pytest.approx((abs(0.935 - 0.5) + abs(0.33 - 0.5)) / 2)
    assert cloud.calibration_error is None
    assert {name: (one.n, one.score.value) for name, one in edge.groups.items()} == {
        "even": (1, 0.0),
        "odd": (3, pytest.approx(2 / 3)),
    }


def test_an_upstream_s_tokens_are_no_other_models() -> None:
    """Its answers are the same where they say the same."""
    said = [
        EvalRecord(number=1, mode=Mode.EDGE, text="yes", tokens=(5,), latency_ms=1),
        EvalRecord(number=1, mode=Mode.CLOUD, text="yes", tokens=(0, 0), foreign=True, asked=True, latency_ms=1),
    ]
    other = [msgspec.structs.replace(one, text="no", tokens=(0, 0)) if one.mode is Mode.EDGE else one for one in said]
    assert [figures_of([some], MODES, EXACT)[Mode.EDGE].same for some in (said, other)] == [1.0, 0.0]


def test_intervals() -> None:
    for found, count in ((0, 10), (1, 10), (50, 60), (300, 300)):
        ours, theirs = wilson(found, count), binomtest(found, count).proportion_ci(method="wilson")
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    rng = np.random.default_rng(1)
    rows = rng.normal(2.0, 1.0, (400, 1)).astype(np.float32)
    ours = resampled(rows, EXACT)
    half = 1.96 / 20
    assert (ours.low, ours.high) == pytest.approx((ours.value - half, ours.value + half), abs=0.02)
    assert resampled(rows, EXACT) == ours, "the same records give the same interval"
    many = resampled(rng.normal(2.0, 1.0, (30_000, 1)).astype(np.float32), EXACT)
    assert many.high - many.low == pytest.approx(2 * 1.96 / np.sqrt(30_000), rel=0.02)


def test_the_drop_to_others() -> None:
    first, other = (figures_of(some, MODES, EXACT)[Mode.EDGE] for some in (QUESTIONS, QUESTIONS[1:2]))
    fallen = drop(first, other)
    assert fallen is not None
    assert fallen.value == 0.5
    assert fallen.low < 0.5 < fallen.high


def test_a_corpus_score_is_that_of_all_answers_together() -> None:
    """BLEU of two answers is no mean of their BLEUs."""
    score = score_named("bleu")
    texts = [("a b c d e f", "a b c d e f"), ("a b c x", "a b c d")]
    questions = [[EvalRecord(number=1, mode=Mode.EDGE, text=text, answers=(right,))] for text, right in texts]
    found = figures_of(questions, (Mode.EDGE,), score)[Mode.EDGE].score
    assert found is not None
    rows = [score.row(text, (right,)) for text, right in texts]
    assert found.value == pytest.approx(score.whole(rows[0] + rows[1]))
    assert found.value != pytest.approx(np.mean([score.whole(row) for row in rows]), abs=0.01)


def test_a_score_beyond_1_calibrates_no_confidence() -> None:
    figures = figures_of(QUESTIONS, MODES, score_named("cider", lambda: [("a",), ("b",)]))[Mode.EDGE]
    assert figures.score is not None
    assert figures.score.value > 1.0
    assert figures.calibration_error is None
    assert not any(figures.reliability)


def put(path: Path, questions: Iterable[list[EvalRecord]]) -> None:
    with open_records(path, of="x", modes=MODES) as records:
        for one in questions:
            if one[0].number > records.last:
                records.put(one)


def test_a_file_that_a_kill_cut_short_goes_on_at_any_byte(tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    put(whole, QUESTIONS)
    content = whole.read_bytes()
    for cut in range(0, len(content), 7):
        torn.write_bytes(content[:cut])
        put(torn, QUESTIONS)
        assert torn.read_bytes() == content, cut


def test_a_file_of_other_questions_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "records"
    put(path, QUESTIONS)
    before = path.read_bytes()
    with pytest.raises(InputError, match="other questions"), open_records(path, of="y", modes=MODES):
        pass
    with pytest.raises(InputError, match="other modes"), open_records(path, of="x", modes=(Mode.EDGE,)):
        pass
    again = open_records(path, of="x", modes=MODES)
    with open_records(path, of="x", modes=MODES), pytest.raises(InputError, match="another process"), again:
        pass
    assert path.read_bytes() == before


def test_the_page_escapes_what_others_wrote() -> None:
    odd = [
        [EvalRecord(number=1, mode=Mode.EDGE, text="a", answers=("a",), group="<script>", confidence=0.5, latency_ms=1)]
    ]
    figures = figures_of(odd, (Mode.EDGE,), EXACT)
    found = Evaluation(questions=1, skipped=2, score="exact", limit_ms=None, modes=figures)
    page = render(found, title="<b>")
    assert "<script>" not in page
    assert "<b>" not in page
    assert page.count("<svg") == 3
    names = [name for name, _ in rows_of(found)]
    assert names[0] == "score: exact"
    assert not {"within  ms", "less cloud's", "joules"} & set(names), "nothing is said of what nobody knows"
    assert group_rows(found) == [("<script>", ["100.0% (20.7% to 100.0%; 1)"])]
