"""Places and time: who gets a slot, who loses it, whose turn it is, and what a session that waits costs."""

from __future__ import annotations

import contextlib
import gc
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from cutline.cloud.engine import sampler
from cutline.cloud.engine.cost_model import (
    LEAST_RETRY_SECONDS,
    MOST_RETRY_SECONDS,
    PACING,
    DecayingMean,
    Pacing,
    retry_seconds,
    turn,
)
from cutline.cloud.engine.engine import Engine
from cutline.cloud.engine.sampler import likelihoods
from cutline.cloud.engine.sessions.session import Event, Session
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.engine.sessions.session_rows import SessionRows
from cutline.cloud.model.model_runner import Target
from cutline.cloud.telemetry.observer import NOBODY, Observer
from cutline.core.sampling import Sampling
from cutline.errors import CutlineError, WorkerBusy, WorkerForgot, WorkerUnavailable
from cutline.models.law.sampling import choose
from cutline.protos.messages import Confirmed, Draft, Finished, Opened

VOCABULARY = 50
CONTEXT = 64


def next_token(token: int) -> int:
    return (token * 7 + 3) % VOCABULARY


class CountingTarget:
    """Answers from the last token alone; a pass waits for `go_on`, and the rows of each slot in it are noted."""

    context = CONTEXT
    decodes = chooses = True
    most_drafted = None
    passes_sides = False

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.go_on, self.held = threading.Event(), threading.Event()
        self.go_on.set()
        self.passes: list[dict[int, int]] = []

    def kept(self, slot: int, count: int) -> int:
        return count

    def resume(self, slot: int, source: int, count: int) -> None:
        pass

    def run(self, batch: Sequence[SessionRows], images: Sequence[Tensor | None], **how: Any) -> list[Tensor]:
        if not self.go_on.is_set():
            self.held.set()  # a pass waits
        assert self.go_on.wait(60)
        self.passes.append({rows.session.slot: len(rows.tokens) for rows in batch})
        return [
            5 * torch.nn.functional.one_hot(torch.tensor(chosen, dtype=torch.long), VOCABULARY).float()
            for chosen in ([next_token(token) for token in rows.tokens[-rows.wanted or CONTEXT :]] for rows in batch)
        ]


class Watching(Observer):
    def __init__(self) -> None:
        self.lost = 0
        self.saved = 0
        self.waits = list[float]()

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def evicted(self) -> None:
        self.lost += 1

    def reused(self, tokens: int) -> None:
        self.saved += tokens


def request(prompt: Sequence[int], *, effort: float = 0.0, max_tokens: int = 20) -> SessionRequest:
    return SessionRequest(
        tokens=tuple(prompt), prompt_length=len(prompt), max_tokens=max_tokens, sampling=Sampling(), effort=effort
    )


@contextlib.contextmanager
def running(target: CountingTarget, observer: Observer = NOBODY, **how: Any) -> Iterator[Engine]:
    engine = Engine(cast(Target, target), (), observer=observer, **how)
    engine.start()
    try:
        yield engine
    finally:
        target.go_on.set()
        engine.stop()


class Listener:
    def __init__(self, engine: Engine, asked: SessionRequest) -> None:
        self.inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.name = engine.open(asked, (), self.inbox.put)

    def next(self) -> Event:
        return self.inbox.get(timeout=30)

    def end(self) -> Event:
        while not isinstance(event := self.next(), Finished | CutlineError):
            pass
        return event

    def opened(self) -> Listener:
        """Once it waits for a draft."""
        assert isinstance(self.next(), Opened)
        assert isinstance(self.next(), Confirmed)
        return self


def test_who_waited_longest_loses_its_place_to_a_newcomer() -> None:
    target, watching, now = CountingTarget(3), Watching(), 1000.0
    with running(target, watching, clock=lambda: now) as engine:
        first, second = (Listener(engine, request([1, one])).opened() for one in (1, 2))
        now += 2 * PACING.safe_seconds
        third = Listener(engine, request([1, 3])).opened()
        assert engine.busy() is None  # somebody may go
        engine.offer(first.name, Draft(3, (next_token(next_token(1)),)))
        assert isinstance(first.next(), Confirmed)
        Listener(engine, request([1, 4])).opened()
        lost = second.next()
        assert isinstance(lost, WorkerForgot)
        assert "open the session anew" in str(lost)
        # Those that are left waited less than that: nobody else goes.
        refused = Listener(engine, request([1, 5])).next()
        assert isinstance(refused, WorkerBusy)
        assert isinstance(engine.busy(), WorkerBusy)
        assert (engine.sessions, watching.lost) == (3, 1)
        assert first.inbox.empty()
        assert third.inbox.empty()


def test_who_is_answered_never_loses_its_place() -> None:
    target = CountingTarget(2)
    with running(target, pacing=Pacing(safe_seconds=0.0)) as engine:
        target.go_on.clear()
        busy = [Listener(engine, request([1, one], effort=1.0)) for one in (1, 2)]
        refused = [Listener(engine, request([1, 3])) for _ in range(5)]
        target.go_on.set()
        assert all(isinstance(one.end(), Finished) for one in busy)
        assert sum(isinstance(one.next(), WorkerBusy) for one in refused) == 5


def test_a_refusal_says_when_to_come_again() -> None:
    """By how long sessions lasted, and how many were refused before."""
    target = CountingTarget(2)
    with running(target) as engine:
        lasted = []
        for _ in range(8):
            began = time.monotonic()
            brief = Listener(engine, request([1])).opened()
            time.sleep(0.25)
            engine.close(brief.name)
            lasted.append(time.monotonic() - began)
        holding = [Listener(engine, request([1, one])).opened() for one in (1, 2)]
        told = [Listener(engine, request([1, 3])).next() for _ in range(3)]
        waits = [one.retry_seconds for one in told if isinstance(one, WorkerBusy)]
        assert 0.1 <= waits[0] <= max(lasted) / 2  # nine tenths of a quarter of a second, and two places
        assert waits == pytest.approx([waits[0], 2 * waits[0], 3 * waits[0]], rel=0.3)
        engine.close(holding[0].name)
        assert isinstance(Listener(engine, request([1, 3])).next(), Opened)


def test_the_time_to_come_again_is_within_bounds() -> None:
    assert retry_seconds(0.0, 4, 0) == LEAST_RETRY_SECONDS
    assert retry_seconds(1e9, 4, 0) == MOST_RETRY_SECONDS
    assert retry_seconds(8.0, 4, 1) == 4.0


def test_out_of_time_ends_a_session_wherever_it_is() -> None:
    target = CountingTarget(2)
    with running(target) as engine:
        now = time.monotonic()
        waits = Listener(engine, replace(request([1, 2]), deadline=now + 2.0)).opened()
        late = Listener(engine, replace(request([1, 2]), deadline=now - 0.1)).next()
        assert isinstance(late, WorkerUnavailable)
        ended = waits.next()
        assert isinstance(ended, WorkerUnavailable)
        assert "in time" in str(ended)
        assert 2.0 <= time.monotonic() - now < 60
        target.go_on.clear()
        held = Listener(engine, replace(request([1, 2], effort=1.0), deadline=time.monotonic() + 0.1))
        beside = Listener(engine, request([1, 2], effort=1.0))
        time.sleep(0.2)
        target.go_on.set()
        assert isinstance(held.end(), WorkerUnavailable)
        assert isinstance(beside.end(), Finished)
        assert engine.sessions == 0
    # Its rows were in the pass that was running, and in no other.
    assert sum(0 in one for one in target.passes[-20:]) <= 2


def test_near_deadlines_come_first_and_nobody_starves() -> None:
    """Prompts of 3 pieces each: those whose time is near are run before those that only wait, but not for ever."""
    # Deadlines come sooner than what is fair, on however slow a machine.
    pacing = Pacing(least_prompt_rows=4, most_prompt_rows=4, fair_seconds=600.0)
    target = CountingTarget(8)
    with running(target, pacing=pacing) as engine:
        target.go_on.clear()
        Listener(engine, request([1], effort=1.0, max_tokens=40))  # keeps room short
        assert target.held.wait(60)
        patient = [Listener(engine, request([one] * 12, max_tokens=1)) for one in range(1, 4)]
        soon = time.monotonic() + 300.0
        hurried = [
            Listener(engine, replace(request([one] * 12, max_tokens=1), deadline=soon + one / 100))
            for one in (13, 12, 11)
        ]
        target.go_on.set()
        assert all(isinstance(one.end(), Finished) for one in (*patient, *hurried))
    turns = [slot for one in target.passes for slot in one if slot > 0]
    assert turns[:9] == [6, 6, 6, 5, 5, 5, 4, 4, 4]
    assert turns[9:] == [1, 2, 3] * 3


def test_whoever_waited_long_enough_comes_before_every_deadline() -> None:
    now, waited = 100.0, 100.0 - PACING.fair_seconds - 0.1
    orders = [
        turn(now - 1, now + 0.01, PACING),
        turn(waited, None, PACING),
        turn(waited - 1, now + 60, PACING),
    ]
    assert sorted(orders) == [orders[2], orders[1], orders[0]]
    assert turn(now, now + 60, PACING) == turn(now, None, PACING)  # a far deadline is no reason to go first


def test_waits_for_the_first_pass_are_told_and_fade() -> None:
    target = CountingTarget(4)
    with running(target) as engine:
        assert engine.queue_seconds == 0.0
        target.go_on.clear()
        Listener(engine, request([1], max_tokens=1))
        assert target.held.wait(60)
        began = time.monotonic()
        for _ in range(3):
            Listener(engine, request([1, 2], max_tokens=1))
        time.sleep(0.4)
        target.go_on.set()
        assert isinstance(Listener(engine, request([1, 2], max_tokens=1)).end(), Finished)
        assert 0.05 < engine.queue_seconds < time.monotonic() - began
    recent = DecayingMean().after(1.0, 10.0)
    assert recent.at(10.0) == 0.25
    assert recent.at(1000.0) < 1e-9
    assert recent.at(9.0) == 0.25  # a clock that is read before


def test_waiting_behind_other_prompts_is_counted() -> None:
    """One prompt a pass: the last of three waits for two passes more than the first, though all open at once."""
    target, watching, began = CountingTarget(4), Watching(), list[float]()
    run = target.run

    def slow(batch: Sequence[SessionRows], images: Sequence[Tensor | None], **how: Any) -> list[Tensor]:
        began.append(time.monotonic())
        time.sleep(0.1)
        return run(batch, images, **how)

    target.run = slow  # type: ignore[method-assign]
    with running(target, watching, pacing=Pacing(least_prompt_rows=6, most_prompt_rows=6)) as engine:
        asked = time.monotonic()
        listeners = [Listener(engine, request([one] * 6, max_tokens=1)) for one in (1, 2, 3)]
        opened = [one.next() for one in listeners]
        assert all(isinstance(one.end(), Finished) for one in listeners)
    # They open after the first pass at the latest, and the passes before their own they wait out.
    assert all(isinstance(one, Opened) and one.queue_seconds <= began[1] - asked for one in opened)
    assert all(0.1 * place <= waited <= began[place] - asked for place, waited in enumerate(watching.waits))
    assert len(watching.waits) == 3


@pytest.mark.parametrize("wrong", [0, 3, None])
def test_nothing_is_sampled_after_a_draft_is_rejected(monkeypatch: pytest.MonkeyPatch, wrong: int | None) -> None:
    """To there the tokens are those that each row alone gives at its position."""
    sampling = Sampling(temperature=1.0, seed=5)
    logits = torch.randn(7, VOCABULARY, generator=torch.Generator().manual_seed(0))
    alone = [choose(row.numpy(), sampling, 4 + place) for place, row in enumerate(logits)]
    drafted = [*alone[:6]]
    if wrong is not None:
        drafted[wrong] = (drafted[wrong] + 1) % VOCABULARY
    asked = replace(request([1, 2, 3, 4]), sampling=sampling)
    session = Session("s", asked, 0, CONTEXT)
    places = list[int]()

    def counted(row: Tensor, of: Sampling, position: int, **more: Any) -> int:
        places.append(position)
        return choose(row, of, position, **more)

    monkeypatch.setattr(sampler, "choose", counted)
    found = sampler.choose_all(SessionRows(session, 3, (4, *drafted), drafted=6), logits, ())
    count = 7 if wrong is None else wrong + 1
    assert (found, places) == (alone[:count], list(range(4, 4 + count)))


def test_likelihoods_are_those_of_softmax() -> None:
    logits = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 1000.0]])
    told = likelihoods(logits, [1, 2], 2)
    weights = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64).exp()
    expected = (weights / weights.sum()).log().tolist()
    assert told[0].logprob == pytest.approx(expected[1], abs=1e-6)
    assert [token for token, _ in told[0].alternatives] == [2, 1]
    assert [of for _, of in told[0].alternatives] == pytest.approx([expected[2], expected[1]], abs=1e-6)
    assert told[1].logprob == 0.0
    assert likelihoods(logits, [1, 2], 20)[1].alternatives[0] == (2, 0.0)
    assert likelihoods(logits, [0, 0], 0)[0].alternatives == ()


def test_likelihoods_come_with_every_token_that_was_confirmed_and_only_if_asked_for() -> None:
    target = CountingTarget(2)
    with running(target) as engine:
        asked = replace(request([1, 2], effort=1.0, max_tokens=9), likelihoods=True, alternatives=1)
        answer = [next_token(2)]
        while len(answer) < 9:
            answer.append(next_token(answer[-1]))
        asked = replace(asked, draft=(*answer[:3], answer[3] + 1, 5))
        told, plain = Listener(engine, asked), Listener(engine, request([1, 2], effort=1.0))
        share = 5.0 - torch.tensor([5.0, *[0.0] * (VOCABULARY - 1)]).logsumexp(0).item()
        tokens: list[int] = []
        assert isinstance(told.next(), Opened)
        while isinstance(event := told.next(), Confirmed):
            assert len(event.likelihoods) == len(event.tokens)
            for token, likelihood in zip(event.tokens, event.likelihoods, strict=True):
                assert likelihood.logprob == pytest.approx(share, abs=1e-5)
                assert [one for one, _ in likelihood.alternatives] == [token]
            tokens += event.tokens
        assert tokens == answer
        assert isinstance(plain.next(), Opened)
        while isinstance(event := plain.next(), Confirmed):
            assert event.likelihoods == ()


def test_a_thousand_sessions_that_wait_cost_a_few_objects_each_and_no_thread() -> None:
    """Beside their keys and values, which belong to the target."""
    target = CountingTarget(1000)
    with running(target) as engine:
        Listener(engine, request([1, 1])).opened()
        threads, told = threading.active_count(), queue.SimpleQueue[type]()
        gc.collect()
        before = len(gc.get_objects())
        for one in range(999):
            asked = request([1 + one % 40, one // 40, *range(1, 31)])
            engine.open(asked, (), lambda event: told.put(type(event)))
        for _ in range(2 * 999):
            assert told.get(timeout=60) in (Opened, Confirmed)
        gc.collect()
        assert engine.sessions == 1000
        assert threading.active_count() <= threads  # one of an earlier test may have ended
        assert (len(gc.get_objects()) - before) / 999 < 20
        assert len(engine._images) == 0
        # And whoever comes among them is answered at once.
        began = time.monotonic()
        time.sleep(1.1)  # from when on one of them may go
        assert isinstance(Listener(engine, request([2, 2], effort=1.0, max_tokens=5)).end(), Finished)
        assert time.monotonic() - began < 60
