"""What TLS costs is told by medians of the same questions, with an interval that means what it says."""

from __future__ import annotations

import numpy as np
import pytest

from cutline.bench.tls_cost import PLAIN, cost, costs
from cutline.core.request import Mode

KIND = ("mutual TLS", Mode.CLOUD)


def test_questions_are_compared_with_themselves_however_they_differ_in_length() -> None:
    plain = np.random.default_rng(1).lognormal(4.0, 1.0, 61)
    found = cost(KIND, list(plain * 1.25), list(plain), seed=0)
    assert found.ratio == pytest.approx(1.25)
    assert found.interval == pytest.approx((1.25, 1.25), abs=0.01)
    assert found.p50_ms == pytest.approx(1.25 * sorted(plain)[30])
    assert found.added_ms == pytest.approx(0.25 * sorted(plain)[30])
    assert (found.way, found.mode, found.questions) == (*KIND, 61)


def test_the_interval_has_the_true_ratio_about_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(2), 0
    for seed in range(40):
        plain, over = rng.normal(100.0, 8.0, (2, 41))
        low, high = cost(KIND, list(over * 1.05), list(plain), seed).interval
        assert low < high
        held += low <= 1.05 <= high
    assert held >= 33, "of 40, of which 38 are to be expected"


def test_every_kind_stands_beside_plain_text_in_the_same_mode() -> None:
    times = {
        (PLAIN, Mode.CLOUD): [100.0, 100.0],
        ("TLS", Mode.CLOUD): [110.0, 110.0],
        (PLAIN, Mode.DRAFT): [50.0, 50.0],
        ("TLS", Mode.DRAFT): [51.0, 51.0],
        (PLAIN, None): [200.0],
        ("TLS", None): [240.0],
    }
    found = {(one.way, one.mode): one.ratio for one in costs(times, seed=0)}
    assert found == pytest.approx(
        {
            (PLAIN, Mode.CLOUD): 1.0,
            ("TLS", Mode.CLOUD): 1.1,
            (PLAIN, Mode.DRAFT): 1.0,
            ("TLS", Mode.DRAFT): 1.02,
            (PLAIN, None): 1.0,
            ("TLS", None): 1.2,
        }
    )
