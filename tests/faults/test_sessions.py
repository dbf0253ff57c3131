"""A worker's sessions against a model of one in ten lines: whatever is asked in whatever order, the answer is the same.

The target is a script that keeps in its slots what was written there, so what an earlier session left, a draft that was
wrong or a slot that was taken for another would all change a token.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cutline.cloud.engine.cost_model import PACING
from cutline.cloud.engine.engine import Engine
from cutline.cloud.engine.sessions.session import Event
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.model.model_runner import Target
from cutline.core.sampling import Sampling
from cutline.errors import CutlineError, WorkerBusy, WorkerForgot
from cutline.models.law.sampling import agreeing
from cutline.protos.messages import Confirmed, Draft, Finished, Opened
from cutline.testing.target import POISON, STOP, ScriptedTarget, plain_answer

SLOTS = 3
MOST = 24  # tokens of an answer
PATIENCE = 10.0  # seconds for what must come


def truth(prompt: Sequence[int]) -> tuple[int, ...]:
    """The scripted model's whole answer."""
    return tuple(plain_answer(prompt, MOST))


@dataclass(eq=False)
class Conversation:
    """The model of a session: its prompt, what was confirmed of the one right answer, and whether it goes on."""

    prompt: tuple[int, ...]
    confirmed: list[int]
    name: str = ""
    inbox: queue.SimpleQueue[Event] = field(default_factory=queue.SimpleQueue)
    end: Event | None = None

    def hear(self, wait: float = 0.0) -> bool:
        """Take one event: what is confirmed follows what was, and is the right answer's next."""
        try:
            event = self.inbox.get(timeout=wait) if wait else self.inbox.get_nowait()
        except queue.Empty:
            return False
        assert self.end is None, f"{event} after the end"
        if isinstance(event, Confirmed):
            assert event.position == len(self.prompt) + len(self.confirmed)
            self.confirmed += event.tokens
            assert tuple(self.confirmed) == truth(self.prompt)[: len(self.confirmed)]
        elif isinstance(event, Finished | CutlineError):
            self.end = event
        return True


class Sessions(RuleBasedStateMachine):
    """Open, append, verify, roll back, replay, evict and close, in any order."""

    @initialize()
    def start(self) -> None:
        self.ahead = 0.0  # of the system's clock, in seconds
        self.engine = Engine(cast(Target, ScriptedTarget(SLOTS)), (STOP,), clock=lambda: time.monotonic() + self.ahead)
        self.engine.start()
        self.open: list[Conversation] = []
        self.broken: list[Conversation] = []  # which may be replayed

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            for one in self.open:
                self.engine.close(one.name)
            end = time.monotonic() + PATIENCE
            while (self.engine.sessions or self.engine._table.free < SLOTS) and time.monotonic() < end:
                time.sleep(0.001)
            assert (self.engine.sessions, self.engine._table.free) == (0, SLOTS), "nothing is left"
            self.engine.stop()

    def begin(self, prompt: tuple[int, ...], confirmed: Sequence[int], draft: Sequence[int], effort: float) -> None:
        one = Conversation(prompt, list(confirmed))
        request = SessionRequest(
            tokens=(*prompt, *confirmed),
            prompt_length=len(prompt),
            max_tokens=MOST,
            sampling=Sampling(),
            effort=effort,
            draft=tuple(draft),
        )
        one.name = self.engine.open(request, (), one.inbox.put)
        first = one.inbox.get(timeout=PATIENCE)
        if isinstance(first, WorkerBusy):
            assert len(self.open) >= SLOTS, "there was room"
            return
        assert isinstance(first, Opened)
        self.open.append(one)
        self.expect(one, min(len(confirmed) + 1, len(truth(prompt))))

    def expect(self, one: Conversation, count: int) -> None:
        """At least so many tokens get confirmed."""
        end = time.monotonic() + PATIENCE
        while len(one.confirmed) < count and one.end is None:
            one.hear(wait=max(0.001, end - time.monotonic()))
            assert time.monotonic() < end, "it hangs"
        assert len(one.confirmed) >= count or isinstance(one.end, WorkerForgot), one.end

    def pick(self, which: int) -> Conversation | None:
        """One that is open; hypothesis must not hear how many there are, for that is a matter of time."""
        return self.open[which % len(self.open)] if self.open else None

    places = st.integers(0, 9)
    # Most begin alike, so that one goes on from what another left, or has so far.
    prompts = st.tuples(st.integers(1, 40), st.lists(st.integers(1, 3), max_size=3)).map(
        lambda parts: (*(1 + at % 3 for at in range(parts[0])), *parts[1])
    )
    efforts = st.sampled_from([0.0, 0.0, 0.3, 1.0])

    @rule(prompt=prompts, right=st.integers(0, 6), effort=efforts)
    def opens(self, prompt: tuple[int, ...], right: int, effort: float) -> None:
        self.begin(prompt, (), truth(prompt)[:right], effort)

    @rule(which=places, right=st.integers(0, 10), wrong=st.booleans())
    def appends_and_verifies(self, which: int, right: int, wrong: bool) -> None:
        if (one := self.pick(which)) is None:
            return
        known = len(one.confirmed)
        draft = list(truth(one.prompt)[known : known + right])
        if wrong:
            draft.append((draft[-1] if draft else 7) % (POISON - 2) + 1)
        self.engine.offer(one.name, Draft(len(one.prompt) + known, tuple(draft)))
        rest = truth(one.prompt)[known:]
        self.expect(one, known + (agreeing(draft, rest) or min(len(draft), len(rest), 1)))

    @rule(which=places, back=st.integers(1, 8), right=st.integers(1, 8), ahead=st.integers(0, 3))
    def rolls_back(self, which: int, back: int, right: int, ahead: int) -> None:
        """A draft that is wrong, and others that begin before and after it and are right, or late, or too early."""
        if (one := self.pick(which)) is None:
            return
        known, whole, start = len(one.confirmed), truth(one.prompt), len(one.prompt)
        self.engine.offer(one.name, Draft(start + known + ahead, (1, 2, 3)))
        at = max(0, known - back)
        self.engine.offer(one.name, Draft(start + at, whole[at : known + right]))
        self.expect(one, min(known + 1, len(whole)))

    @rule(which=places)
    def closes(self, which: int) -> None:
        if (one := self.pick(which)) is None:
            return
        self.engine.close(one.name)
        self.open.remove(one)
        while one.hear():
            pass
        self.broken.append(one)

    @rule(which=places, lost=st.integers(0, 5), effort=efforts)
    def replays(self, which: int, lost: int, effort: float) -> None:
        """With what the agent heard of it, which may be less than was confirmed."""
        if not self.broken:
            return
        one = self.broken.pop(which % len(self.broken))
        heard = one.confirmed[: max(0, len(one.confirmed) - lost)]
        if heard and heard[-1] == STOP:
            heard = heard[:-1]
        if len(heard) < MOST:
            self.begin(one.prompt, heard, (), effort)

    @rule(prompt=prompts)
    def evicts(self, prompt: tuple[int, ...]) -> None:
        """Where all slots are taken, a newcomer gets that of one which only waits for a draft, if there is one."""
        self.ahead += 2 * PACING.safe_seconds
        self.begin(prompt, (), (), 0.0)

    @invariant()
    def what_ended_is_gone(self) -> None:
        for one in list(getattr(self, "open", ())):
            while one.hear():
                pass
            if one.end is not None:
                self.open.remove(one)
                if isinstance(one.end, WorkerForgot):
                    self.broken.append(one)
                else:
                    assert isinstance(one.end, Finished), one.end
                    assert tuple(one.confirmed) == truth(one.prompt)


TestSessions = Sessions.TestCase
TestSessions.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
