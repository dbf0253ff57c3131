"""Whatever happens, in whatever order: a session hears one last event, and nothing after it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from cutline.cloud.engine.engine import Engine
from cutline.cloud.engine.listeners import Listeners
from cutline.cloud.engine.sessions.session import Event
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.engine.sessions.session_rows import SessionRows
from cutline.cloud.model.model_runner import PassAborted, Target
from cutline.core.sampling import Sampling
from cutline.errors import CutlineError, WorkerBusy, WorkerFailed, WorkerUnavailable
from cutline.protos.messages import Confirmed, Draft, Finished, Opened, Reason
from cutline.testing.target import POISON, STOP, ScriptedTarget

FATAL = 62  # a token that breaks the engine


class Breaking(ScriptedTarget):
    """Has room for two sessions, and breaks by tokens wherever the head is."""

    def __init__(self, *, chooses: bool) -> None:
        super().__init__(2, chooses=chooses)

    def run(self, batch: Sequence[SessionRows], images: Sequence[Tensor | None], **how: Any) -> list[Tensor]:
        if how["aborted"]():
            raise PassAborted
        if any(FATAL in rows.tokens for rows in batch):
            raise torch.AcceleratorError("an illegal memory access")
        if any(POISON in rows.tokens for rows in batch):
            raise RuntimeError("a bad pass")
        return super().run(batch, images, **how)


class Hearing:
    """What one session heard, and whether it has left."""

    def __init__(self) -> None:
        self.name = ""
        self.events: list[Event] = []
        self.left_at: int | None = None  # after so many events

    def check(self, *, over: bool) -> None:
        lasts = [isinstance(event, Finished | CutlineError) for event in self.events]
        assert not any(lasts[:-1]), "nothing follows the last event"
        assert sum(isinstance(event, Opened) for event in self.events[1:]) == 0, "it is opened first, and once"
        if self.left_at is not None:
            assert len(self.events) == self.left_at, "who has left hears nothing"
        elif over:
            assert any(lasts), "nobody waits for ever"


sessions = st.integers(0, 7)
tokens = st.lists(st.sampled_from([1, 2, 3, 4, 5, 6, STOP, POISON]), max_size=4)
things = st.one_of(
    st.tuples(st.just("open"), st.sampled_from([0.0, 1.0]), st.sampled_from(["", "late", "image", "no image"]), tokens),
    st.tuples(st.just("offer"), sessions, st.integers(0, 12), tokens),
    st.tuples(st.just("relay"), sessions, st.sampled_from(["confirmed", "finished", "error"]), tokens),
    st.tuples(st.just("close"), sessions),
    st.tuples(st.just("step")),
    st.tuples(st.just("step")),
)
ends = st.sampled_from(["abandon", "give up", "fatal"])


@settings(deadline=None, max_examples=100)
@given(chooses=st.booleans(), happens=st.lists(things, max_size=40), ends=ends, after=st.lists(things, max_size=6))
def test_every_session_hears_one_last_event(
    chooses: bool, happens: list[tuple[Any, ...]], ends: str, after: list[tuple[Any, ...]]
) -> None:
    engine = Engine(cast(Target, Breaking(chooses=chooses)), (STOP,))
    heard: list[Hearing] = []

    ended = False

    def step() -> None:
        nonlocal ended
        if not ended:
            engine.close("nobody")  # a call is there: it does not wait for one
            try:
                engine.step()
            except Exception as error:  # as its thread does
                engine.give_up(error)
                ended = True

    def open_session(prompt: Sequence[int], effort: float, kind: str = "") -> None:
        request = SessionRequest(
            tokens=tuple(prompt),
            prompt_length=len(prompt),
            max_tokens=6,
            sampling=Sampling(),
            effort=effort,
            deadline=time.monotonic() - 1.0 if kind == "late" else None,
            boundary=np.zeros((int(kind == "image"), 1), np.float32) if "image" in kind else None,
        )
        heard.append(Hearing())
        heard[-1].name = engine.open(request, (), heard[-1].events.append)

    def happen(thing: tuple[Any, ...]) -> None:
        match thing:
            case ("open", effort, kind, prompt):
                open_session([1, *prompt], effort, kind)
            case ("step",):
                step()
            case (what, which, *more) if which < len(heard):
                one = heard[which]
                if what == "offer":
                    engine.offer(one.name, Draft(more[0], tuple(more[1])))
                elif what == "close":
                    engine.close(one.name)
                    if one.left_at is None:
                        one.left_at = len(one.events)
                elif more[0] == "confirmed":
                    position = 2 + sum(len(event.tokens) for event in one.events if isinstance(event, Confirmed))
                    engine.relay(one.name, Confirmed(position, tuple(more[1]), 0))
                elif more[0] == "finished":
                    engine.relay(one.name, Finished(Reason.STOP, 1, 0, 0.0))
                else:
                    engine.relay(one.name, WorkerFailed("further along"))

    for thing in happens:
        happen(thing)
        for one in heard:
            one.check(over=False)
    if ends == "abandon":
        engine.abandon(WorkerFailed("it hangs"))
    elif ends == "give up":
        engine.give_up(RuntimeError("a rank is lost"))
    else:
        for one in heard:
            engine.close(one.name)
            one.left_at = len(one.events) if one.left_at is None else one.left_at
        step()
        open_session([1, FATAL], 1.0)
        step()
    ended = True
    for thing in after:
        happen(thing)
    for one in heard:
        one.check(over=True)
    assert engine.sessions == 0


def test_threads_that_end_a_session_at_once_say_one_last_word() -> None:
    """The thread that hangs goes on just as it is given up, and its session is opened meanwhile."""
    for _ in range(50):
        listeners, heard, start = Listeners(), list[Event](), threading.Barrier(3)

        def work(*calls: Callable[[], object], start: threading.Barrier = start) -> threading.Thread:
            def run() -> None:
                start.wait()
                for call in calls:
                    call()

            thread = threading.Thread(target=run)
            thread.start()
            return thread

        threads = [
            work(lambda of=listeners, to=heard: of.add("it", to.append)),  # type: ignore[misc]
            work(
                lambda of=listeners: of.emit("it", Confirmed(1, (1,), 0)),  # type: ignore[misc]
                lambda of=listeners: of.emit("it", WorkerBusy("full")),  # type: ignore[misc]
            ),
            work(lambda of=listeners: of.end(WorkerUnavailable("stopped"))),  # type: ignore[misc]
        ]
        for thread in threads:
            thread.join()
        assert sum(isinstance(event, CutlineError) for event in heard) == 1
        assert isinstance(heard[-1], CutlineError)


def test_one_that_hears_something_may_ask_for_more() -> None:
    """While it hears: it opens another session, and closes its own."""
    listeners, heard = Listeners(), list[Event]()

    def listen(event: Event) -> None:
        heard.append(event)
        listeners.drop("it")
        listeners.add("other", heard.append)

    listeners.add("it", listen)
    listeners.emit("it", Confirmed(1, (1,), 0))
    listeners.emit("it", Confirmed(2, (1,), 0))
    listeners.emit("other", Finished(Reason.STOP, 1, 0, 0.0))
    assert [type(event) for event in heard] == [Confirmed, Finished]


def test_one_that_cannot_hear_its_last_event_harms_nobody() -> None:
    listeners, heard = Listeners(), list[Event]()

    def deaf(event: Event) -> None:
        raise RuntimeError("deaf")

    listeners.add("it", deaf)
    listeners.add("other", heard.append)
    with pytest.raises(RuntimeError, match="deaf"):
        listeners.emit("it", WorkerBusy("full"))
    listeners.emit("it", WorkerBusy("full"))
    listeners.end(WorkerUnavailable("stopped"))
    assert len(heard) == 1
