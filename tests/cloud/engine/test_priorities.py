"""Who goes first: sessions of a higher priority, as if the others were not there, or nearly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from cutline.cloud.engine.cost_model import PACING, Pacing, PassCost, rows_behind
from cutline.cloud.engine.engine import Engine
from cutline.cloud.engine.scheduler import beside, by_priority
from cutline.cloud.engine.sequence import Session, SessionRequest, SessionRows
from cutline.cloud.model.model_runner import Target
from cutline.core.request import Priority
from cutline.errors import WorkerBusy, WorkerForgot
from cutline.protos.messages import Finished
from cutline.testing.target import ScriptedTarget
from tests.cloud.engine.test_engine import opened, picture
from tests.cloud.test_waiting import CountingTarget, Listener, request

NOW = 100.0


def session(priority: Priority, waits: float, rows: int = 1, drafted: int = 0) -> SessionRows:
    """Rows of a session that waits for so many seconds: of a prompt, or of an answer that is drafted."""
    asked = SessionRequest(
        tokens=(1,) * rows, prompt_length=rows, max_tokens=9, sampling=request([1]).sampling, effort=1.0
    )
    one = Session("one", replace(asked, priority=priority), 0, limit=99, confirmed_at=NOW - waits)
    return SessionRows(one, 0, (1,) * rows, drafted)


ranked = st.builds(
    session, st.sampled_from(Priority), st.floats(0.0, 9.0), st.integers(1, 90), st.just(0)
) | st.integers(0, 40).flatmap(
    lambda drafted: st.builds(
        session, st.sampled_from(Priority), st.floats(0.0, 9.0), st.just(drafted + 1), st.just(drafted)
    )
)


@given(st.lists(ranked, max_size=30), st.integers(1, 60))
def test_all_of_the_highest_go_and_little_of_who_waited_long(wanted: list[SessionRows], room: int) -> None:
    first, behind = by_priority(wanted, NOW - PACING.aged_seconds)
    highest = min((one.session.request.priority.rank for one in wanted), default=0)
    assert first == [one for one in wanted if one.session.request.priority.rank == highest]
    waits = [NOW - one.session.confirmed_at for one in behind]
    assert waits == sorted(waits, reverse=True)
    assert all(one >= PACING.aged_seconds for one in waits)
    batch = beside(behind, room)
    assert sum(len(one.tokens) for one in batch) <= room
    assert bool(batch) == bool(behind), "nobody waits for ever"
    for short, whole in zip(batch, behind, strict=False):
        assert short.tokens == whole.tokens[: len(short.tokens)]
        assert short.partial or short.drafted == len(short.tokens) - (len(whole.tokens) - whole.drafted)


@given(st.lists(st.tuples(st.integers(1, 200), st.floats(1e-3, 10)), min_size=4, max_size=40))
def test_what_goes_beside_lengthens_a_pass_by_a_share(passes: list[tuple[int, float]]) -> None:
    cost = PassCost()
    for rows, seconds in passes:
        cost = cost.after(rows, seconds)
    room = rows_behind(cost, PACING)
    assert room == 1 or room * cost.row_share <= PACING.behind_share * (1 + 1e-9)


@contextlib.contextmanager
def running(target: CountingTarget | ScriptedTarget, **how: Any) -> Iterator[Engine]:
    engine = Engine(cast(Target, target), (), **how)
    engine.start()
    try:
        yield engine
    finally:
        if isinstance(target, CountingTarget):
            target.go_on.set()
        engine.stop()


def asked(priority: Priority, *, max_tokens: int = 8) -> SessionRequest:
    return replace(request([1, 2], effort=1.0, max_tokens=max_tokens), priority=priority)


def test_a_flood_in_the_background_is_not_in_the_passes_of_who_waits() -> None:
    target = CountingTarget(12)
    with running(target, pacing=Pacing(aged_seconds=600.0)) as engine:
        target.go_on.clear()
        flood = [Listener(engine, asked(Priority.BACKGROUND)) for _ in range(8)]
        assert target.held.wait(60)
        usual = [Listener(engine, asked(Priority.NORMAL)) for _ in range(2)]
        ahead = [Listener(engine, asked(Priority.INTERACTIVE)) for _ in range(2)]
        target.go_on.set()
        assert all(isinstance(one.end(), Finished) for one in (*ahead, *usual, *flood))
    alone = [set(of) for of in target.passes[1:]]
    kinds = [range(8), range(8, 10), range(10, 12)]
    assert all(any(of <= set(kind) for kind in kinds) for of in alone), "nobody is in a pass of a higher one"
    order = [next(number for number, kind in enumerate(kinds) if of <= set(kind)) for of in alone]
    assert order == sorted(order, reverse=True)


def test_one_that_waited_long_has_a_turn_beside_the_others() -> None:
    target, now = CountingTarget(4), 1000.0
    with running(target, clock=lambda: now) as engine:
        target.go_on.clear()
        behind = Listener(engine, asked(Priority.BACKGROUND))
        assert target.held.wait(60)
        ahead = Listener(engine, asked(Priority.INTERACTIVE, max_tokens=20))
        run = target.run

        def later(batch: Any, images: Any, **how: Any) -> Any:
            nonlocal now
            now += PACING.aged_seconds / 4
            return run(batch, images, **how)

        target.run = later  # type: ignore[method-assign]
        target.go_on.set()
        assert all(isinstance(one.end(), Finished) for one in (ahead, behind))
    shared = [number for number, of in enumerate(target.passes) if len(of) == 2]
    assert len(shared) >= 2
    assert min(second - first for first, second in pairwise(shared)) >= 4


def test_a_newcomer_that_goes_first_takes_the_place_of_the_youngest_behind() -> None:
    with running(CountingTarget(2), pacing=Pacing(safe_seconds=600.0)) as engine:
        waiting = replace(asked(Priority.BACKGROUND), effort=0.0)  # for drafts, after its first token
        older, younger = (Listener(engine, waiting).opened() for _ in range(2))
        assert isinstance(engine.busy(Priority.BACKGROUND), WorkerBusy)
        assert engine.busy(Priority.NORMAL) is None
        assert isinstance(Listener(engine, asked(Priority.BACKGROUND)).next(), WorkerBusy)
        assert isinstance(Listener(engine, asked(Priority.NORMAL)).end(), Finished)
        assert isinstance(younger.next(), WorkerForgot), "its agent opens it anew"
        assert older.inbox.empty()


def test_the_picture_of_who_goes_first_is_encoded_first() -> None:
    target = ScriptedTarget(4)
    with running(target, pacing=Pacing(aged_seconds=600.0)) as engine:
        behind = [opened(engine, replace(picture(10**9), priority=Priority.BACKGROUND))[0] for _ in range(2)]
        _, ahead = opened(engine, replace(picture(3), priority=Priority.INTERACTIVE))
        assert isinstance(ahead.end(), Finished)
        for name in behind:
            engine.close(name)


def test_pictures_behind_others_have_a_slice_now_and_then() -> None:
    target = ScriptedTarget(4)
    with running(target, pacing=Pacing(aged_seconds=0.0, slice_seconds=0.01)) as engine:
        name, _ = opened(engine, replace(picture(10**9), priority=Priority.INTERACTIVE))
        _, behind = opened(engine, replace(picture(3), priority=Priority.BACKGROUND))
        assert isinstance(behind.end(), Finished)
        engine.close(name)
