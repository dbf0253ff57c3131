from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.edge.offload.heartbeat import (
    CONNECTING,
    FIRST_UPLINK,
    SLACK,
    SLOWEST_UPLINK,
    Heartbeat,
    WorkerSilent,
    patience,
)
from cutline.testing.virtual_time import hold, run_virtually

NOTICE = 0.4


class Session:
    """A session whose worker answers heartbeats after `answers` seconds, None for never; 0 is a link that is down."""

    def __init__(self, answers: float | None, *, unproven: int = 0, fails: Exception | None = None) -> None:
        self.fails = fails
        self.address = "it"
        self.answers = answers
        self.heard = time.monotonic()
        self.answered = False
        self.unproven = unproven
        self.carried = 0.0
        self.beats = 0

    async def beat(self) -> bool:
        self.beats += 1
        if self.fails is not None:
            raise self.fails
        await asyncio.sleep(3600 if self.answers is None else self.answers)
        if self.answers == 0.0:
            return False
        self.heard, self.answered = time.monotonic(), True
        return True


def watched(session: Session, seconds: float, *, connected: bool = True, uplink: float = FIRST_UPLINK) -> float | None:
    """After how long the session was given up, None if it was not in so many seconds."""

    async def run() -> float | None:
        given: Any = session
        began = time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                await Heartbeat(given, NOTICE, uplink, connected).run()
        except TimeoutError:
            return None
        except WorkerSilent as error:
            told = error.notice == NOTICE and error.ahead == session.unproven
            return time.monotonic() - began if told else None

    return run_virtually(run())


@given(st.floats(0.1, 60.0), st.integers(0, 1 << 25), st.floats(1.0, 1e9))
def test_patience_is_the_notice_and_what_the_bytes_ahead_may_take(notice: float, ahead: int, uplink: float) -> None:
    allowed = patience(notice, ahead=ahead, uplink=uplink, connected=True)
    under_way = SLACK * ahead / max(uplink, SLOWEST_UPLINK)
    assert allowed == pytest.approx(max(notice, 3 / 4 * notice + under_way))
    assert patience(notice, ahead=ahead, uplink=uplink, connected=False) == pytest.approx(
        allowed + (CONNECTING - 1) * notice
    )


def test_a_worker_that_answers_is_never_given_up() -> None:
    session = Session(answers=NOTICE / 5)
    assert watched(session, 6 * NOTICE) is None
    assert 8 <= session.beats <= 16


def test_one_that_does_not_is_given_up_after_the_notice() -> None:
    took = watched(Session(answers=None), 20 * NOTICE)
    assert took is not None
    assert 3 / 4 * NOTICE <= took <= 1.1 * NOTICE


@pytest.mark.parametrize("session", [Session(answers=0.0), Session(answers=None, fails=RuntimeError("broken"))])
def test_a_heartbeat_that_fails_is_not_answered(session: Session) -> None:
    session.heard = time.monotonic()
    took = watched(session, 20 * NOTICE)
    assert took is not None
    assert 3 / 4 * NOTICE <= took <= 1.1 * NOTICE
    assert session.beats > 1, "one may fail alone"


def test_a_connection_may_take_as_long_again() -> None:
    took = watched(Session(answers=None), 20 * NOTICE, connected=False)
    assert took is not None
    assert (CONNECTING - 1 / 4) * NOTICE <= took <= 1.1 * CONNECTING * NOTICE


def test_bytes_that_are_on_their_way_are_waited_for() -> None:
    """An answer that comes behind them comes late, and that is no death."""
    uplink = 8000 / NOTICE
    assert watched(Session(answers=1.5 * NOTICE, unproven=8000), 8 * NOTICE, uplink=uplink) is None
    took = watched(Session(answers=None, unproven=8000), 40 * NOTICE, uplink=uplink)
    assert took is not None
    assert took >= (SLACK + 1 / 2) * NOTICE


def test_a_link_that_has_carried_more_is_waited_for_no_longer_than_that_takes() -> None:
    session = Session(answers=None, unproven=8000)
    session.carried = 80000 / NOTICE
    took = watched(session, 40 * NOTICE, uplink=8000 / NOTICE)
    assert took is not None
    assert took < (SLACK + 1 / 2) * NOTICE


def test_a_heartbeat_goes_before_what_would_hold_it_up() -> None:
    async def run() -> None:
        session: Any = Session(answers=0.1)
        heartbeat = Heartbeat(session, NOTICE, 1000.0, True)
        await heartbeat.before(10)
        assert session.beats == 0
        await heartbeat.before(1000)
        await heartbeat.before(1000)  # one is on its way
        await asyncio.sleep(0.01)
        assert session.beats == 1

    run_virtually(run())


def test_what_this_process_was_held_up_for_is_no_silence() -> None:
    async def run() -> None:
        session: Any = Session(answers=0.01)
        watching = asyncio.create_task(Heartbeat(session, NOTICE, FIRST_UPLINK, True).run())
        for _ in range(3):
            await asyncio.sleep(NOTICE)
            hold(2 * NOTICE)
        await asyncio.sleep(NOTICE)
        assert not watching.done()
        watching.cancel()
        await asyncio.wait([watching])

    run_virtually(run())


def test_many_short_delays_of_its_own_are_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look is late by almost a step; the worker still has as many looks as if none were."""
    looks = 0
    sleep = asyncio.sleep

    async def late(seconds: float) -> None:
        nonlocal looks
        if seconds == NOTICE / 16:
            looks += 1
            seconds *= 1.9
        await sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", late)
    assert watched(Session(answers=None), 20 * NOTICE) is not None
    assert looks >= 12, f"it was given up after {looks} looks"
