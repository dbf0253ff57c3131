"""Engines in a row on scripted spans: many sessions at once, drafts of every kind, and nobody gets another's tokens.

A row is computed of all tokens up to its own, and the next token of the row alone, as in test_deep_session.py.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

import pytest

from cutline.cloud.engine.cost_model import PACING, Pacing
from cutline.cloud.engine.engine import Engine
from cutline.cloud.engine.sessions.session import Event, Forward
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.model.model_runner import Target
from cutline.core.sampling import Sampling
from cutline.errors import CutlineError, InputError, WorkerFailed
from cutline.protos.messages import Confirmed, Draft, Finished, Opened
from cutline.testing.target import POISON, STOP, ScriptedTarget, plain_answer, rows_of


class Way:
    """One session through `engines`, from the one at `index` on; what it tells the agent goes into `inbox`."""

    def __init__(
        self,
        engines: Sequence[Engine],
        request: SessionRequest,
        *,
        piece: int,
        index: int = 0,
        before: Way | None = None,
    ) -> None:
        self.inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.name = ""
        self._engines, self._index, self._piece = engines, index, piece
        self._request, self._before = request, before
        self._next: Way | None = None
        engines[index].open(request, (), self._hear)

    def offer(self, draft: Draft) -> None:
        self._engines[self._index].offer(self.name, draft)

    def _hear(self, event: Event) -> None:
        """Called by the engine's thread."""
        if isinstance(event, Opened):
            self.name = event.session
        if isinstance(event, Forward):
            self._forward(event)
        elif self._before is None:
            self.inbox.put(event)
        elif not isinstance(event, Opened):
            self._engines[self._index - 1].relay(self._before.name, event)

    def _forward(self, piece: Forward) -> None:
        if self._next is None:
            draft = piece.tokens[len(self._request.tokens) :]
            request = replace(self._request, draft=draft, cut="decoder.1", deep=True, boundary=piece.rows)
            self._next = Way(self._engines, request, piece=self._piece, index=self._index + 1, before=self)
            return
        for at in range(0, len(piece.tokens), self._piece):
            part = slice(at, at + self._piece)
            self._next.offer(Draft(piece.position + at, piece.tokens[part], piece.rows[part]))


@contextlib.contextmanager
def running(count: int, slots: int, *, pacing: Pacing = PACING) -> Iterator[list[Engine]]:
    spans = [ScriptedTarget(slots, chooses=index == count - 1) for index in range(count)]
    engines = [Engine(cast(Target, span), (STOP,), pacing=pacing) for span in spans]
    for engine in engines:
        engine.start()
    try:
        yield engines
    finally:
        for engine in engines:
            engine.stop()


def asked(prompt: Sequence[int], draft: Sequence[int], *, deep: bool, effort: float) -> SessionRequest:
    return SessionRequest(
        tokens=tuple(prompt),
        prompt_length=len(prompt),
        max_tokens=30,
        sampling=Sampling(),
        effort=effort,
        draft=tuple(draft),
        cut="decoder.1" if deep else "image",
        deep=deep,
        boundary=rows_of([*prompt, *draft], 0) if deep else None,
    )


def converse(engines: Sequence[Engine], seed: int) -> str | None:
    """What was wrong with a session of drafts of every kind, if anything."""
    dice = random.Random(seed)  # noqa: S311
    prompt = [dice.randrange(1, POISON) for _ in range(dice.randrange(1, 20))]
    answer = plain_answer(prompt, 30)

    def guess(at: int, count: int) -> list[int]:
        return [token if dice.random() < 0.85 else dice.randrange(1, POISON) for token in answer[at : at + count]]

    deep = dice.random() < 0.5
    request = asked(prompt, guess(0, dice.randrange(6)), deep=deep, effort=dice.choice([0.0, 0.5, 1.0]))
    way = Way(engines, request, piece=dice.choice([1, 3, 99]))
    tokens: list[int] = []
    while not isinstance(event := way.inbox.get(timeout=30), Finished | CutlineError):
        if not isinstance(event, Confirmed):
            continue
        assert event.position == len(prompt) + len(tokens)
        tokens += event.tokens
        # Beginning with what was confirmed now, then a guess in pieces; and sometimes again what was said before.
        known = [*prompt, *tokens]
        drafted = [*known, *guess(len(tokens), dice.randrange(8))]
        first = len(known) - len(event.tokens)
        middle = dice.randrange(len(known), len(drafted) + 1)
        for start, end in itertools.chain([(first, middle), (middle, len(drafted))], [(first, middle)] * (seed % 2)):
            new = drafted[start:end]
            way.offer(Draft(start, tuple(new), rows_of(drafted[:end], start) if deep else None))
        if not deep:  # one surely right token, so that no session waits for ever
            way.offer(Draft(len(known), tuple(answer[len(tokens) : len(tokens) + 1])))
    if tokens != answer or not isinstance(event, Finished):
        return f"{seed}: {prompt}: {tokens} is not {answer} ({event})"
    return None


@pytest.mark.parametrize("count", [1, 2, 3])
def test_many_sessions_through_engines_in_a_row_keep_their_answers(count: int) -> None:
    """More sessions in all than slots. A last engine frees its slot before the first knows, so no room is lacking."""
    room = threading.Semaphore(4)
    wrong: list[str | None] = []

    def session(seed: int) -> None:
        with room:
            wrong.append(converse(engines, seed))

    with running(count, 4) as engines:
        threads = [threading.Thread(target=session, args=(seed,)) for seed in range(60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [engine.sessions for engine in engines] == [0] * count
    assert [one for one in wrong if one is not None] == []
    assert len(wrong) == 60


def test_prompts_in_pieces_go_on_whole() -> None:
    """An engine that is not the last keeps what it made until it can open a session on the next one with it."""
    with running(3, 4, pacing=Pacing(least_prompt_rows=2, most_prompt_rows=4)) as engines:
        assert [converse(engines, seed) for seed in range(100, 120)] == [None] * 20


def test_a_session_that_breaks_the_last_engine_ends_alone() -> None:
    with running(3, 4) as engines:
        beside = [threading.Thread(target=converse, args=(engines, seed)) for seed in range(3)]
        for thread in beside:
            thread.start()
        way = Way(engines, asked([3, 4], (POISON,), deep=False, effort=1.0), piece=99)
        told = [way.inbox.get(timeout=30), way.inbox.get(timeout=30)]
        assert isinstance(told[0], Opened)
        assert isinstance(told[1], WorkerFailed)
        for thread in beside:
            thread.join()
        assert converse(engines, 7) is None


def test_a_session_that_flies_is_not_said_to_wait_for_drafts() -> None:
    """Its next worker takes its time; nobody is to blame for that here."""
    span = ScriptedTarget(1, chooses=False)
    engine = Engine(cast(Target, span), (STOP,), pacing=Pacing(idle_seconds=0.05))
    engine.start()
    inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
    prompt = [5, 6]
    answer = plain_answer(prompt, 30)
    try:
        name = engine.open(asked(prompt, (), deep=False, effort=0.0), (), inbox.put)
        assert isinstance(inbox.get(timeout=30), Opened)
        assert isinstance(inbox.get(timeout=30), Forward)
        with pytest.raises(queue.Empty):
            inbox.get(timeout=0.2)
        engine.relay(name, Confirmed(2, (answer[0],), 0))
        assert inbox.get(timeout=30) == Confirmed(2, (answer[0],), 0)
        assert isinstance(inbox.get(timeout=30), InputError)  # now it waits for a draft, and none comes
        engine.relay(name, Confirmed(3, (answer[1],), 0))
        assert engine.sessions == 0
    finally:
        engine.stop()
