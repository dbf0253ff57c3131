"""Answers without a number of tokens: what ends them, and that each says it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from cutline.core.constraint import Constraint
from cutline.core.request import Mode, Request
from cutline.core.sampling import Sampling
from cutline.edge.agent import Agent
from cutline.edge.generation.detokenizer import Transcript
from cutline.edge.generation.gate import MAX_TOKENS
from cutline.edge.generation.generation import Generation
from cutline.edge.generation.repetition import LENGTH, TIMES, Repetition
from cutline.edge.generation.result import Answer, Ending
from cutline.edge.inference.drafter import Drafted
from cutline.edge.offload.backends.drafter_backend import DrafterBackend
from cutline.edge.offload.router import ALONE_TOKENS
from cutline.edge.offload.status import Breaker
from cutline.models.vocabulary import Vocabulary
from cutline.testing.worker import BUNDLE, TRUTH, ScriptedWorker, ask, asking, ids

AGAIN = 50  # a token, made so likely that the drafter says nothing else
ONE_WORD = Sampling(logit_bias=((AGAIN, 100.0),))


def alone(asked: Request) -> Answer:
    async def run() -> Answer:
        async with Agent(BUNDLE, worker=None, threads=1) as agent:
            return await agent.answer(asked)

    return asyncio.run(run())


def test_what_the_model_ends_is_as_it_was() -> None:
    open_ended, bounded = (alone(asking(Mode.EDGE, max_tokens=most)) for most in (None, 64))
    assert ids(open_ended) == ids(bounded)
    assert (open_ended.ending, open_ended.complete) == (Ending.STOP, True)


def test_the_drafter_alone_ends_where_it_repeats_itself() -> None:
    circles = alone(asking(Mode.EDGE, max_tokens=None, sampling=ONE_WORD))
    assert ids(circles) == (AGAIN,) * LENGTH * TIMES
    assert (circles.ending, circles.complete) == (Ending.REPETITION, False)


def test_a_number_of_tokens_that_was_asked_for_is_given() -> None:
    told = alone(asking(Mode.EDGE, max_tokens=LENGTH * TIMES + 5, sampling=ONE_WORD))
    assert ids(told) == (AGAIN,) * (LENGTH * TIMES + 5)
    assert told.ending is Ending.LENGTH


def test_what_keeps_to_a_constraint_may_repeat_itself() -> None:
    letters = Sampling(constraint=Constraint.regex("(a b ){80}"))
    told = alone(asking(Mode.EDGE, max_tokens=None, sampling=letters))
    assert (told.text, told.ending) == (("a b " * 80).strip(), Ending.STOP)


def test_the_end_of_the_context_is_one() -> None:
    numbers = Sampling(constraint=Constraint.regex("[0-9 a-z]{1000}"))
    told = alone(asking(Mode.EDGE, max_tokens=None, sampling=numbers, timeout=300.0))
    assert len(told.tokens) == BUNDLE.manifest.decoder.context - told.prompt_tokens
    assert told.ending is Ending.LENGTH


def test_the_deadline_ends_the_drafter_with_what_there_is() -> None:
    numbers = Sampling(constraint=Constraint.regex("[0-9 a-z]{1000}"))
    told = alone(asking(Mode.EDGE, max_tokens=None, sampling=numbers, timeout=0.001))
    assert len(told.tokens) == 1, "the time was over before it began, and something is said"
    assert (told.ending, told.complete) == (Ending.DEADLINE, False)


@pytest.mark.parametrize("mode", [Mode.CLOUD, Mode.DRAFT, Mode.AUTO])
def test_the_deadline_ends_a_workers_answer_with_what_there_is(mode: Mode) -> None:
    """Nobody is lost by it: neither is another worker asked, nor does the drafter go on."""
    long = (*range(40, 90), *range(40, 90), TRUTH[-1])
    worker = ScriptedWorker(pause=0.1, script=long)
    answer, _, (address,) = ask([worker], asking(mode, max_tokens=None, timeout=1.0))
    assert 0 < len(answer.tokens) < len(long)
    assert ids(answer) == long[: len(answer.tokens)]
    assert (answer.ending, answer.complete) == (Ending.DEADLINE, False)
    assert (answer.lost, answer.alone_from, answer.worker) == ((), None, address)
    assert answer.exact, "what there is, is the target's own"
    assert len(worker.openings) == 1


def test_a_worker_is_not_held_to_have_failed_for_it() -> None:
    long = (*range(40, 90), *range(40, 90), TRUTH[-1])
    states: list[Breaker] = []
    ask(
        [ScriptedWorker(pause=0.1, script=long)],
        asking(Mode.CLOUD, max_tokens=None, timeout=0.5),
        lambda agent, _: states.append(agent.state().workers[0].breaker),
    )
    assert set(states) == {Breaker.CLOSED}


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ((1,) * 31, False),
        ((1,) * 32, True),
        (tuple(range(8)) * 3, False),
        (tuple(range(8)) * 4, True),
        ((*range(8), 9, *range(8), 10, 11, *range(8), 12, *range(8)), True),
        (tuple(range(300)), False),
        ((), False),
    ],
)
def test_what_is_a_repetition(answer: tuple[int, ...], found: bool) -> None:
    at_once, step = Repetition(), Repetition()
    assert at_once.in_answer(answer) is found
    assert any(step.in_answer(answer[:end]) for end in range(len(answer) + 1)) is found


class EndlessWork:
    """A device whose drafter says one word for ever."""

    believed: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.drafted: dict[int, Drafted] = {}

    async def run(self, work: Callable[..., object], *given: object) -> object:
        return work(*given)

    def begin_drafting(self) -> None: ...

    def rest(self, answer: Sequence[int]) -> tuple[int, ...]:
        return ()

    def draft(self, answer: Sequence[int], limit: int) -> Iterator[int]:
        for place in range(len(answer), len(answer) + limit):
            self.drafted[place] = Drafted(AGAIN, 1.0)
            yield AGAIN


def test_the_gate_is_not_waited_for_longer_than_it_may_keep() -> None:
    """No answer is kept of more than MAX_TOKENS: one that would be goes on to a worker when so many are drafted."""
    work: Any = EndlessWork()
    asyncio.run(DrafterBackend(work).propose(unbegun()))
    assert work.believed == (AGAIN,) * MAX_TOKENS


@pytest.mark.parametrize("least", [1, ALONE_TOKENS])
def test_who_waited_in_vain_for_a_worker_hears_some_of_the_drafter(least: int) -> None:
    """And no more, though it would say more: the time is over."""
    work: Any = EndlessWork()
    generation, drafter = unbegun(), DrafterBackend(work, until=0.0)
    drafter.least = least
    asyncio.run(drafter.extend(generation))
    assert (len(generation.tokens), generation.ending) == (least, Ending.DEADLINE)


def unbegun() -> Generation:
    return Generation(0.0, Transcript(Vocabulary.open(BUNDLE)), stop_tokens=BUNDLE.manifest.stop_tokens)
