"""When work is taken to hang, by a clock of the tests' own."""

from __future__ import annotations

import itertools
import threading

from hypothesis import given
from hypothesis import strategies as st

from cutline.cloud.telemetry.watchdog import LEAST_SECONDS, MOST_SECONDS, TICK, TIMES, EngineWork, Watchdog, patience


def never(seconds: float) -> None:
    raise AssertionError


def looks(watchdog: Watchdog, passed: float = TICK) -> int:
    """After how many looks `passed` seconds apart it says that the work hangs."""
    return next(count for count in range(1, 10_000) if watchdog.look(passed))


@given(st.floats(0.0, 1e3))
def test_ten_times_what_is_usual_within_bounds(usually: float) -> None:
    assert patience(usually) == sorted((LEAST_SECONDS, TIMES * usually, MOST_SECONDS))[1]
    assert patience(None) == MOST_SECONDS


def test_work_that_goes_on_for_too_long_hangs() -> None:
    for usually in (0.01, 1.0, None):
        found = looks(Watchdog(itertools.repeat(EngineWork(usually)).__next__, never)) * TICK
        assert patience(usually) < found <= patience(usually) + 2 * TICK


def test_work_that_ends_never_hangs_however_much_there_is() -> None:
    watchdog = Watchdog(lambda: EngineWork(0.0), never)
    assert not any(watchdog.look(TICK) for _ in range(1000))
    idle = Watchdog(lambda: None, never)
    assert not any(idle.look(TICK) for _ in range(1000))


def test_a_process_that_was_held_up_itself_takes_nothing_for_a_hang() -> None:
    work = EngineWork(0.01)
    watchdog = Watchdog(lambda: work, never)
    assert not watchdog.look(TICK)
    assert not watchdog.look(3600.0)
    assert looks(watchdog) > LEAST_SECONDS / TICK / 2


def test_it_says_so_once_from_its_own_thread() -> None:
    found, work = threading.Event(), EngineWork(None)
    watchdog = Watchdog(lambda: work, lambda seconds: found.set())
    watchdog._seen, watchdog._seconds = work, MOST_SECONDS
    watchdog.start()
    assert found.wait(30)
    watchdog.stop()
