"""The drafter as a backend: it goes on from what a generation has, and from what it believes already."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from cutline.edge.generation.detokenizer import Transcript
from cutline.edge.generation.events import Event, Guessed, Settled
from cutline.edge.generation.generation import Generation
from cutline.edge.generation.result import Provenance
from cutline.edge.inference.drafter import Drafted
from cutline.edge.offload.backends.device_models import DeviceWork
from cutline.edge.offload.backends.drafter_backend import DrafterBackend
from cutline.models.vocabulary import Vocabulary
from cutline.testing.worker import BUNDLE, STOP

VOCABULARY = Vocabulary.open(BUNDLE)
ANSWER = (*VOCABULARY.encode("the digits are three and five"), STOP)


class ScriptedDrafting:
    """Drafts `ANSWER` from any place on, and notes from which."""

    def __init__(self) -> None:
        self.begun = list[int]()

    def draft(self, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
        self.begun.append(len(answer))
        for token in ANSWER[len(answer) : len(answer) + limit]:
            yield Drafted(token, 0.5)


@pytest.fixture
def drafting() -> ScriptedDrafting:
    return ScriptedDrafting()


@pytest.fixture
def work(drafting: ScriptedDrafting) -> DeviceWork:
    given: Any = drafting
    return DeviceWork(lambda: None, lambda: given)


def generation(events: list[Event], *tokens: int, limit: int = 64) -> Generation:
    begun = Generation(0.0, Transcript(VOCABULARY), events.append, (STOP,), limit)
    begun.settle(tokens, [Provenance.CLOUD] * len(tokens))
    events.clear()
    return begun


@pytest.mark.parametrize("settled", [0, 1, len(ANSWER) - 1, len(ANSWER)])
def test_it_goes_on_from_where_others_left_off(work: DeviceWork, settled: int) -> None:
    begun = generation([], *ANSWER[:settled])
    asyncio.run(DrafterBackend(work).extend(begun))
    assert tuple(begun.tokens) == ANSWER
    assert begun.sources == [Provenance.CLOUD] * settled + [Provenance.EDGE] * (len(ANSWER) - settled)
    assert (begun.complete, begun.ended) == (True, True)


def test_what_it_believes_is_not_drafted_again(work: DeviceWork, drafting: ScriptedDrafting) -> None:
    work.believed = ANSWER[:4]
    begun = generation([], *ANSWER[:2])
    asyncio.run(DrafterBackend(work).extend(begun))
    assert (tuple(begun.tokens), drafting.begun) == (ANSWER, [4])


def test_what_others_settled_otherwise_it_believes_no_more(work: DeviceWork, drafting: ScriptedDrafting) -> None:
    work.believed = (ANSWER[0], *[ANSWER[0] + 1] * 4)
    begun = generation([], *ANSWER[:2])
    asyncio.run(DrafterBackend(work).extend(begun))
    assert (tuple(begun.tokens), drafting.begun) == (ANSWER, [2])


@pytest.mark.parametrize("believed", [(), ANSWER])
def test_a_limit_ends_it(work: DeviceWork, believed: tuple[int, ...]) -> None:
    work.believed = believed
    begun = generation([], limit=3)
    asyncio.run(DrafterBackend(work).extend(begun))
    assert (tuple(begun.tokens), begun.complete, begun.ended) == (ANSWER[:3], True, False)


def test_a_proposal_is_told_and_not_appended_until_it_is_kept(work: DeviceWork, drafting: ScriptedDrafting) -> None:
    events = list[Event]()
    begun, drafter = generation(events), DrafterBackend(work)
    asyncio.run(drafter.propose(begun))
    assert begun.tokens == []
    assert len(events) == len(ANSWER)
    assert all(isinstance(event, Guessed) and event.position == 0 for event in events)
    assert drafter.confidence == 0.5 ** len(ANSWER)
    drafter.keep(begun)
    (settled,) = (event for event in events if isinstance(event, Settled))
    assert tuple(one.id for one in settled.tokens) == tuple(begun.tokens) == ANSWER
    assert drafting.begun == [0]


def test_who_gives_up_ends_the_drafting(work: DeviceWork) -> None:
    """The next request may go on from it then, whatever a thread still holds."""

    async def give_up() -> None:
        async with work.until_ended():
            work.begin_drafting()
            raise asyncio.CancelledError

    async def run() -> None:
        async with work.until_ended():
            await DrafterBackend(work).extend(generation([]))
            begun = work.drafting
        assert begun is not None
        assert work.drafting is None
        with pytest.raises(asyncio.CancelledError):
            await give_up()
        assert work.drafting is None
        assert list(work.draft((), 9)) == []

    asyncio.run(run())
