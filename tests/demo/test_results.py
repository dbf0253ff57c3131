from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest

from cutline.core.request import Mode
from cutline.demo.cards import Split
from cutline.demo.questions import KINDS
from cutline.demo.requests import CardRequest, requests
from cutline.demo.results import Outcome, mode_result, model_result
from cutline.edge.generation.result import Answer, Provenance, Token

ASKED = list(requests(Split.EVALUATION, 2, seed=0))


def answer(text: str, *, worker: str | None = "127.0.0.1:1", latency: float = 10.0, **changes: object) -> Answer:
    whole = Answer(
        text=text,
        tokens=[Token(ord(character), character, Provenance.DRAFT) for character in text],
        mode=Mode.DRAFT,
        latency_ms=latency,
        ttft_ms=latency / 2,
        bytes_up=100,
        bytes_down=50,
        rounds=1,
        drafted=4,
        accepted=2,
        exact=worker is not None,
        worker=worker,
        cut=None,
        wire=None,
        confidence=None,
        complete=True,
    )
    return msgspec.structs.replace(whole, **changes)


def outcome(request: CardRequest, text: str, target: str, **changes: object) -> Outcome:
    return Outcome(request, answer(text, **changes), target, tuple(map(ord, target)))  # type: ignore[arg-type]


def test_an_outcome_is_held_against_the_card_and_the_target() -> None:
    request = ASKED[0]
    truth = request.question.answer
    both = outcome(request, truth, truth)
    assert (both.right, both.identical, both.offloaded) == (True, True, True)
    wrong_together = outcome(request, "no", "no", worker=None)
    assert (wrong_together.right, wrong_together.identical, wrong_together.offloaded) == (False, True, False)
    better = outcome(request, truth, "no")
    assert (better.right, better.identical) == (True, False)


def test_the_same_text_by_other_tokens_is_not_identical() -> None:
    one = Outcome(ASKED[0], answer("ab"), "ab", (1000,))
    assert not one.identical


def test_figures_are_means_and_rates() -> None:
    rng = np.random.default_rng(0)
    latencies = rng.uniform(1, 100, len(ASKED))
    outcomes = [
        outcome(
            request,
            request.question.answer if index % 3 else "no",
            request.question.answer,
            latency=float(latency),
            worker=None if index % 4 == 0 else "127.0.0.1:1",
            cut=None,
            wire=None,
            bytes_up=index,
            rounds=index % 5,
        )
        for index, (request, latency) in enumerate(zip(ASKED, latencies, strict=True))
    ]
    found = mode_result(Mode.AUTO, outcomes)
    n = len(ASKED)
    assert (found.mode, found.n) == (Mode.AUTO, n)
    assert found.right == found.identical_to_target == pytest.approx(sum(index % 3 > 0 for index in range(n)) / n)
    assert found.p50_ms == pytest.approx(np.median(latencies))
    assert found.p50_ms <= found.p95_ms <= latencies.max()
    assert found.ttft_p50_ms == pytest.approx(np.median(latencies) / 2)
    assert found.bytes_up == pytest.approx((n - 1) / 2)
    assert found.bytes_down == 50
    assert found.rounds == pytest.approx(np.mean([index % 5 for index in range(n)]))
    assert (found.drafted, found.accepted) == (4, 2)
    assert found.offloaded == pytest.approx(sum(index % 4 > 0 for index in range(n)) / n)
    kept = [index % 3 > 0 for index in range(n) if index % 4 == 0]
    assert found.kept_agreement == pytest.approx(np.mean(kept))


def test_where_nothing_was_kept_there_is_no_agreement() -> None:
    assert mode_result(Mode.CLOUD, [outcome(ASKED[0], "a", "a")]).kept_agreement is None


def test_a_mode_prints_the_fields_promised() -> None:
    printed = json.loads(msgspec.json.encode(mode_result(Mode.EDGE, [outcome(ASKED[0], "a", "a")])))
    assert {
        "mode",
        "n",
        "right",
        "identical_to_target",
        "p50_ms",
        "p95_ms",
        "ttft_p50_ms",
        "bytes_up",
        "bytes_down",
        "rounds",
        "drafted",
        "accepted",
        "offloaded",
    } <= set(printed)


def test_a_model_is_right_as_often_as_its_texts_are() -> None:
    texts = [request.question.answer if index < 9 else "no" for index, request in enumerate(ASKED)]
    found = model_result("m", "id", zip(ASKED, texts, strict=True))
    assert found.right == pytest.approx(9 / 12)
    assert set(found.right_by_kind) == set(KINDS)
    assert found.right_by_kind[KINDS[0]] == 1.0
    assert found.right_by_kind[KINDS[-1]] == 0.5
