from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from cutline.core.agreement.shares import interval


@given(count=st.integers(1, 700), share=st.floats(0, 1), confidence=st.floats(0.5, 0.99))
def test_an_interval_is_scipys(count: int, share: float, confidence: float) -> None:
    found = round(share * count)
    theirs = binomtest(found, count).proportion_ci(confidence, method="exact")
    assert interval(found, count, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
