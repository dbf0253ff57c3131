"""Unfamiliar pictures: what the gate would keep of them is passed on, until audits show that it holds."""

from __future__ import annotations

import asyncio
from functools import cache

import msgspec
import numpy as np
import pytest

from cutline.cli.calibration.inputs import demo_sources
from cutline.cli.calibration.pictures import familiar_pictures
from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.core.request import Mode, Request
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import png, requests
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.audit.audits import Audits
from cutline.edge.generation.conditions import PLAIN
from cutline.edge.generation.gate import UNFAMILIAR, Gate, open_gate
from cutline.edge.generation.result import Answer, Decision
from cutline.edge.inference.familiarity import Familiarity
from cutline.errors import BundleError
from cutline.models.bundle import Bundle
from cutline.testing.together import ids
from cutline.testing.worker import gated, keeps_from

CARD = next(one for one in requests(Split.CALIBRATION, 1, seed=0) if one.question.kind == "count")
NOISE = png(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
STRANGE = PLAIN + UNFAMILIAR


@cache
def known() -> Familiarity:
    found = familiar_pictures(Bundle.open(DRAFTER), demo_sources(100), alarm=0.02, threads=1)
    assert found is not None
    return found


def gate() -> Gate:
    return msgspec.structs.replace(keeps_from(0.0), pictures=known())


def asked(image: bytes, mode: Mode = Mode.AUTO) -> Request:
    return Request.about(image, CARD.question.text, mode=mode)


def said(answer: Answer) -> tuple[Decision, str, bool]:
    assert answer.gate is not None
    return answer.gate.decision, answer.gate.group, answer.gate.calibrated


@pytest.mark.parametrize("fresh", [False, True])
def test_an_unfamiliar_picture_is_passed_on_and_the_answer_says_so(fresh: bool) -> None:
    async def run() -> None:
        async with (
            serve(Bundle.open(TARGET), WorkerOptions(slots=2)) as address,
            Agent(
                gated(Bundle.open(DRAFTER), gate()), worker=address, threads=1, settings=AgentSettings(fresh=fresh)
            ) as agent,
        ):
            for _ in range(2):  # the second time nothing of its picture is computed
                assert said(await agent.answer(asked(CARD.image))) == (Decision.KEPT, PLAIN, True)
                passed = await agent.answer(asked(NOISE))
                assert said(passed) == (Decision.PASSED, STRANGE, False)
                assert passed.gate is not None
                assert passed.gate.promised is None
                assert passed.exact
                assert ids(passed) == ids(await agent.answer(asked(NOISE, Mode.CLOUD)))
            assert agent.state().audits == {}, "without audits nothing is opened, as nothing would shut it"

    asyncio.run(run())


def test_with_audits_what_holds_of_unfamiliar_pictures_is_kept_at_last() -> None:
    audits, made = Audits(share=1.0, seed=1), gate()
    assert audits.shut(STRANGE)
    assert not audits.shut(PLAIN)
    count = 0
    while audits.shut(STRANGE):
        audits.note_unkept(STRANGE, made, confidence=1.0, agreed=True)
        count += 1
    assert 40 < count < 200
    assert audits.every(made)[STRANGE].threshold == 0.0
    assert PLAIN not in audits.every(made), "they say nothing of the others"
    unwatched = Audits()
    for _ in range(200):
        unwatched.note_unkept(STRANGE, made, confidence=1.0, agreed=True)
    assert unwatched.shut(STRANGE)


def test_the_gate_keeps_them_in_its_bundle_and_a_bad_one_is_named() -> None:
    whole = gated(Bundle.open(DRAFTER), gate())
    assert open_gate(whole).pictures == known()
    assert open_gate(whole).before(None).pictures == known()
    calibration = msgspec.to_builtins(gate())
    calibration["pictures"]["variances"] = calibration["pictures"]["variances"][:-1]
    torn = Bundle(whole.path, msgspec.structs.replace(whole.manifest, calibration=calibration))
    with pytest.raises(BundleError, match="directions are of another width"):
        open_gate(torn)
