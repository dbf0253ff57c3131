"""Who goes first: sessions of a higher priority, as if the others were not there, or nearly."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cutline.cloud.engine.cost_model import PACING, Pacing, PassCost, rows_behind
from cutline.cloud.engine.engine import Engine
from cutline.cloud.engine.image_cache import ImageCache
from cutline.cloud.engine.image_features import ImageFeatures
from cutline.cloud.engine.listeners import Listeners
from cutline.cloud.engine.scheduler import beside, by_priority
from cutline.cloud.engine.sessions.session import Event, Forward, Session
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.engine.sessions.session_rows import SessionRows
from cutline.cloud.model.model_runner import Target
from cutline.cloud.telemetry.watchdog import EngineProgress
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


def test_pictures_of_one_priority_take_turns_though_others_have_slices_between() -> None:
    first, second, behind = (
        Session(name, replace(picture(10**9), priority=priority), slot, limit=99)
        for slot, (name, priority) in enumerate(
            [("first", Priority.NORMAL), ("second", Priority.NORMAL), ("behind", Priority.BACKGROUND)]
        )
    )
    listeners, target = Listeners(), ScriptedTarget(3)
    target.on_step = lambda: time.sleep(0.01)
    pacing = Pacing(aged_seconds=1.0, fair_seconds=0.05)
    images = ImageFeatures(cast(Target, target), ImageCache(0), listeners, EngineProgress(), pacing)
    for one in (first, second, behind):
        listeners.add(one.name, lambda event: None)
        images.add(one)
    turns = list[Session]()
    for now in range(100, 120):  # each time the one behind is due
        for later in (0.0, 0.5):
            session = images.next(now + later)
            assert session is not None
            turns.append(session)
            images.encode(session, until=time.monotonic() + 0.005)  # a step
    assert {one.name for one in turns} == {"first", "second", "behind"}


def test_one_behind_waits_from_when_there_is_anybody_before_it() -> None:
    listeners, pacing = Listeners(), Pacing(aged_seconds=5.0)
    images = ImageFeatures(cast(Target, ScriptedTarget(2)), ImageCache(0), listeners, EngineProgress(), pacing)
    assert images.next(100.0) is None
    ahead, behind = (
        Session(priority, replace(picture(10**9), priority=priority), 0, limit=99)
        for priority in (Priority.INTERACTIVE, Priority.BACKGROUND)
    )
    for one in (behind, ahead):
        images.add(one)
    assert [images.next(now) for now in (900.0, 904.0, 905.0, 906.0)] == [ahead, ahead, behind, ahead]


class Tower(ScriptedTarget):
    """Layers that end before the decoder: what comes out of a pass is all that came of a session's pictures."""

    decodes = False

    def run(self, batch: Sequence[SessionRows], images: Sequence[Tensor | None], **how: Any) -> list[Tensor]:
        return [torch.empty(0, self.width) if image is None else image for image in images]


def test_where_nothing_is_decoded_what_is_behind_goes_on_in_one_piece() -> None:
    engine = Engine(cast(Target, Tower(2, chooses=False)), (), pacing=Pacing(aged_seconds=0.0))
    asked = request([2, 3, 4, 5, 6, 7], effort=1.0)
    behind = replace(asked, boundary=np.zeros((5, 1), np.float32), priority=Priority.BACKGROUND)
    told = list[Event]()
    engine.open(behind, (), told.append)
    engine.step()  # which encodes its picture
    engine.open(replace(asked, priority=Priority.INTERACTIVE), (), lambda event: None)
    while not isinstance(told[-1], Forward):
        engine.step()
    assert len(told[-1].rows) == 5
