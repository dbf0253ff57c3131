"""Agents that plan: with a real worker behind a link, with none, and where nothing is to be planned."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.core.conversation import question as ask_about
from cutline.core.request import Mode, Request
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.devices.emulator import LinkEmulator
from cutline.devices.link import load_link
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.generation.generation import Prepared
from cutline.edge.generation.result import Answer, Provenance
from cutline.edge.planning.plan_inputs import setting_of
from cutline.edge.planning.planner import Planner
from cutline.errors import InputError, WorkerUnavailable
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.prompt import PromptBuilder
from cutline.protos.channel.address import parse_address

CUTS = Bundle.open(TARGET).manifest.line.layers
REQUESTS = list(requests(Split.EVALUATION, 2, seed=11))


def prepared(**options: Any) -> Prepared:
    request = REQUESTS[0]
    question = Request.about(request.image, request.question.text, mode=Mode.AUTO, **options)
    bundle = Bundle.open(DRAFTER)
    image = decode_image(request.image)
    pixels = bundle.manifest.family.preprocess(image)
    prompt = PromptBuilder.open(bundle).build([ask_about(question.text)], [pixels.grid]).ids
    return Prepared(question, (image,), (pixels,), prompt, prompt, min(question.max_tokens or 100, 100))


def planning() -> Planner:
    """Of the demo's models on a Raspberry Pi and a GPU, over a link that costs little."""
    drafter, target = Bundle.open(DRAFTER), Bundle.open(TARGET)
    return Planner(setting_of(drafter, target, edge="raspberry-pi-5", cloud="l4"), load_link("ethernet"))


def check_plan(answer: Answer, worker: str) -> None:
    """What holds of every planned answer."""
    plan = answer.plan
    assert plan is not None
    assert answer.mode is Mode.AUTO
    assert plan.measured_ms == answer.latency_ms
    assert plan.predicted_ms == pytest.approx(plan.uncorrected_ms * plan.correction)
    assert min(plan.predicted_ms, plan.hindsight_ms, plan.correction, plan.believed.rtt_ms) > 0
    assert plan.mode is not Mode.EDGE
    assert plan.why
    if answer.worker is None:
        assert plan.mode is Mode.AUTO
        assert {token.source for token in answer.tokens} == {Provenance.EDGE}
    else:
        assert answer.worker == worker
        assert (answer.cut, answer.wire) == (plan.cut, plan.wire)
        assert (plan.cut == "image") == (plan.wire is None)
    if plan.mode in (Mode.CLOUD, Mode.SPLIT):
        assert plan.effort is None
        assert answer.drafted == 0


def test_planned_answers_of_a_real_worker_over_a_link() -> None:
    """Exact plans give the target's own tokens; the link is found behind a profile that is wrong about it."""
    target, drafter = Bundle.open(TARGET), Bundle.open(DRAFTER)
    setting = setting_of(drafter, target, edge="raspberry-pi-5", cloud="cpu-server")
    here = msgspec.structs.replace(load_link("4g"), rtt_ms=60.0, jitter_ms=0.0)
    planner = Planner(setting, load_link("ethernet"))

    async def run() -> None:
        async with (
            serve(target, WorkerOptions(slots=4, context=256)) as address,
            LinkEmulator(here, target=parse_address(address)) as emulated,
            Agent(drafter, worker=emulated.address, threads=1, target=target, planner=planner) as agent,
        ):
            asked = Request.about(REQUESTS[0].image, "Describe the card.", exact=True)
            answer, warm = await agent.answer(asked), 0
            for request in REQUESTS[:6]:
                asked = Request.about(request.image, request.question.text, exact=True)
                answer = await agent.answer(asked)
                check_plan(answer, emulated.address)
                assert answer.exact
                plain = Request.about(request.image, request.question.text, mode=Mode.CLOUD)
                truth = await agent.answer(plain)
                assert truth.plan is None
                assert [token.id for token in answer.tokens] == [token.id for token in truth.tokens]
                warm += answer.plan is not None and not answer.plan.cold
            assert warm > 0
            assert answer.plan is not None
            assert answer.plan.believed.rtt_ms == pytest.approx(60.0, rel=0.4)
            for request in REQUESTS[:6]:
                answer = await agent.answer(Request.about(request.image, request.question.text))
                check_plan(answer, emulated.address)
            given = Request.about(REQUESTS[0].image, "Describe the card.", cut="decoder.0")
            assert (await agent.answer(given)).plan is None, "a cut leaves nothing to plan"
            with pytest.raises(InputError, match="no plan keeps to 1 ms"):
                await agent.answer(msgspec.structs.replace(asked, max_latency_ms=1.0))

    asyncio.run(run())


def test_only_cuts_are_planned_at_which_the_worker_can_begin() -> None:
    target, drafter = Bundle.open(TARGET), Bundle.open(DRAFTER)
    planner = planning()
    asked = Request.about(REQUESTS[0].image, "Describe the card.", exact=True)
    assert planner.plan(prepared(exact=True), ready=CUTS).execution.cut not in CUTS[7:]

    async def run() -> None:
        async with (
            serve(target, WorkerOptions(slots=2, context=256, layers=("decoder.1", "end"))) as address,
            Agent(drafter, worker=address, threads=1, target=target, planner=planner) as agent,
        ):
            answer = await agent.answer(asked)
            check_plan(answer, address)
            assert answer.cut in CUTS[7:]
            assert answer.plan is not None
            assert answer.plan.cold, "the worker had yet to say so"

    asyncio.run(run())
    planner.meet("magic", "head")
    assert planner.plan(prepared(exact=True), ready=CUTS).execution.cut in CUTS[7:], (
        "what makes no sense changes nothing"
    )
    planner.meet("image", "end")
    assert planner.plan(prepared(exact=True), ready=CUTS).execution.cut not in CUTS[7:]


def test_a_planner_is_only_loaded_where_it_is_wanted() -> None:
    rooms = "cutline.edge.agent, cutline.edge.api.server, cutline.cli.edge, cutline.cli.ask"
    code = f"import sys, {rooms}; print(*sys.modules)"
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[2] / ".dev")}
    loaded = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "cutline.edge.agent" in loaded
    assert not [module for module in loaded if "partitioner" in module or module in ("cutline.edge.planning.planner",)]


def test_an_agent_without_profiles_does_not_plan() -> None:
    asked = Request.about(REQUESTS[0].image, "Describe the card.")

    async def run() -> None:
        async with Agent(Bundle.open(DRAFTER), worker="127.0.0.1:1", threads=1) as agent:
            edge = await agent.answer(msgspec.structs.replace(asked, mode=Mode.EDGE))
            assert edge.plan is None
            for bound in (
                {"exact": True},
                {"image_must_stay": True},
                {"max_latency_ms": 9.0},
                {"min_agreement": 0.5},
                {"max_leak": 0.5},
            ):
                with pytest.raises(InputError, match="does not plan"):
                    await agent.answer(msgspec.structs.replace(asked, **bound))

    asyncio.run(run())


def test_a_planner_needs_a_worker_and_the_target() -> None:
    planner = planning()
    missing: dict[str, Any]
    for missing in ({"worker": None, "target": Bundle.open(TARGET)}, {"worker": "127.0.0.1:1", "target": None}):
        with pytest.raises(InputError, match="--worker and --target"):
            Agent(Bundle.open(DRAFTER), threads=1, planner=planner, **missing)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": Mode.CLOUD, "exact": True},
        {"mode": Mode.EDGE, "max_latency_ms": 100.0},
        {"cut": "decoder.0", "image_must_stay": True},
        {"mode": Mode.DRAFT, "min_agreement": 0.9},
        {"max_latency_ms": 0.0},
        {"max_latency_ms": float("nan")},
        {"max_latency_ms": float("inf")},
        {"min_agreement": -0.1},
        {"min_agreement": float("nan")},
        {"mode": Mode.CLOUD, "max_leak": 0.5},
        {"max_leak": 1.5},
        {"max_leak": float("nan")},
    ],
)
def test_bounds_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="-"):
        Request.about(b"", "What?", **options)


def test_with_no_worker_reachable_auto_answers_here_and_only_an_exact_question_insists() -> None:
    asked = Request.about(REQUESTS[0].image, "Describe the card.")

    async def run() -> None:
        planner = planning()
        target = Bundle.open(TARGET)
        for offline in (True, False):
            async with Agent(
                Bundle.open(DRAFTER),
                worker="127.0.0.1:1",
                threads=1,
                target=target,
                planner=planner,
                settings=AgentSettings(offline=offline),
            ) as agent:
                edge = await agent.answer(msgspec.structs.replace(asked, mode=Mode.EDGE))
                for bound in ({}, {"image_must_stay": True}, {"max_latency_ms": 500.0}):
                    answer = await agent.answer(msgspec.structs.replace(asked, **bound))
                    assert answer.text == edge.text
                    assert not answer.exact
                    assert answer.worker is None
                with pytest.raises(WorkerUnavailable):
                    await agent.answer(msgspec.structs.replace(asked, exact=True, timeout=1.0))

    asyncio.run(run())
