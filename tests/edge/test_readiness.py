"""Readiness means that a plain request is answered; where it is not, it says what to do."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from cutline.core.request import Request
from cutline.demo.bundles import DRAFTER
from cutline.edge.agent import Agent
from cutline.edge.offload.status import AgentState
from cutline.errors import BundleError
from cutline.models.bundle import Bundle

CARD = (DRAFTER.parents[1] / "examples" / "card1.png").read_bytes()


def drafter(*, calibrated: bool = True, target: bool = True) -> Bundle:
    """The demo's drafter, or as it would be without some of what it has."""
    whole = Bundle.open(DRAFTER)
    changed = msgspec.structs.replace(
        whole.manifest,
        calibration=whole.manifest.calibration if calibrated else None,
        target=whole.manifest.target if target else None,
    )
    return Bundle(whole.path, changed)


def state(bundle: Bundle, worker: str | None) -> AgentState:
    async def run() -> AgentState:
        async with Agent(bundle, worker=worker, threads=1) as agent:
            return agent.state()

    return asyncio.run(run())


@pytest.mark.parametrize("worker", [None, "127.0.0.1:1"])
def test_a_calibrated_drafter_is_ready(worker: str | None) -> None:
    found = state(drafter(), worker)
    assert (found.ready, found.why) == (True, None)


def test_one_that_is_not_is_ready_where_somebody_verifies_it() -> None:
    assert state(drafter(calibrated=False), "127.0.0.1:1").ready
    alone = state(drafter(calibrated=False), None)
    assert not alone.ready
    assert "cutline calibrate" in (alone.why or "")
    assert "--worker" in (alone.why or "")


def test_one_without_a_target_is_not_ready() -> None:
    found = state(drafter(target=False), "127.0.0.1:1")
    assert not found.ready
    assert "mode edge" in (found.why or "")


def test_what_is_not_ready_is_refused_clearly() -> None:
    async def run() -> None:
        async with Agent(drafter(calibrated=False), worker=None, threads=1) as agent:
            with pytest.raises(BundleError, match="not calibrated"):
                await agent.answer(Request.about(CARD, "Describe the card."))

    asyncio.run(run())
