"""Mode split without a cut: planned where the agent plans, else answered with the cuts that there are."""

from __future__ import annotations

import asyncio

import pytest

from cutline.core.request import Mode, Request
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.devices.link import load_link
from cutline.edge.agent import Agent
from cutline.edge.generation.generation import Prepared
from cutline.edge.planning.plan_inputs import setting_of
from cutline.edge.planning.planner import Planner
from cutline.errors import InputError
from cutline.models.bundle import Bundle

CARD = (DRAFTER.parent.parent / "examples" / "card1.png").read_bytes()


@pytest.fixture(scope="module")
def bundles() -> tuple[Bundle, Bundle]:
    return Bundle.open(DRAFTER), Bundle.open(TARGET, "device")


def refused(drafter: Bundle, target: Bundle | None) -> str:
    async def run() -> str:
        async with Agent(drafter, worker="127.0.0.1:1", threads=1, target=target) as agent:
            with pytest.raises(InputError) as caught:
                await agent.answer(Request.about(CARD, "Read the digits.", mode=Mode.SPLIT))
            return str(caught.value)

    return asyncio.run(run())


def test_a_split_without_a_cut_is_told_which_there_are(bundles: tuple[Bundle, Bundle]) -> None:
    message = refused(*bundles)
    assert "may be cut at vision.0, vision.1," in message
    assert "decoder.3, head; with --edge-profile" in message
    assert "give --target" in refused(bundles[0], None)


def test_a_split_without_a_cut_is_planned_where_there_are_profiles(bundles: tuple[Bundle, Bundle]) -> None:
    planner = Planner(setting_of(*bundles, edge="raspberry-pi-5", cloud="l4"), load_link("4g"))

    async def run() -> None:
        async with Agent(bundles[0], worker="127.0.0.1:1", threads=1, target=bundles[1], planner=planner) as agent:
            prepared: Prepared = agent._preparer.prepare(Request.about(CARD, "Read the digits.", mode=Mode.SPLIT))
            chosen = planner.plan(prepared, ready=())
            assert chosen.execution.mode is Mode.SPLIT
            assert chosen.execution.cut != "image"
            assert chosen.plan.mode == "split"

    asyncio.run(run())
