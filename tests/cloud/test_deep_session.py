"""A session that was cut inside the decoder, or whose passes end on another worker: no schedule changes its tokens.

The scripted model computes a row of all tokens up to its own, and the next token of the row alone: whoever used a row
that was computed after a wrong token would answer otherwise.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from cutline.cloud.engine.sessions.deep_session import DeepSession
from cutline.cloud.engine.sessions.session import Event, Forward, Session
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.core.sampling import Sampling
from cutline.errors import WorkerFailed
from cutline.models.law.sampling import agreeing
from cutline.protos.messages import Confirmed, Draft, Reason

VOCABULARY = 6
STOP = frozenset({0})
NO_STOP: frozenset[int] = frozenset()


def row_after(prefix: Sequence[int]) -> float:
    return float(zlib.crc32(bytes(prefix)) % (1 << 20))


def rows_of(tokens: Sequence[int], start: int) -> NDArray[np.float32]:
    """Rows (n, 1) of `tokens[start:]`, each of all tokens up to it."""
    made = [row_after(tokens[: end + 1]) for end in range(start, len(tokens))]
    return np.array(made, np.float32).reshape(-1, 1)


def next_token(row: float) -> int:
    return int(row) % VOCABULARY


def plain_answer(tokens: Sequence[int], limit: int, stop: frozenset[int] = STOP) -> list[int]:
    whole = list(tokens)
    while len(whole) < limit:
        whole.append(next_token(row_after(whole)))
        if whole[-1] in stop:
            break
    return whole[len(tokens) :]


def opened(tokens: Sequence[int], limit: int, draft: Sequence[int]) -> DeepSession:
    request = SessionRequest(
        tokens=tuple(tokens),
        prompt_length=len(tokens),
        max_tokens=limit - len(tokens),
        sampling=Sampling(),
        effort=0.0,
        draft=tuple(draft),
        cut="decoder.1",
        deep=True,
        boundary=rows_of([*tokens, *draft], 0),
    )
    return DeepSession("s", request, 0, limit)


def step(
    session: Session, events: list[Event], stop: frozenset[int] = STOP, most: int = 128
) -> tuple[bool, Reason | None]:
    """One pass, whose event goes to `events`: whether there was anything to run, and why the answer ended."""
    rows = session.rows_to_run(0.1, most)
    if rows is None:
        return False, None
    assert rows.boundary is not None
    assert len(rows.boundary) == len(rows.tokens) >= rows.wanted
    chosen = [next_token(row) for row in rows.boundary[-rows.wanted :, 0]]
    session.ran(rows, 0.1, 0.0)
    events.append(session.confirm(chosen, rows.drafted, stop))
    return True, session.reason


guesses = st.lists(st.one_of(st.none(), st.integers(0, VOCABULARY - 1)), max_size=6)  # None is a right one


class Conversation(RuleBasedStateMachine):
    """An agent that knows only what it heard, on a link that keeps the order, and may say everything twice.

    `believed` are the tokens whose rows it sent or will send: confirmed ones, then its guesses.
    """

    most = 128  # drafted rows of a pass

    @initialize(
        prompt=st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=4),
        room=st.integers(1, 25),
        draft=guesses,
        stops=st.booleans(),
    )
    def open(self, prompt: list[int], room: int, draft: list[int | None], stops: bool) -> None:
        self.prompt, self.limit = prompt, len(prompt) + room
        self.stop = STOP if stops else NO_STOP
        self.expected = plain_answer(prompt, self.limit, self.stop)
        self.events: list[Event] = []
        self.link: deque[Draft] = deque()
        self.believed = self._guessed(prompt, draft)
        self.session = opened(prompt, self.limit, self.believed[len(prompt) :])
        self.reason: Reason | None = None
        self.heard = 0  # events
        self.known = list(prompt)

    def _guessed(self, tokens: Sequence[int], guesses: Sequence[int | None]) -> list[int]:
        whole = list(tokens)
        for guess in guesses:
            whole.append(next_token(row_after(whole)) if guess is None else guess)
        return whole

    def _running(self) -> bool:
        return self.reason is None

    @precondition(lambda self: self._running())
    @rule(back=st.integers(1, 4), draft=guesses)
    def draft_anew(self, back: int, draft: list[int | None]) -> None:
        """From what is confirmed for all the agent knows, beginning up to `back` tokens before its end.

        Where it believed otherwise it has no right rows from there on, and sends them now.
        """
        start = min(max(0, len(self.known) - back), agreeing(self.believed, self.known))
        self.believed = self._guessed(self.known, draft)
        self._send(start, self.believed)

    @precondition(lambda self: self._running())
    @rule(draft=guesses)
    def draft_on(self, draft: list[int | None]) -> None:
        """Behind what was sent, unless the agent knows by now that it is wrong."""
        if self.believed[: len(self.known)] == self.known:
            start = len(self.believed)
            self.believed = self._guessed(self.believed, draft)
            self._send(start, self.believed)

    def _send(self, start: int, tokens: list[int]) -> None:
        self.link.append(Draft(start, tuple(tokens[start:]), rows_of(tokens, start)))

    @precondition(lambda self: self._running() and self.link)
    @rule(twice=st.booleans())
    def deliver(self, twice: bool) -> None:
        draft = self.link.popleft()
        for _ in range(1 + twice):
            self.session.offer(draft.position, draft.tokens, draft.rows)

    @precondition(lambda self: self._running())
    @rule()
    def run(self) -> None:
        before = len(self.session.tokens)
        ran, self.reason = step(self.session, self.events, self.stop, self.most)
        assert ran == (len(self.session.tokens) > before)

    @rule()
    def hear(self) -> None:
        if self.heard < len(self.events):
            event = self.events[self.heard]
            assert isinstance(event, Confirmed)
            assert event.position == len(self.known)
            self.heard += 1
            self.known += event.tokens

    @invariant()
    def the_answer_is_a_beginning_of_the_plain_one(self) -> None:
        answer = self.session.tokens[len(self.prompt) :]
        assert answer == self.expected[: len(answer)]
        assert (answer == self.expected) == (self.reason is not None)

    @invariant()
    def rows_are_those_of_the_tokens_they_stand_for(self) -> None:
        if self.reason is None:
            session = self.session
            tokens = [*session.tokens, *session.draft][: session.cached + len(session.rows)]
            assert np.array_equal(session.rows, rows_of(tokens, session.cached))

    def teardown(self) -> None:
        """However it went, an agent that sends the row of the token it heard last comes to the end."""
        if not hasattr(self, "session"):
            return
        for _ in range(40):
            while self.link and self.reason is None:
                self.deliver(False)
            if self.reason is None:
                self.run()
            while self.heard < len(self.events):
                self.hear()
            if self.reason is not None:
                break
            self.draft_anew(1, [])
        assert self.known == self.prompt + self.expected


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


class TestConversationInShortPasses(Conversation.TestCase):  # type: ignore[misc, valid-type]
    """The same, where a pass takes less than what is drafted."""

    settings = settings(max_examples=200, stateful_step_count=40, deadline=None)

    most = 2


def long_prompt() -> list[int]:
    return next([a, b] for a in range(1, 40) for b in range(1, 40) if len(plain_answer([a, b], 22)) == 20)


def test_it_waits_for_the_row_of_the_token_it_chose_last() -> None:
    prompt, events = long_prompt(), list[Event]()
    session = opened(prompt, 22, ())
    answer = plain_answer(prompt, 22)
    assert step(session, events) == (True, None)
    assert step(session, events) == (False, None)
    whole = [*prompt, *answer[:1]]
    session.offer(2, answer[:1], rows_of(whole, 2))
    assert step(session, events) == (True, None)
    assert events == [Confirmed(2, (answer[0],), 0), Confirmed(3, (answer[1],), 0)]
    assert session.verified == 0


def test_a_whole_right_draft_takes_one_pass() -> None:
    prompt, events = long_prompt(), list[Event]()
    answer = plain_answer(prompt, 22)
    session = opened(prompt, 22, answer[:12])
    step(session, events)
    assert events == [Confirmed(2, tuple(answer[:13]), 12)]
    assert session.verified == 12


def test_a_long_draft_takes_passes_of_few_rows() -> None:
    """However much is drafted: the rows that a pass leaves are there for the next one."""
    prompt, events = long_prompt(), list[Event]()
    answer = plain_answer(prompt, 22)
    session = opened(prompt, 22, answer[:14])
    while step(session, events, most=5) == (True, None):
        pass
    assert events == [
        Confirmed(2, tuple(answer[:6]), 6),
        Confirmed(8, tuple(answer[6:12]), 6),
        Confirmed(14, tuple(answer[12:15]), 2),
    ]


def test_rows_after_a_rejection_are_forgotten() -> None:
    """Behind a wrong draft comes its continuation, whose rows are wrong too, and its tokens by chance right."""
    prompt, events = long_prompt(), list[Event]()
    answer = plain_answer(prompt, 22)
    wrong = [answer[0], (answer[1] + 1) % VOCABULARY]
    session = opened(prompt, 22, wrong)
    step(session, events)
    assert events == [Confirmed(2, tuple(answer[:2]), 1)]
    late = [*prompt, *wrong, *answer[2:5]]
    session.offer(4, answer[2:5], rows_of(late, 4))
    assert step(session, events) == (False, None)
    right = [*prompt, *answer[:5]]
    session.offer(3, answer[1:5], rows_of(right, 3))
    step(session, events)
    assert events[1:] == [Confirmed(4, tuple(answer[2:6]), 3)]


@pytest.mark.parametrize("room", [1, 2, 5])
def test_a_draft_past_the_limit_is_cut(room: int) -> None:
    prompt, events = long_prompt(), list[Event]()
    answer = plain_answer(prompt, 22)
    session = opened(prompt, 2 + room, ())
    step(session, events)
    session.offer(2, answer, rows_of([*prompt, *answer], 2))
    if room > 1:
        assert step(session, events)[1] is Reason.LENGTH
    assert session.tokens == prompt + answer[:room]


@settings(deadline=None)
@given(st.data())
def test_drafts_that_nobody_honest_sends_break_nothing(data: st.DataObject) -> None:
    """Its answer may be nonsense then; it stays a session that runs as many rows as it says."""
    prompt, events = long_prompt(), list[Event]()
    session = opened(prompt, 22, ())
    for _ in range(12):
        position = data.draw(st.integers(0, 40))
        draft = data.draw(st.lists(st.integers(0, VOCABULARY - 1), max_size=8))
        session.offer(position, draft, np.zeros((len(draft), 1), np.float32))
        if data.draw(st.booleans()) and step(session, events, NO_STOP)[1] is not None:
            break
        assert session.cached <= len(session.tokens) <= 22
        assert session.cached + len(session.rows) in (len(session.tokens) - 1, len(session.tokens) + len(session.draft))


class Flight:
    """A session whose passes end on a `head`, which gets its rows in pieces of at most `piece`."""

    def __init__(self, *, deep: bool, draft: Sequence[int], piece: int = 99, limit: int = 22, most: int = 128) -> None:
        self.most = most
        self.prompt = long_prompt()
        self.answer = plain_answer(self.prompt, limit)
        self.events: list[Event] = []
        self.piece = piece
        if deep:
            self.session: Session = opened(self.prompt, limit, draft)
        else:
            request = SessionRequest(
                tokens=tuple(self.prompt),
                prompt_length=2,
                max_tokens=limit - 2,
                sampling=Sampling(),
                effort=1.0,
                draft=tuple(draft),
            )
            self.session = Session("s", request, 0, limit)
        self.cache: list[int] = []
        self.head_events: list[Event] = []
        self.head: DeepSession | None = None
        self.head_reason: Reason | None = None
        self.limit = limit

    def fly(self) -> Forward:
        rows = self.session.rows_to_run(0.01, self.most)
        assert rows is not None
        self.cache[rows.start :] = rows.tokens
        made = rows_of(self.cache, rows.start) if rows.boundary is None else rows.boundary
        self.session.ran(rows, 0.1, 0.0)
        forward = self.session.forward(rows, made)
        assert self.session.in_flight is not None
        return forward

    def land(self, forward: Forward) -> None:
        """The head takes the rows in pieces, a pass for each, and the session what it confirms."""
        if self.head is None:
            self.head = opened(forward.tokens[:2], self.limit, ())
            self.head.draft, self.head.rows = forward.tokens[2:], forward.rows
            self._pass()
            return
        for at in range(0, len(forward.tokens), self.piece):
            part = slice(at, at + self.piece)
            self.head.offer(forward.position + at, forward.tokens[part], forward.rows[part])
            self._pass()

    def _pass(self) -> None:
        assert self.head is not None
        ran = True
        while ran and self.head_reason is None:
            ran, self.head_reason = step(self.head, self.head_events)
            if ran:
                word = self.head_events[-1]
                assert isinstance(word, Confirmed)
                self.session.confirm_in_flight(word, STOP)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("piece", [1, 2, 3, 99])
@pytest.mark.parametrize("wrong", [None, 0, 1, 3, 6])
@pytest.mark.parametrize("most", [2, 128])
def test_a_next_worker_confirms_what_is_in_flight(deep: bool, piece: int, wrong: int | None, most: int) -> None:
    flight = Flight(deep=deep, draft=(), piece=piece, most=most)
    flight.land(flight.fly())
    answer = flight.answer
    while len(flight.session.tokens) < flight.limit:
        at = len(flight.session.tokens) - 2
        draft = [(t + (index == wrong)) % VOCABULARY for index, t in enumerate(answer[at : at + 7])]
        known = flight.session.tokens
        flight.session.offer(len(known) - 1, [known[-1], *draft], rows_of([*known, *draft], len(known) - 1))
        forward = flight.fly()
        flight.land(forward)
        assert flight.session.tokens == flight.prompt + answer[: len(flight.session.tokens) - 2]
        if len(flight.session.tokens) < flight.limit:
            assert flight.session.in_flight is None
    assert flight.session.in_flight is not None  # nothing more is run: the next worker says that it has finished


def test_a_next_worker_that_confirms_what_it_was_not_sent() -> None:
    answer = plain_answer(long_prompt(), 22)
    for position, tokens in ((3, answer[1:2]), (1, answer[:1]), (2, ()), (2, answer[:5]), (2, (*answer[:1], 9, 9))):
        flight = Flight(deep=False, draft=answer[:3])
        flight.fly()
        with pytest.raises(WorkerFailed, match="confirmed"):
            flight.session.confirm_in_flight(Confirmed(position, tuple(tokens), 0), STOP)
    flight = Flight(deep=False, draft=())
    with pytest.raises(WorkerFailed, match="not sent"):
        flight.session.confirm_in_flight(Confirmed(2, tuple(answer[:1]), 0), STOP)
