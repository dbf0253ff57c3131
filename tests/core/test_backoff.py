"""How long what failed is left alone."""

from __future__ import annotations

from cutline.core.backoff import Backoff


def test_backoff_doubles_up_to_its_end_and_is_forgotten() -> None:
    now = 0.0
    backoff = Backoff(first=1.0, clock=lambda: now)
    assert (backoff.tried, backoff.left) == (False, 0.0)
    waits = []
    for _ in range(7):
        backoff.failed()
        waits.append(backoff.left)
        now += backoff.left
        assert backoff.tried
        assert backoff.left == 0.0
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    backoff.worked()
    assert not backoff.tried
    backoff.failed()
    assert backoff.left == 1.0
