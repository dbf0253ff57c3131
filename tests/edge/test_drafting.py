"""What drafts cost and save, however good they are, and what the gate makes of them; never what the answer is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pytest

from cutline.core.request import DRAFT_CHUNK, Mode
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.agent import Agent
from cutline.edge.generation.result import Provenance
from cutline.edge.inference.drafter import Drafted, DraftSource
from cutline.models.bundle import Bundle
from cutline.testing import together as pair
from cutline.testing.drafter import Script, ScriptedDrafter
from cutline.testing.together import check_account, ids, together
from cutline.testing.worker import NEVER, gated, keeps_from

EFFORTS = (0.0, 0.5, 1.0)
asking = partial(pair.asking, store=False)  # what is drafted is the drafter's alone
ASKED = list(requests(Split.EVALUATION, 2, seed=11))
LONGEST = next(request for request in ASKED if request.question.kind == "describe")


@pytest.fixture(scope="module")
def target() -> Bundle:
    return Bundle.open(TARGET)


@pytest.fixture(scope="module")
def drafter() -> Bundle:
    return Bundle.open(DRAFTER)


def random_tokens(honest: DraftSource, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
    rng = np.random.default_rng(len(answer))
    yield from (Drafted(int(token), 0.5) for token in rng.integers(10, 400, limit))


def ends_at_once(honest: DraftSource, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
    yield Drafted(Bundle.open(DRAFTER).manifest.stop_tokens[0], 0.9)


def never_ends(honest: DraftSource, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
    yield from (Drafted(20, 0.9) for _ in range(limit))


def wrong_in_places(every: int) -> Script:
    """The drafter as it is, with every so many tokens replaced."""

    def draft(honest: DraftSource, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
        for index, one in enumerate(honest.draft(answer, limit), start=len(answer)):
            wrong = Drafted(one.token % 100 + 100, 0.5)
            yield wrong if index % every == every - 1 and wrong.token != one.token else one

    return draft


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize(
    "bad",
    [random_tokens, ends_at_once, never_ends, wrong_in_places(2), wrong_in_places(5)],
    ids=["random", "ends at once", "never ends", "every second is wrong", "every fifth is wrong"],
)
def test_a_bad_drafter_changes_nothing_but_the_cost(
    target: Bundle, drafter: Bundle, bad: Script, effort: float
) -> None:
    drafts = ScriptedDrafter()

    async def run() -> None:
        async with together(target, drafter, open_drafter=drafts) as agent:
            truths = [await agent.answer(asking(request, Mode.CLOUD)) for request in ASKED[:6]]
            drafts.script = bad
            for request, truth in zip(ASKED[:6], truths, strict=True):
                answer = await agent.answer(asking(request, Mode.DRAFT, effort=effort))
                assert ids(answer) == ids(truth)
                assert answer.text == truth.text
                check_account(answer)

    asyncio.run(run())


def foreseen(answer: Sequence[int], *, wrong: int | None = None) -> Script:
    """A drafter that knows the whole answer, but for the token at the index `wrong` on its first visit there."""

    def draft(honest: DraftSource, known: Sequence[int], limit: int) -> Iterator[Drafted]:
        for index in range(len(known), min(len(answer), len(known) + limit)):
            token = answer[index] + 1 if index == wrong and len(known) <= index else answer[index]
            yield Drafted(token, 1.0)

    return draft


def test_pure_speculation_costs_a_round_a_token_when_every_draft_is_wrong(target: Bundle, drafter: Bundle) -> None:
    drafts = ScriptedDrafter()

    async def run() -> None:
        async with together(target, drafter, open_drafter=drafts) as agent:
            truth = ids(await agent.answer(asking(LONGEST, Mode.CLOUD)))

            def always_wrong(honest: DraftSource, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
                following = truth[len(answer)] if len(answer) < len(truth) else 0
                yield from (Drafted(following % 100 + 100 + (following >= 100), 0.5) for _ in range(limit))

            drafts.script = always_wrong
            answer = await agent.answer(asking(LONGEST, Mode.DRAFT, effort=0.0))
            assert ids(answer) == truth
            # Each token but the first needs a draft of its own, made after the one before it was known.
            assert answer.rounds == len(truth)
            assert answer.accepted == 0

    asyncio.run(run())


def test_pure_speculation_costs_one_round_when_every_draft_is_right(target: Bundle, drafter: Bundle) -> None:
    drafts = ScriptedDrafter()

    async def run() -> None:
        async with together(target, drafter, open_drafter=drafts) as agent:
            truth = ids(await agent.answer(asking(LONGEST, Mode.CLOUD)))
            assert len(truth) > 2, "too short to tell"
            drafts.script = foreseen(truth)
            answer = await agent.answer(asking(LONGEST, Mode.DRAFT, effort=0.0))
            assert ids(answer) == truth
            # The worker may choose the first tokens before the first draft is there.
            assert answer.rounds <= 2
            assert answer.accepted >= len(truth) - DRAFT_CHUNK

    asyncio.run(run())


def test_what_the_gate_keeps_never_leaves_the_device(drafter: Bundle) -> None:
    async def run() -> None:
        drafts = gated(drafter, keeps_from(0.0))
        async with Agent(drafts, worker="127.0.0.1:1", threads=1) as agent:
            for request in ASKED[:6]:
                edge = await agent.answer(asking(request, Mode.EDGE))
                auto = await agent.answer(asking(request, Mode.AUTO))
                assert ids(auto) == ids(edge)
                for answer in (edge, auto):
                    assert {token.source for token in answer.tokens} == {Provenance.EDGE}
                    assert not answer.exact
                    assert answer.worker is None
                    assert (answer.bytes_up, answer.bytes_down, answer.rounds) == (0, 0, 0)
                    assert (answer.drafted, answer.accepted) == (0, 0)
                    # A quantized model's logits differ a little when it has run the prompt already.
                    assert answer.confidence == pytest.approx(edge.confidence, rel=1e-3)
                    assert answer.text == "".join(token.text for token in answer.tokens).strip()

    asyncio.run(run())


def test_what_it_does_not_keep_is_verified_whole_in_one_round(target: Bundle, drafter: Bundle) -> None:
    drafts = ScriptedDrafter()

    async def run() -> None:
        async with together(target, gated(drafter, NEVER), open_drafter=drafts) as agent:
            for request in ASKED[:6]:
                drafts.script = None
                truth = ids(await agent.answer(asking(request, Mode.CLOUD)))
                drafts.script = foreseen(truth)
                answer = await agent.answer(asking(request, Mode.AUTO))
                assert ids(answer) == truth
                check_account(answer)
                assert answer.rounds == 1
                assert answer.drafted == answer.accepted == len(truth)
                assert {token.source for token in answer.tokens} == {Provenance.DRAFT}

    asyncio.run(run())


def test_an_escalation_goes_on_drafting_from_where_it_was_wrong(target: Bundle, drafter: Bundle) -> None:
    drafts = ScriptedDrafter()

    async def run() -> None:
        async with together(target, gated(drafter, NEVER), open_drafter=drafts) as agent:
            truth = ids(await agent.answer(asking(LONGEST, Mode.CLOUD)))
            drafts.script = foreseen(truth, wrong=1)
            answer = await agent.answer(asking(LONGEST, Mode.AUTO, effort=0.0))
            assert ids(answer) == truth
            check_account(answer)
            assert answer.tokens[1].source is Provenance.CLOUD
            assert answer.rounds == 2

    asyncio.run(run())
