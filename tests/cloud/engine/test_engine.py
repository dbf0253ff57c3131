"""The engine on a fake target: many sessions at once, each with its own answer, each alone with its own troubles."""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from cutline.cloud.engine.cost_model import PACING, Pacing
from cutline.cloud.engine.engine import Engine
from cutline.cloud.engine.kv_slots import Slots
from cutline.cloud.engine.sessions.session import Event, Session
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.engine.sessions.session_rows import SessionRows
from cutline.cloud.model.model_runner import PassAborted, Target
from cutline.cloud.model.vision import Unwanted
from cutline.core.sampling import Sampling
from cutline.errors import CutlineError, InputError, WorkerBusy, WorkerFailed
from cutline.protos.messages import Confirmed, Draft, Finished, Opened, Reason
from cutline.testing.target import HOLLOW, POISON, STOP, VOCABULARY, ScriptedTarget, plain_answer


class Listener:
    """What one session is told."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.events: list[Event] = []

    def next(self) -> Event:
        event = self.inbox.get(timeout=30)
        self.events.append(event)
        return event

    def end(self) -> Event:
        """Wait for the last event."""
        while not isinstance(event := self.next(), Finished | CutlineError):
            pass
        return event

    @property
    def tokens(self) -> list[int]:
        return [token for event in self.events if isinstance(event, Confirmed) for token in event.tokens]


def request(prompt: Sequence[int], *, effort: float = 1.0, max_tokens: int = 30, **more: Any) -> SessionRequest:
    return SessionRequest(
        tokens=tuple(prompt),
        prompt_length=len(prompt),
        max_tokens=max_tokens,
        sampling=Sampling(),
        effort=effort,
        **more,
    )


@contextlib.contextmanager
def running(
    target: ScriptedTarget, on_broken: Callable[[], object] = lambda: None, *, pacing: Pacing = PACING
) -> Iterator[Engine]:
    engine = Engine(cast(Target, target), (STOP,), pacing=pacing)
    engine.start(on_broken)
    try:
        yield engine
    finally:
        engine.stop()


def opened(engine: Engine, asked: SessionRequest, *drafts: Draft) -> tuple[str, Listener]:
    listener = Listener()
    return engine.open(asked, drafts, listener.inbox.put), listener


def wait_at_first_token(engine: Engine, prompt: Sequence[int]) -> tuple[str, Listener]:
    """A session that holds its slot: without effort and drafts it waits after its first token."""
    name, listener = opened(engine, request(prompt, effort=0.0))
    opening = listener.next()
    assert isinstance(opening, Opened)
    assert opening.session == name
    assert isinstance(listener.next(), Confirmed)
    return name, listener


PROMPTS = [[1 + number, *range(5, 6 + number % 7)] for number in range(12)]


@pytest.mark.parametrize("prompt", [prompt for prompt in PROMPTS if plain_answer(prompt, 30)[-1:] != [STOP]][:2])
def test_one_session_is_told_everything_in_order(prompt: list[int]) -> None:
    with running(ScriptedTarget(1)) as engine:
        name, listener = opened(engine, request(prompt, max_tokens=9))
        finished = listener.end()
        assert engine.sessions == 0
    opening = listener.events[0]
    assert isinstance(opening, Opened)
    assert (opening.session, opening.queue_seconds >= 0) == (name, True)
    confirmed = [event for event in listener.events if isinstance(event, Confirmed)]
    assert [event.position for event in confirmed] == list(range(len(prompt), len(prompt) + 9))
    assert listener.tokens == plain_answer(prompt, 9)
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.passes, finished.verified) == (Reason.LENGTH, 9, 0)
    assert finished.cloud_seconds > 0


def test_drafts_that_came_before_the_session_opened_count_in_its_first_pass() -> None:
    prompt = PROMPTS[1]
    answer = plain_answer(prompt, 6)
    with running(ScriptedTarget(1)) as engine:
        early = (Draft(len(prompt), tuple(answer[:2])), Draft(len(prompt) + 2, tuple(answer[2:])))
        _, listener = opened(engine, request(prompt, max_tokens=6), *early)
        listener.end()
    assert listener.tokens == answer
    first = listener.events[1]
    assert isinstance(first, Confirmed)
    assert first.accepted >= 2


def test_stop_tokens_and_context_end_an_answer() -> None:
    stopping = next([a] for a in range(1, 60) if plain_answer([a], 30)[-1] == STOP)
    endless = next([a] * 20 for a in range(1, 60) if plain_answer([a] * 20, 99)[-1] != STOP)
    with running(ScriptedTarget(2)) as engine:
        ends = []
        for prompt in (stopping, endless):
            _, listener = opened(engine, request(prompt, max_tokens=99))
            ends.append(listener.end())
            assert listener.tokens == plain_answer(prompt, 99)
    assert [end.reason for end in ends if isinstance(end, Finished)] == [Reason.STOP, Reason.LENGTH]


def test_many_sessions_with_drafts_from_many_threads_keep_their_answers() -> None:
    """Right, wrong, early and late drafts, sessions that come and go, more sessions in all than slots."""
    target = ScriptedTarget(4)
    room = threading.Semaphore(4)
    wrong: list[str] = []

    def converse(seed: int) -> None:
        dice = random.Random(seed)  # noqa: S311
        prompt = [dice.randrange(1, VOCABULARY - 1) for _ in range(dice.randrange(1, 20))]
        answer = plain_answer(prompt, 30)
        with room:
            name, listener = opened(engine, request(prompt, effort=dice.choice([0.0, 0.5, 1.0]), max_tokens=30))
            while not isinstance(event := listener.next(), Finished | CutlineError):
                if isinstance(event, Confirmed):
                    at = max(0, len(listener.tokens) + dice.choice([-2, 0, 0, 0, 3]))
                    draft = [t if dice.random() < 0.8 else 1 for t in answer[at : at + dice.randrange(8)]]
                    engine.offer(name, Draft(len(prompt) + at, tuple(draft)))
                    # One surely right token, so that no session waits for ever.
                    sure = len(listener.tokens)
                    engine.offer(name, Draft(len(prompt) + sure, tuple(answer[sure : sure + 1])))
            if listener.tokens != answer or not isinstance(event, Finished):
                wrong.append(f"{prompt}: {listener.tokens} is not {answer} ({event})")

    with running(target) as engine:
        threads = [threading.Thread(target=converse, args=(seed,)) for seed in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert engine.sessions == 0
    assert wrong == []


def test_a_session_that_breaks_a_pass_ends_alone(caplog: pytest.LogCaptureFixture) -> None:
    target = ScriptedTarget(4)
    with running(target) as engine:
        waiting = [wait_at_first_token(engine, prompt) for prompt in PROMPTS[:3]]
        bad, fails = wait_at_first_token(engine, PROMPTS[3])
        for (name, listener), prompt in zip(waiting, PROMPTS, strict=False):
            engine.offer(name, Draft(len(prompt) + 1, tuple(plain_answer(prompt, 30)[1:4])))
            assert listener.tokens == plain_answer(prompt, 1)
        engine.offer(bad, Draft(len(PROMPTS[3]) + 1, (POISON,)))
        assert isinstance(fails.end(), WorkerFailed)
        for (name, listener), prompt in zip(waiting, PROMPTS, strict=False):
            answer = plain_answer(prompt, 30)
            while not isinstance(listener.next(), Finished):
                at = len(listener.tokens)
                engine.offer(name, Draft(len(prompt) + at, tuple(answer[at : at + 4])))
            assert listener.tokens == answer
        assert engine.sessions == 0
        assert len({wait_at_first_token(engine, prompt)[0] for prompt in PROMPTS[:4]}) == 4  # all slots are free again
    assert bad in caplog.text
    assert "a bad pass" in caplog.text


def test_a_prompt_or_image_that_breaks_its_pass_ends_alone() -> None:
    with running(ScriptedTarget(2)) as engine:
        waiting, listener = wait_at_first_token(engine, PROMPTS[0])
        for broken in (
            request([1, POISON]),
            request([1, HOLLOW]),
            request([1, 2], boundary=np.zeros((0, 3, 4, 4), np.float32)),
        ):
            _, fails = opened(engine, broken)
            end = fails.end()
            assert isinstance(end, WorkerFailed)
            assert "log" in str(end)
            assert "bad pass" not in str(end)  # details stay here
        answer = plain_answer(PROMPTS[0], 30)
        engine.offer(waiting, Draft(len(PROMPTS[0]) + 1, tuple(answer[1:])))
        while not isinstance(listener.next(), Finished):
            at = len(listener.tokens)
            engine.offer(waiting, Draft(len(PROMPTS[0]) + at, tuple(answer[at:])))
        assert listener.tokens == answer


def test_a_pass_that_fails_only_together_harms_nobody() -> None:
    target = ScriptedTarget(3)
    target.lone_only = True
    with running(target) as engine:
        listeners = [opened(engine, request(prompt))[1] for prompt in PROMPTS[:3]]
        for listener, prompt in zip(listeners, PROMPTS, strict=False):
            assert isinstance(listener.end(), Finished)
            assert listener.tokens == plain_answer(prompt, 30)


def test_tokens_that_cannot_be_chosen_end_their_session_alone() -> None:
    with running(ScriptedTarget(3)) as engine:
        asked = [request(PROMPTS[0]), request([1, HOLLOW]), request(PROMPTS[1])]
        listeners = [opened(engine, one)[1] for one in asked]
        ends = [listener.end() for listener in listeners]
        assert [type(end) for end in ends] == [Finished, WorkerFailed, Finished]
        assert [one.tokens for one in listeners] == [plain_answer(PROMPTS[0], 30), [], plain_answer(PROMPTS[1], 30)]


def test_a_session_that_cannot_be_told_ends_alone() -> None:
    class Deaf(Listener):
        def hear(self, event: Event) -> None:
            if isinstance(event, Confirmed):
                raise RuntimeError("deaf")
            self.inbox.put(event)

    deaf = Deaf()
    with running(ScriptedTarget(2)) as engine:
        engine.open(request(PROMPTS[0]), (), deaf.hear)
        _, listener = opened(engine, request(PROMPTS[1]))
        assert isinstance(deaf.end(), WorkerFailed)
        assert isinstance(listener.end(), Finished)
        assert engine.sessions == 0
    assert listener.tokens == plain_answer(PROMPTS[1], 30)


def test_a_broken_engine_says_so_to_all_who_are_there_and_all_who_come(caplog: pytest.LogCaptureFixture) -> None:
    target, broken = ScriptedTarget(3), threading.Event()
    with running(target, broken.set) as engine:
        waiting = [wait_at_first_token(engine, prompt)[1] for prompt in PROMPTS[:2]]

        def run(batch: Sequence[SessionRows], images: Sequence[Tensor | None], **how: Any) -> list[Tensor]:
            raise torch.AcceleratorError("an illegal memory access")

        target.run = run  # type: ignore[method-assign]
        assert not broken.is_set()
        _, last = opened(engine, request(PROMPTS[2]))
        for listener in (*waiting, last):
            end = listener.end()
            assert isinstance(end, WorkerFailed)
            assert "illegal" not in str(end)  # details stay here
        assert broken.is_set()
        assert engine.sessions == 0
        engine.offer("nobody", Draft(3, (1,)))
        assert isinstance(opened(engine, request(PROMPTS[3]))[1].end(), WorkerFailed)
    assert "illegal memory access" in caplog.text


LONG = list(range(5, 25))


class Resuming(ScriptedTarget):
    """Breaks where a session would go on from those of another."""

    def __init__(self, error: Exception) -> None:
        super().__init__(3)
        self.error = error

    def resume(self, slot: int, source: int, count: int) -> None:
        raise self.error


def test_a_session_that_breaks_as_it_begins_ends_alone(caplog: pytest.LogCaptureFixture) -> None:
    """And holds no slot."""
    with running(Resuming(RuntimeError("a bad copy"))) as engine:
        _, waiting = wait_at_first_token(engine, PROMPTS[0])
        for _ in range(4):
            assert isinstance(opened(engine, request(LONG, max_tokens=1))[1].end(), Finished)
            assert isinstance(opened(engine, request([*LONG, 1]))[1].end(), WorkerFailed)
        assert engine.sessions == 1
        names = [wait_at_first_token(engine, prompt)[0] for prompt in PROMPTS[1:3]]
        assert isinstance(engine.busy(), WorkerBusy)
        for name in names:
            engine.close(name)
        assert not any(isinstance(event, CutlineError) for event in waiting.events)
    assert "a bad copy" in caplog.text


def test_who_breaks_the_engine_by_coming_hears_it_like_the_others() -> None:
    with running(Resuming(torch.AcceleratorError("an illegal memory access"))) as engine:
        opened(engine, request(LONG, max_tokens=1))[1].end()
        _, waiting = wait_at_first_token(engine, PROMPTS[0])
        assert isinstance(opened(engine, request([*LONG, 1]))[1].end(), WorkerFailed)
        assert isinstance(waiting.end(), WorkerFailed)


def test_a_draft_that_cannot_be_taken_ends_its_session_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Session.offer

    def offer(session: Session, position: int, draft: Sequence[int], rows: Any = None) -> None:
        if POISON in draft:
            raise ValueError("no such draft")
        real(session, position, draft, rows)

    monkeypatch.setattr(Session, "offer", offer)
    with running(ScriptedTarget(2)) as engine:
        name, broken = wait_at_first_token(engine, PROMPTS[0])
        other, _ = wait_at_first_token(engine, PROMPTS[1])
        engine.offer(name, Draft(2, (POISON,)))
        assert isinstance(broken.end(), WorkerFailed)
        engine.offer(other, Draft(2, (1,)))
        _, third = opened(engine, request(PROMPTS[2]))
        assert isinstance(third.end(), Finished)


class Counting(ScriptedTarget):
    """Notes of each pass how many rows of which slot it had."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.passes: list[dict[int, int]] = []
        self.ready = threading.Event()

    def run(self, batch: Sequence[SessionRows], images: Sequence[Tensor | None], **how: Any) -> list[Tensor]:
        self.ready.wait(30)
        self.passes.append({rows.session.slot: len(rows.tokens) for rows in batch})
        return super().run(batch, images, **how)


def test_a_storm_of_prompts_starves_nobody() -> None:
    """Counted in passes: those that answer are in every one, prompts share what is left of it in turn."""
    endless = [[a] for a in range(1, 60) if len(plain_answer([a], 30)) == 30][:2]
    storm = [[a] * 24 for a in range(1, 9)]
    target = Counting(10)
    with running(target, pacing=Pacing(least_prompt_rows=5, most_prompt_rows=5)) as engine:
        calm = [opened(engine, request(prompt))[1] for prompt in endless]
        prompts = [opened(engine, request(prompt, max_tokens=1))[1] for prompt in storm]
        target.ready.set()
        for listener, prompt in zip([*calm, *prompts], [*endless, *storm], strict=True):
            assert isinstance(listener.end(), Finished)
            assert listener.tokens == plain_answer(prompt, 30)[: len(listener.tokens)]
    answering = [of for of in target.passes if sum(of.get(slot, 0) for slot in (0, 1)) == 2]
    assert len(answering) >= 29  # no pass without them, until they have their answers
    assert target.passes.index(answering[-1]) <= 31
    for of in target.passes:
        assert sum(count for slot, count in of.items() if slot > 1) <= 5
    turns = [slot for of in target.passes for slot in of if slot > 1][:16]
    assert sorted(turns[:8]) == sorted(turns[8:16]) == list(range(2, 10))


def test_a_session_is_told_how_long_it_waited_for_a_pass_to_end() -> None:
    target, began, go_on, times = ScriptedTarget(2), threading.Event(), threading.Event(), list[float]()
    run = target.run

    def held(batch: Sequence[SessionRows], images: Sequence[Tensor | None], **how: Any) -> list[Tensor]:
        times.append(time.monotonic())
        began.set()
        go_on.wait(30)
        return run(batch, images, **how)

    target.run = held  # type: ignore[method-assign]
    with running(target) as engine:
        asked = time.monotonic()
        _, first = opened(engine, request(PROMPTS[0]))
        began.wait(30)
        _, second = opened(engine, request(PROMPTS[1]))
        time.sleep(0.2)
        go_on.set()
        waits = [one.next().queue_seconds for one in (first, second)]  # type: ignore[union-attr]
        assert isinstance(second.end(), Finished)
        assert waits[0] <= times[0] - asked, "not for a pass"
        assert 0.2 <= waits[1] <= times[1] - times[0]


def test_a_session_that_waits_too_long_for_a_draft_is_ended() -> None:
    with running(ScriptedTarget(1), pacing=Pacing(idle_seconds=0.1)) as engine:
        _, listener = wait_at_first_token(engine, PROMPTS[0])
        end = listener.end()
        assert isinstance(end, InputError)
        assert "drafted" in str(end)
        assert engine.sessions == 0


def test_a_slow_pass_is_not_the_agents_fault() -> None:
    target = ScriptedTarget(1)
    run = target.run

    def slow(batch: Sequence[SessionRows], images: Sequence[Tensor | None], **how: Any) -> list[Tensor]:
        time.sleep(0.05)
        return run(batch, images, **how)

    target.run = slow  # type: ignore[method-assign]
    with running(target, pacing=Pacing(idle_seconds=0.0)) as engine:
        answer = plain_answer(PROMPTS[0], 4)
        asked = request(PROMPTS[0], max_tokens=4, effort=0.0)
        _, listener = opened(engine, asked, Draft(len(PROMPTS[0]), tuple(answer)))
        assert isinstance(listener.end(), Finished)
    assert listener.tokens == answer


def test_a_flood_of_commands_does_not_keep_others_from_their_passes() -> None:
    """A peer that asks again as soon as it is refused: there is always one more command in the queue."""
    with running(ScriptedTarget(1)) as engine:
        name, listener = wait_at_first_token(engine, PROMPTS[0])
        served = threading.Event()

        def again(event: Event) -> None:
            if isinstance(event, WorkerBusy):
                engine.open(request(PROMPTS[1]), (), again)
            elif isinstance(event, Finished):
                served.set()

        engine.open(request(PROMPTS[1]), (), again)
        answer = plain_answer(PROMPTS[0], 30)
        engine.offer(name, Draft(len(PROMPTS[0]) + 1, tuple(answer[1:])))
        while not isinstance(listener.next(), Finished):
            at = len(listener.tokens)
            engine.offer(name, Draft(len(PROMPTS[0]) + at, tuple(answer[at:])))
        assert listener.tokens == answer
        assert served.wait(30)


def test_the_clock_of_a_pass_stops_when_its_tokens_are_here() -> None:
    """A GPU only queues a pass; whoever asks for the tokens waits for it."""

    class Queued(torch.Tensor):
        def argmax(self, *given: Any, **named: Any) -> Tensor:
            time.sleep(0.02)
            return self.as_subclass(torch.Tensor).argmax(*given, **named)

    target = ScriptedTarget(1)
    run = target.run
    target.run = lambda batch, images, **how: [of.as_subclass(Queued) for of in run(batch, images)]  # type: ignore[method-assign]
    with running(target) as engine:
        _, listener = opened(engine, request(PROMPTS[0], max_tokens=4))
        finished = listener.end()
    assert isinstance(finished, Finished)
    assert finished.cloud_seconds >= 0.02 * finished.passes


def picture(tiles: int, **more: Any) -> SessionRequest:
    return request([2, 3, 4], boundary=np.broadcast_to(np.float32(0), (tiles, 1)), **more)


def test_answers_go_on_while_an_image_is_encoded() -> None:
    """A picture without end: another session is answered from beginning to end meanwhile."""
    target = ScriptedTarget(2)
    with running(target) as engine:
        name, _ = opened(engine, picture(10**9))
        _, listener = opened(engine, request([7]))
        assert isinstance(listener.end(), Finished)
        assert listener.tokens == plain_answer([7], 30)
        engine.close(name)


def test_a_small_image_does_not_wait_for_a_large_one() -> None:
    """Nor for ever one that came before others: after its turn they have theirs."""
    with running(ScriptedTarget(3), pacing=Pacing(fair_seconds=0.0)) as engine:
        name, _ = opened(engine, picture(10**9))
        _, small = opened(engine, picture(3))
        assert isinstance(small.end(), Finished)
        engine.close(name)


@pytest.mark.parametrize("how", ["closed", "late", "stopped"])
def test_an_image_that_nobody_waits_for_is_given_up(how: str) -> None:
    target, steps, begun = ScriptedTarget(1), 0, threading.Event()

    def step() -> None:
        nonlocal steps
        steps += 1
        begun.set()

    target.on_step = step
    with running(target) as engine:
        deadline = time.monotonic() + 1.0 if how == "late" else None
        name, listener = opened(engine, picture(10**9, deadline=deadline))
        assert begun.wait(30)
        if how == "closed":
            engine.close(name)
        elif how == "stopped":
            assert engine.stop(), "its thread ends"
            return
        else:
            assert isinstance(listener.end(), CutlineError)
        _, other = opened(engine, request([7], max_tokens=1))
        assert isinstance(other.end(), Finished), "its place is free, and so is the engine"


@pytest.mark.parametrize("stopped", [False, True])
def test_an_image_is_given_up_in_the_middle_of_a_step(stopped: bool) -> None:
    target, begun = ScriptedTarget(1), threading.Event()

    def endless() -> None:
        begun.set()
        while not target.aborted():
            time.sleep(0.001)
        raise Unwanted

    target.on_step = endless
    with running(target) as engine:
        name, _ = opened(engine, picture(3))
        assert begun.wait(30)
        if stopped:
            assert engine.stop(), "its thread ends"
            return
        engine.close(name)
        _, other = opened(engine, request([7], max_tokens=1))
        assert isinstance(other.end(), Finished), "its place is free, and so is the engine"


@pytest.mark.parametrize("stopped", [False, True])
def test_a_pass_that_nobody_waits_for_is_given_up(stopped: bool) -> None:
    """While it runs: its one session is closed, or the engine is to stop."""
    target, begun = ScriptedTarget(1), threading.Event()
    run = target.run

    def endless(
        batch: Sequence[SessionRows], images: Sequence[Tensor | None], *, aborted: Callable[[], bool]
    ) -> list[Tensor]:
        if 5 not in batch[0].tokens:
            return run(batch, images)
        begun.set()
        while not aborted():
            time.sleep(0.001)
        raise PassAborted

    target.run = endless  # type: ignore[method-assign,assignment]
    with running(target) as engine:
        name, _ = opened(engine, request([5]))
        assert begun.wait(30)
        if stopped:
            assert engine.stop()
            return
        engine.close(name)
        _, other = opened(engine, request([7], max_tokens=1))
        assert isinstance(other.end(), Finished)


def test_an_engine_that_hangs_is_given_up_by_others() -> None:
    """All who are there hear it, and all who come; what the engine says once it goes on again hurts nobody."""
    target, hangs, go_on, broken = ScriptedTarget(3), threading.Event(), threading.Event(), threading.Event()
    run = target.run

    def hanging(batch: Sequence[SessionRows], images: Sequence[Tensor | None], **how: Any) -> list[Tensor]:
        hangs.set()
        assert go_on.wait(30)
        return run(batch, images)

    target.run = hanging  # type: ignore[method-assign]
    engine = Engine(cast(Target, target), (STOP,))
    engine.start(broken.set)
    _, first = opened(engine, request([5]))
    assert hangs.wait(30)
    assert engine.progress.work is not None
    _, second = opened(engine, request([6]))
    engine.abandon(WorkerFailed("it hangs"))
    assert broken.is_set()
    _, third = opened(engine, request([7]))
    for listener in (first, second, third):
        with pytest.raises(WorkerFailed, match="it hangs"):
            raise listener.end()  # type: ignore[misc]
    go_on.set()
    assert engine.stop()


def test_images_are_encoded_once() -> None:
    target = ScriptedTarget(1)
    with running(target) as engine:
        _, listener = opened(engine, request([1, 2], boundary=np.zeros((3, 3, 4, 4), np.float32)))
        assert isinstance(listener.end(), Finished)
    assert target.encoded == [3]


def test_a_full_worker_refuses_and_a_closed_session_makes_room() -> None:
    with running(ScriptedTarget(2)) as engine:
        assert engine.max_sessions == 2
        assert engine.busy() is None
        names = [wait_at_first_token(engine, prompt)[0] for prompt in PROMPTS[:2]]
        assert engine.sessions == 2
        assert isinstance(engine.busy(), WorkerBusy)
        _, refused = opened(engine, request(PROMPTS[2]))
        assert isinstance(refused.end(), WorkerBusy)
        assert engine.sessions == 2
        engine.close(names[0])
        _, taken = opened(engine, request(PROMPTS[2]))
        assert isinstance(taken.end(), Finished)
        assert taken.tokens == plain_answer(PROMPTS[2], 30)


def test_who_is_counted_no_more_has_left_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others read the count: whom it leaves room may come at once."""
    counted: list[int] = []

    def give(self: Slots, number: int, tokens: Sequence[int]) -> None:
        counted.append(engine.sessions)
        given(self, number, tokens)

    given = Slots.give
    monkeypatch.setattr(Slots, "give", give)
    with running(ScriptedTarget(1)) as engine:
        _, listener = opened(engine, request(PROMPTS[0]))
        assert isinstance(listener.end(), Finished)
    assert counted == [1]


def test_commands_for_sessions_that_are_not_there_do_nothing() -> None:
    with running(ScriptedTarget(1)) as engine:
        engine.offer("nobody", Draft(3, (1, 2)))
        engine.close("nobody")
        name, listener = opened(engine, request(PROMPTS[0]))
        assert isinstance(listener.end(), Finished)
        for _ in range(3):  # it has ended: its slot must not be freed once more
            engine.close(name)
            engine.offer(name, Draft(2, (1,)))
        kept, _ = wait_at_first_token(engine, PROMPTS[1])
        _, refused = opened(engine, request(PROMPTS[2]))
        assert isinstance(refused.end(), WorkerBusy)
        engine.close(kept)


def test_stop_ends_the_thread_with_sessions_waiting() -> None:
    before = set(threading.enumerate())
    with running(ScriptedTarget(2)) as engine:
        wait_at_first_token(engine, PROMPTS[0])
        (thread,) = (one for one in set(threading.enumerate()) - before if one.name == "engine")
    assert not thread.is_alive()


def test_sessions_share_passes() -> None:
    """Offered while a pass runs, drafts of several sessions go into the next one together."""
    target = ScriptedTarget(4)
    gate = threading.Event()
    run = target.run

    def slow(batch: Sequence[SessionRows], images: Sequence[Tensor | None], **how: Any) -> list[Tensor]:
        gate.wait(30)
        return run(batch, images, **how)

    target.run = slow  # type: ignore[method-assign]
    with running(target) as engine:
        listeners = [opened(engine, request(prompt))[1] for prompt in PROMPTS[:4]]
        gate.set()
        for listener in listeners:
            listener.end()
    assert target.together >= 3
