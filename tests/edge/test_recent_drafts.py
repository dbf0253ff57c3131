"""Answers of late as drafts: a question that is asked again of a scene that hardly changed costs a pass or two."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.core.constraint import Constraint, Grammar
from cutline.core.request import Mode
from cutline.core.sampling import Sampling
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import CardRequest, requests
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.offload.backends.openai_upstream import Upstream
from cutline.errors import InputError, WorkerUnavailable
from cutline.models.bundle import Bundle
from cutline.testing.together import asking, check_account, ids, together

CARDS = [one for one in requests(Split.EVALUATION, 4, seed=11) if one.question.kind == "describe"]
FIRST, OTHER = CARDS[0], replace(CARDS[1], question=CARDS[0].question)


async def asked(agent: Agent, one: CardRequest, **options: object) -> tuple[int, ...]:
    answer = await agent.answer(asking(one, Mode.DRAFT, **options))  # type: ignore[arg-type]
    check_account(answer)
    return ids(answer)


def test_a_question_asked_again_is_answered_in_a_pass_or_two() -> None:
    async def run() -> None:
        async with together(Bundle.open(TARGET), Bundle.open(DRAFTER)) as agent:
            first = await agent.answer(asking(FIRST, Mode.CLOUD))
            again = await agent.answer(asking(FIRST, Mode.DRAFT))
            assert ids(again) == ids(first)
            assert again.recent == again.accepted == len(first.tokens)
            assert again.rounds == 1
            for mode in (Mode.CLOUD, Mode.DRAFT):
                assert (await agent.answer(asking(FIRST, mode, store=False))).recent == 0

    asyncio.run(run())


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.9, seed=4)], ids=["greedy", "sampled"])
def test_what_was_said_of_another_scene_changes_no_token(sampling: Sampling) -> None:
    async def run() -> None:
        async with together(Bundle.open(TARGET), Bundle.open(DRAFTER)) as agent:
            for effort in (0.0, 0.5, 1.0):
                for one in (FIRST, OTHER):
                    truth = await agent.answer(asking(one, Mode.CLOUD, sampling=sampling, store=False))
                    assert await asked(agent, one, sampling=sampling, effort=effort) == ids(truth)

    asyncio.run(run())


def test_no_tenant_is_drafted_for_from_anothers_answers() -> None:
    async def run() -> None:
        async with together(Bundle.open(TARGET), Bundle.open(DRAFTER)) as agent:
            await agent.answer(asking(FIRST, Mode.CLOUD, tenant="one"))
            assert (await agent.answer(asking(FIRST, Mode.DRAFT, tenant="other"))).recent == 0
            assert (await agent.answer(asking(FIRST, Mode.DRAFT, tenant="one"))).recent > 0

    asyncio.run(run())


def test_an_agent_that_is_to_use_nothing_again_does_not() -> None:
    async def run() -> None:
        async with (
            together(Bundle.open(TARGET), Bundle.open(DRAFTER)) as agent,
            Agent(
                Bundle.open(DRAFTER),
                worker=agent.workers.addresses,
                threads=1,
                settings=AgentSettings(fresh=True),
            ) as fresh,
        ):
            for _ in range(2):
                assert (await fresh.answer(asking(FIRST, Mode.DRAFT))).recent == 0

    asyncio.run(run())


def test_an_answer_of_late_that_a_constraint_forbids() -> None:
    """It is proposed all the same, and cut where it may not go on."""

    async def run() -> None:
        async with together(Bundle.open(TARGET), Bundle.open(DRAFTER)) as agent:
            await agent.answer(asking(FIRST, Mode.CLOUD))
            forced = Sampling(constraint=Constraint(grammar=Grammar.CHOICE, text='["The cat", "The card is red"]'))
            truth = await agent.answer(asking(FIRST, Mode.CLOUD, sampling=forced, store=False))
            assert await asked(agent, FIRST, sampling=forced) == ids(truth)

    asyncio.run(run())


def test_a_still_scene_takes_a_third_of_the_passes() -> None:
    async def run() -> None:
        async with together(Bundle.open(TARGET), Bundle.open(DRAFTER)) as agent:
            plain = (await agent.answer(asking(FIRST, Mode.CLOUD))).passes
            again = [(await agent.answer(asking(FIRST, Mode.DRAFT))).passes for _ in range(3)]
            assert plain >= 3 * max(again) > 0

    asyncio.run(run())


def test_a_board_without_a_drafter_drafts_what_was_answered() -> None:
    async def run() -> None:
        target = Bundle.open(TARGET)
        async with (
            serve(target, WorkerOptions(slots=2)) as address,
            Agent(Bundle.open(TARGET, "device"), worker=address, threads=1) as agent,
        ):
            assert agent.state().ready
            assert agent.state().modes == (Mode.CLOUD, Mode.DRAFT, Mode.AUTO)
            first = await agent.answer(asking(FIRST, Mode.AUTO))
            assert first.exact
            assert first.drafted == 0
            again = await agent.answer(asking(FIRST, Mode.AUTO))
            assert ids(again) == ids(first)
            assert again.recent == len(first.tokens)
            assert first.passes >= 3 * again.passes
            with pytest.raises(InputError, match="no drafter"):
                await agent.answer(asking(FIRST, Mode.EDGE))
            agent.offline = True
            for mode in (Mode.AUTO, Mode.DRAFT):
                with pytest.raises(WorkerUnavailable, match="offline"):
                    await agent.answer(asking(FIRST, mode))

    asyncio.run(run())


def test_what_an_agent_without_a_drafter_needs() -> None:
    async def run() -> None:
        async with Agent(Bundle.open(TARGET), threads=1) as agent:
            state = agent.state()
            assert not state.ready
            assert state.why is not None
            assert "neither a drafter nor a worker" in state.why
            with pytest.raises(InputError, match="neither a drafter nor a worker"):
                await agent.answer(asking(FIRST, Mode.AUTO))

    asyncio.run(run())
    upstream = Upstream("http://127.0.0.1:9/v1", model="any", key=None)
    with pytest.raises(InputError, match="without a drafter"):
        Agent(Bundle.open(TARGET), threads=1, settings=AgentSettings(upstream=upstream))


def test_a_target_that_dies_without_a_drafter_behind_it_is_an_error() -> None:
    async def run() -> None:
        async with Agent(Bundle.open(TARGET), worker="127.0.0.1:9", threads=1) as agent:
            with pytest.raises(WorkerUnavailable):
                await agent.answer(asking(FIRST, Mode.AUTO))

    asyncio.run(run())
