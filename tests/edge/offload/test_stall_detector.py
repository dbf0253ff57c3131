"""How long a worker may say nothing of an answer, and when that does not count."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.edge.offload.stall_detector import LEAST_NOTICES, StallDetector, patience
from cutline.errors import WorkerUnavailable
from cutline.testing.virtual_time import hold, run_virtually

NOTICE = 0.05


@given(st.floats(0.01, 60.0), st.floats(-10.0, 1e4))
def test_half_of_the_time_is_kept_for_another(notice: float, left: float) -> None:
    allowed = patience(notice, left)
    assert allowed == LEAST_NOTICES * notice or left - allowed == pytest.approx(left / 2)
    assert allowed >= LEAST_NOTICES * notice


def given_up(turn: StallDetector, seconds: float) -> bool:
    async def watch() -> bool:
        try:
            async with asyncio.timeout(seconds):
                await turn.watch()
        except TimeoutError:
            return False
        except WorkerUnavailable:
            return True

    return run_virtually(watch())


def test_who_lets_its_turn_go_by_is_given_up_and_who_waits_for_us_is_not() -> None:
    now = time.monotonic()
    assert given_up(StallDetector("it", NOTICE, now, lambda: True, since=now), 30.0)
    assert not given_up(StallDetector("it", NOTICE, now, lambda: True, since=None), 8 * NOTICE)
    assert not given_up(StallDetector("it", NOTICE, now, lambda: False, since=now), 8 * NOTICE)
    assert not given_up(StallDetector("it", NOTICE, now + 1000.0, lambda: True, since=now), 8 * NOTICE)


def test_what_this_process_did_not_hear_while_it_was_held_up_does_not_count() -> None:
    async def main() -> float:
        turn = StallDetector("it", NOTICE, 0.0, lambda: True)
        watching = asyncio.create_task(turn.watch())
        await asyncio.sleep(0)
        turn.theirs()
        began = turn.since
        assert began is not None
        hold(10 * NOTICE)
        await asyncio.sleep(NOTICE / 2)
        assert not watching.done()
        watching.cancel()
        assert turn.since is not None
        return turn.since - began

    assert run_virtually(main()) >= 9 * NOTICE
