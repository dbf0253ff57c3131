"""The closed forms against a race played out event by event, with the worker's own session in it."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from cutline.cloud.engine.sessions.session import Session
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.core.request import DRAFT_CHUNK, Mode
from cutline.core.sampling import Sampling
from cutline.partitioner.answering import FRAME_BYTES
from cutline.partitioner.cost import CONFIRMED_BYTES, Terms, terms_of
from cutline.partitioner.plan import PARTS, Conditions, Space
from cutline.partitioner.predict import predict
from cutline.partitioner.setting import GateRates
from cutline.protos.messages import Confirmed

STOP = 0


class Played:
    """One answer, token by token: an agent that drafts ahead and a worker that decodes on, over a link with a delay."""

    def __init__(self, terms: Terms, index: int, now: Conditions, rng: np.random.Generator) -> None:
        self.terms, self.index, self.now = terms, index, now
        tokens = int(terms.tokens[index])
        self.answer = [*rng.integers(1, 100, tokens - 1).tolist(), STOP]
        wrong = (1 - now.acceptance) * (terms.harder if terms.gated[index] else 1.0)
        self.right = rng.random(tokens) >= wrong
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.order = itertools.count()
        self.settled: list[int] = []  # what the agent knows
        self.believed: list[int] = []
        self.gated = bool(terms.gated[index])
        self.drafting = bool(terms.drafts[index]) or self.gated
        self.busy = False
        self.done: float | None = None
        if self.gated:
            self.believed = self._drafted([], len(self.answer))
        request = SessionRequest(
            tokens=(9,),
            draft=tuple(self.believed),
            prompt_length=1,
            max_tokens=tokens,
            sampling=Sampling(),
            effort=float(terms.effort[index]) if self.drafting else 1.0,
        )
        self.session = Session("it", request, 0, tokens + 1)
        self.ended = False
        self.clock = 0.0
        row, fixed = np.polyfit(np.arange(1, DRAFT_CHUNK + 2), terms.passes[: DRAFT_CHUNK + 1], 1)
        self.row_share = float(np.clip(row / fixed, 0.01, 1)) if fixed > 0 else 1.0

    def at(self, when: float, what: Callable[[float], None]) -> None:
        heapq.heappush(self.events, (when, next(self.order), what))

    def seconds(self) -> float:
        """From the end of the upload's flight, when the worker may begin, to the coming of the last token."""
        terms, index = self.terms, self.index
        self.at(float(terms.cloud_prepare[index]), self._pass)
        self.wire_free = -self.now.rtt / 2  # zero is when the upload is there
        if self.drafting and not self.gated:
            sent = (terms.upload[index] + 2 * FRAME_BYTES) / self.now.uplink
            self.at(-sent - self.now.rtt / 2 + terms.drafter.first - terms.drafter.token, self._draft)
        while self.done is None:
            when, _, what = heapq.heappop(self.events)
            what(when)
        return self.done + self.now.rtt / 2  # the half of the way there that zero left out

    def _draft(self, when: float) -> None:
        self.busy = False
        if self.believed[: len(self.settled)] != self.settled:
            self.believed = list(self.settled)
        count = min(DRAFT_CHUNK, len(self.answer) - len(self.believed))
        if not count or self.believed[-1:] == [STOP]:
            return
        self.busy = True
        start = list(self.believed)
        drafted = self._drafted(start, count)
        self.at(when + count * self.terms.drafter.token, lambda then: self._send(then, start, drafted))

    def _drafted(self, start: list[int], count: int) -> list[int]:
        """What the drafter says after `start`: right tokens until one is wrong, and nonsense from there on."""
        true, drafted = start == self.answer[: len(start)], []
        for position in range(len(start), len(start) + count):
            true = true and bool(self.right[position])
            drafted.append(self.answer[position] if true else 1000 + position)
        return drafted

    def _send(self, when: float, start: list[int], drafted: list[int]) -> None:
        grown = start + drafted
        if grown[: len(self.settled)] == self.settled[: len(grown)]:
            self.believed = grown
            base = max(0, len(start) - 1)
            size = self.terms.step_upload[self.index] + FRAME_BYTES
            self.wire_free = max(self.wire_free, when) + size / self.now.uplink
            there = self.wire_free + self.now.rtt / 2 + self.terms.overheads.message / 2
            self.at(there, lambda then: self._offer(then, 1 + base, grown[base:]))
        self._draft(when)

    def _offer(self, when: float, position: int, tokens: list[int]) -> None:
        self.session.offer(position, tokens)
        if self.waiting:
            self._pass(when)

    waiting = False

    def _pass(self, when: float) -> None:
        if self.ended:
            return
        passes = self.terms.passes
        rows = self.session.rows_to_run(self.row_share)
        self.waiting = rows is None
        if rows is None:
            return
        if rows.start == 0:
            seconds = float(self.terms.cloud_prefill[self.index] + passes[rows.drafted] - passes[0])
        else:
            seconds = float(passes[len(rows.tokens) - 1])
        self.session.ran(rows, seconds, when)
        self.at(when + seconds, lambda then: self._finish(then, rows.drafted))

    def _finish(self, when: float, drafted: int) -> None:
        self.clock = when
        begun = len(self.session.tokens) - 1
        chosen = (self.answer[begun:] + [STOP] * drafted)[: drafted + 1]
        self._confirmed(self.session.confirm(chosen, drafted, frozenset([STOP])))
        self.ended = self.session.reason is not None
        self._pass(when)

    def _confirmed(self, event: Confirmed) -> None:
        there = self.clock + self.now.rtt / 2 + self.terms.overheads.message / 2 + CONFIRMED_BYTES / self.now.downlink
        self.at(there, lambda then: self._settle(then, event))

    def _settle(self, when: float, event: Confirmed) -> None:
        self.settled += event.tokens
        if len(self.settled) >= len(self.answer):
            self.done = when
        elif self.drafting and not self.busy:
            self._draft(when)


def played(terms: Terms, index: int, now: Conditions, *, times: int) -> float:
    rng = np.random.default_rng(0)
    return fmean(Played(terms, index, now, rng).seconds() for _ in range(times))


def predicted(terms: Terms, index: int, now: Conditions) -> float:
    """From the upload's coming to the last token's, of a request for which the worker is asked."""
    found = predict(terms, now)
    asked = 1 - terms.kept if terms.gated[index] else 1.0
    parts = dict(zip(PARTS, found.parts[:, index] / asked, strict=True))
    return float(parts["cloud prefill"] + parts["decode"] + now.rtt + terms.overheads.message / 2)


CASES = list(itertools.product((2, 12, 40), (0.002, 0.1), (1e5, 1e7), (0.5, 0.8, 0.97)))


@pytest.mark.parametrize(
    ("mode", "effort", "within"), [("draft", 1.0, 0.12), ("auto", 1.0, 0.12), ("draft", 0.0, 0.25)]
)
@pytest.mark.parametrize(("edge", "cloud", "width"), [(1e10, 1e11, 64), (1e10, 1e10, 256), (1e11, 1e12, 256)])
def test_the_race_takes_as_long_as_the_formulas_say(
    made: Any, mode: Mode, effort: float, within: float, edge: float, cloud: float, width: int
) -> None:
    setting = made.setting(edge=edge, cloud=cloud, width=width)
    for tokens, rtt, uplink, acceptance in CASES:
        space = Space(cuts=("image",), modes=(mode,), efforts=(effort,))
        terms = terms_of(setting, made.asked(answer_tokens=tokens), space)
        now = Conditions(rtt=rtt, uplink=uplink, downlink=1e7, acceptance=acceptance)
        assert predicted(terms, 0, now) == pytest.approx(played(terms, 0, now, times=40), rel=within), now


@pytest.mark.parametrize(("longer", "harder"), [(1.0, 2.0), (3.0, 1.0), (2.5, 1.5)])
def test_what_the_gate_passes_on_is_longer_and_harder(made: Any, longer: float, harder: float) -> None:
    gate = GateRates(kept=0.6, agreed=1.0, longer=longer, harder=harder)
    setting = made.setting(edge=1e10, cloud=1e11, width=256, gate=gate)
    for tokens, acceptance in itertools.product((4, 12), (0.7, 0.9)):
        terms = terms_of(setting, made.asked(answer_tokens=tokens), Space(cuts=("image",), modes=(Mode.AUTO,)))
        now = Conditions(rtt=0.02, uplink=1e6, downlink=1e7, acceptance=acceptance)
        assert predicted(terms, 0, now) == pytest.approx(played(terms, 0, now, times=40), rel=0.12), now


def test_without_drafts_the_formulas_are_exact(made: Any) -> None:
    terms = terms_of(made.setting(), made.asked(), Space(cuts=("image",), modes=(Mode.CLOUD,)))
    now = Conditions(rtt=0.05, uplink=1e6, downlink=1e7)
    assert predicted(terms, 0, now) + CONFIRMED_BYTES / 1e7 == pytest.approx(played(terms, 0, now, times=1))
