"""One session against a scripted model: whatever is drafted, its tokens are those of decoding plainly."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cutline.cloud.engine.sessions.session import Session
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.engine.sessions.session_rows import SessionRows
from cutline.core.sampling import Sampling
from cutline.models.families import Positions
from cutline.models.sight import Block
from cutline.protos.messages import Confirmed, Finished, Reason

VOCABULARY = 12
STOP = frozenset({0})


def next_token(prefix: Sequence[int]) -> int:
    """The scripted model: any change of any token before changes what follows."""
    return zlib.crc32(bytes(prefix)) % VOCABULARY


def decoded(tokens: Sequence[int], length: int) -> list[int]:
    """`tokens` and what the model says after them, `length` in all, past any stop token."""
    whole = list(tokens)
    while len(whole) < length:
        whole.append(next_token(whole))
    return whole


def plain_answer(tokens: Sequence[int], limit: int) -> tuple[list[int], Reason]:
    """What one token after the other gives, from `tokens` on."""
    whole = list(tokens)
    while len(whole) < limit:
        whole.append(next_token(whole))
        if whole[-1] in STOP:
            return whole[len(tokens) :], Reason.STOP
    return whole[len(tokens) :], Reason.LENGTH


class Run:
    """A session on a fake engine, whose `cache` keeps every token that a pass wrote, rejected ones included."""

    def __init__(self, tokens: Sequence[int], prompt_length: int, limit: int, effort: float, draft: Sequence[int]):
        request = SessionRequest(
            tokens=tuple(tokens),
            prompt_length=prompt_length,
            max_tokens=limit - prompt_length,
            sampling=Sampling(),
            effort=effort,
            draft=tuple(draft),
        )
        self.events: list[Confirmed] = []
        self.cache: dict[int, int] = {}
        self.reason: Reason | None = None
        self.drafted = 0
        self.session = Session("s", request, 0, limit)

    def step(self, row_share: float) -> Confirmed | None:
        """One pass, or None if the session waits. Logits come from the cache alone, as on a real model."""
        rows = self.session.rows_to_run(row_share)
        if rows is None:
            return None
        assert rows.start + len(rows.tokens) <= self.session.limit
        self.cache |= dict(enumerate(rows.tokens, rows.start))
        end = rows.start + len(rows.tokens)
        prefixes = [[self.cache[p] for p in range(length)] for length in range(end - rows.wanted + 1, end + 1)]
        self.drafted = rows.drafted
        self.session.ran(rows, 0.5, 0.0)
        self.events.append(self.session.confirm([next_token(prefix) for prefix in prefixes], rows.drafted, STOP))
        self.reason = self.session.reason
        return self.events[-1]

    @property
    def confirmed(self) -> list[int]:
        return [token for event in self.events for token in event.tokens]


wrongs = st.dictionaries(st.integers(0, 9), st.integers(0, VOCABULARY - 1), max_size=2)


class Conversation(RuleBasedStateMachine):
    """Drafts of every kind and passes in any order. `held` is what is drafted now, by position."""

    @initialize(
        prompt=st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=5),
        before=st.integers(0, 4),
        room=st.integers(1, 25),
        effort=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)),
        length=st.integers(0, 9),
        wrong=wrongs,
    )
    def open(
        self, prompt: list[int], before: int, room: int, effort: float, length: int, wrong: dict[int, int]
    ) -> None:
        self.begun = decoded(prompt, len(prompt) + before)  # so many tokens were confirmed by another worker
        limit = len(self.begun) + room
        self.truth = decoded(self.begun, limit + 30)
        self.expected = plain_answer(self.begun, limit)
        draft = self._draft(len(self.begun), length, wrong)
        self.run = Run(self.begun, len(prompt), limit, effort, draft)
        self.effort = effort
        self.answered_before = before
        self.alone = 0
        self.last: tuple[int, list[int]] = (0, [])
        self.held: dict[int, int] = {}
        self._hold(len(self.begun), draft)

    def _draft(self, position: int, length: int, wrong: dict[int, int]) -> list[int]:
        right = self.truth[position : position + length]
        return [wrong.get(index, token) for index, token in enumerate(right)]

    def _hold(self, position: int, draft: list[int]) -> None:
        end = len(self.begun) + len(self.run.confirmed)
        known = (self.begun + self.run.confirmed)[position:]
        reach = max(self.held, default=end - 1) + 1
        if position <= reach and draft[: len(known)] == known and position + len(draft) > end:
            kept = {at: token for at, token in self.held.items() if at < position}
            self.held = kept | {at: token for at, token in enumerate(draft, position) if at >= end}

    def _offer(self, position: int, draft: list[int]) -> None:
        self._hold(position, draft)
        self.last = (position, draft)
        self.run.session.offer(position, draft)

    @precondition(lambda self: self.run.reason is None)
    @rule(ahead=st.integers(-6, 6), length=st.integers(0, 10), wrong=wrongs)
    def offer(self, ahead: int, length: int, wrong: dict[int, int]) -> None:
        """Late (`ahead` < 0), in time or early; right or wrong."""
        position = max(0, len(self.begun) + len(self.run.confirmed) + ahead)
        self._offer(position, self._draft(position, length, wrong))

    @precondition(lambda self: self.run.reason is None)
    @rule(position=st.integers(0, 60), draft=st.lists(st.integers(0, VOCABULARY - 1), max_size=12))
    def offer_anything(self, position: int, draft: list[int]) -> None:
        self._offer(position, draft)

    @precondition(lambda self: self.run.reason is None)
    @rule()
    def offer_again(self) -> None:
        self._offer(*self.last)

    @precondition(lambda self: self.run.reason is None)
    @rule(row_share=st.sampled_from([0.01, 0.1, 1.0]))
    def step(self, row_share: float) -> None:
        first = not self.run.confirmed
        position = len(self.begun) + len(self.run.confirmed)
        event = self.run.step(row_share)
        if event is None:
            # It waits only where there is nothing to verify and effort forbids to decode.
            assert not first
            assert position not in self.held
            assert self.effort < 1
            return
        assert event.position == position
        assert event.tokens
        accepted = 0
        while accepted < len(event.tokens) and self.held.get(position + accepted) == event.tokens[accepted]:
            accepted += 1
        assert event.accepted == accepted
        end = position + len(event.tokens)
        self.held = {at: t for at, t in self.held.items() if at >= end} if accepted == len(event.tokens) else {}
        self.alone += not first and self.run.drafted == 0
        assert self.alone <= self.effort * (self.answered_before + len(self.run.confirmed))

    @precondition(lambda self: self.run.reason is not None)
    @rule()
    def rest(self) -> None:
        """The engine leaves a session alone that has ended."""

    @invariant()
    def the_cache_holds_what_it_says(self) -> None:
        if self.run.reason is None:
            session = self.run.session
            assert [self.run.cache[at] for at in range(session.cached)] == session.tokens[: session.cached]

    @invariant()
    def the_answer_is_a_beginning_of_the_plain_one(self) -> None:
        answer, reason = self.expected
        assert self.run.confirmed == answer[: len(self.run.confirmed)]
        assert (self.run.confirmed == answer) == (self.run.reason is not None)
        assert self.run.reason in (None, reason)

    def teardown(self) -> None:
        """However it went so far, right drafts or effort bring it to the end."""
        if not hasattr(self, "run"):
            return
        for _ in range(100):
            if self.run.reason is not None:
                break
            self.step(0.1)
            if self.run.reason is None:
                self.offer(0, 3, {})
        assert self.run.reason is not None
        self.the_answer_is_a_beginning_of_the_plain_one()


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)


def long_prompt() -> list[int]:
    """A prompt whose plain answer is long."""
    return next([a, b] for a in range(1, 12) for b in range(1, 12) if len(plain_answer([a, b], 42)[0]) == 40)


def test_without_effort_and_drafts_it_waits_after_the_first_token() -> None:
    prompt = long_prompt()
    run = Run(prompt, 2, 42, 0.0, ())
    assert run.step(0.1) == Confirmed(2, (next_token(prompt),), 0)
    assert run.step(0.1) is None
    truth = decoded(prompt, 42)
    run.session.offer(3, truth[3:6])
    assert run.step(0.01) == Confirmed(3, tuple(truth[3:7]), 3)
    assert run.step(0.01) is None


def test_with_full_effort_it_never_waits() -> None:
    prompt = long_prompt()
    run = Run(prompt, 2, 42, 1.0, ())
    while run.reason is None:
        assert run.step(0.1) is not None
    assert run.confirmed == plain_answer(prompt, 42)[0]
    assert run.session.finished() == Finished(Reason.LENGTH, 40, 0, 20.0)


@given(st.floats(0.05, 0.95))
def test_effort_is_the_share_that_it_decodes_alone(effort: float) -> None:
    """Offered one right token whenever it waits, it decodes about that share of the answer itself."""
    prompt = long_prompt()
    run, alone, truth = Run(prompt, 2, 42, effort, ()), 0, decoded(prompt, 60)
    while run.reason is None:
        before = len(run.confirmed)
        if run.step(0.1) is None:
            run.session.offer(2 + before, truth[2 + before : 3 + before])
        elif before > 0 and run.drafted == 0:
            alone += 1
    assert alone <= effort * 40
    assert alone >= effort * 40 * 0.5 - 2


def test_a_whole_right_draft_takes_one_pass_when_rows_are_cheap() -> None:
    prompt = long_prompt()
    answer = plain_answer(prompt, 42)[0]
    run = Run(prompt, 2, 42, 1.0, answer[:12])
    event = run.step(0.01)
    assert event == Confirmed(2, tuple(answer[:13]), 12)
    assert run.session.verified == 12


def test_rejections_make_it_verify_less() -> None:
    prompt = long_prompt()
    answer = plain_answer(prompt, 42)[0]
    run = Run(prompt, 2, 42, 1.0, ())
    drafted: list[int] = []
    while len(run.confirmed) < 30:
        at = len(run.confirmed)
        wrong = [(token + 1) % VOCABULARY for token in answer[at : at + 8]]
        run.session.offer(2 + at, wrong)
        run.step(0.2)
        drafted.append(run.drafted)
    assert drafted[0] > 0
    assert drafted[-1] == 0
    assert run.confirmed == answer[: len(run.confirmed)]


def test_without_effort_it_verifies_even_drafts_that_hardly_pay() -> None:
    prompt = long_prompt()
    answer = plain_answer(prompt, 42)[0]
    run = Run(prompt, 2, 42, 0.0, ())
    while run.reason is None:
        at = len(run.confirmed)
        run.session.offer(2 + at, [(token + 1) % VOCABULARY for token in answer[at : at + 8]])
        assert run.step(1.0) is not None
    assert run.confirmed == answer


@pytest.mark.parametrize("room", [1, 2, 5])
def test_a_draft_past_the_limit_is_cut(room: int) -> None:
    prompt = long_prompt()
    run = Run(prompt, 2, 2 + room, 1.0, decoded(prompt, 60)[2:])
    while run.reason is None:
        run.step(0.01)
    assert run.confirmed == decoded(prompt, 2 + room)[2:]
    assert run.reason is Reason.LENGTH


@settings(deadline=None)
@given(
    edges=st.sets(st.integers(0, 60), max_size=6),
    drafted=st.integers(0, 6),
    room=st.integers(1, 40),
)
def test_pieces_of_an_opening_end_at_seams_and_its_last_row_goes_with_the_draft(
    edges: set[int], drafted: int, room: int
) -> None:
    """A prompt that is one block, as PaliGemma's, goes as a whole, whatever was drafted behind it."""
    length, ordered = 60, sorted(edges)
    blocks: tuple[Block, ...] = tuple(zip(ordered[::2], ordered[1::2], strict=False))
    request = SessionRequest(
        tokens=(1,) * length,
        prompt_length=length,
        max_tokens=20,
        sampling=Sampling(),
        effort=1.0,
        positions=Positions(np.arange(length)[None], blocks),
    )
    session = Session("s", request, 0, length + 20)
    left = SessionRows(session, 0, (*request.tokens, *(2,) * drafted), drafted)
    while (piece := left.first(room)).partial:
        end = piece.start + len(piece.tokens)
        assert not any(begin < end < behind for begin, behind in blocks)
        assert piece.tokens
        left = SessionRows(session, end, left.tokens[len(piece.tokens) :], drafted)
    assert piece.wanted == drafted + 1
    assert piece.start + len(piece.tokens) == length + drafted
