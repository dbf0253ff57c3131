"""What is planned before an upstream: in worlds that are played out without a clock, and with a scripted server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import msgspec
import pytest

from cutline.cli.options import Profiles
from cutline.cli.setting import open_planner
from cutline.core.conversation import Message, TextPart
from cutline.core.request import Mode, Request
from cutline.core.sampling import Sampling
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.devices.link import LinkProfile
from cutline.devices.profile import DeviceProfile, DrafterTable
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.generation.conditions import PLAIN
from cutline.edge.generation.detokenizer import Transcript
from cutline.edge.generation.gate import upstream_named
from cutline.edge.generation.generation import Generation, Prepared
from cutline.edge.generation.preprocess import Preparer
from cutline.edge.generation.result import Answer, Provenance
from cutline.edge.offload.backends.openai_upstream import Upstream
from cutline.edge.planning.plan_inputs import upstream_setting
from cutline.edge.planning.plan_result import Chosen
from cutline.edge.planning.planner import Planner
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.models.prompt import PromptBuilder
from cutline.models.vocabulary import Vocabulary
from cutline.partitioner.setting import GateRates, Setting
from cutline.testing.worker import gated, keeps_from

BUNDLE = Bundle.open(DRAFTER)
PREPARER = Preparer(BUNDLE.manifest, PromptBuilder.open(BUNDLE), None, planned=True)
VOCABULARY = Vocabulary.open(BUNDLE)
REQUESTS = list(requests(Split.EVALUATION, 2, seed=11))


def link(rtt_ms: float = 40.0, uplink_mbps: float = 10.0, downlink_mbps: float = 40.0) -> LinkProfile:
    return LinkProfile(
        name="a link",
        source="measured",
        reference="none",
        rtt_ms=rtt_ms,
        uplink_mbps=uplink_mbps,
        downlink_mbps=downlink_mbps,
    )


def prepared(padding: int = 0, **options: Any) -> Prepared:
    """A question about a picture whose file is `padding` bytes longer than it need be."""
    request = REQUESTS[0]
    return PREPARER.prepare(Request.about(request.image + bytes(padding), "Describe the card.", **options))


def device(**changes: Any) -> Setting:
    setting = upstream_setting(BUNDLE, model="big", edge="raspberry-pi-5")
    made = replace(setting, **{"gate": GateRates(kept=0.5, agreed=0.98), **changes})
    return replace(made, gates={} if made.gate is None else {PLAIN: made.gate})


def drafting(seconds: float) -> DeviceProfile:
    """A device that takes so long for any drafted answer."""
    table = DrafterTable(
        model=BUNDLE.manifest.identity,
        name="the drafter",
        precision=BUNDLE.manifest.precision,
        vision_seconds=0.0,
        prefill=((1, seconds), (256, seconds)),
        token_seconds=1e-6,
    )
    return msgspec.structs.replace(device().edge, drafters=(table,))


class Ticks:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@dataclass
class World:
    """Answers plans with a server that takes `first` and `token` seconds, over a link of `uplink` bytes a second."""

    first: float
    token: float = 0.02
    uplink: float = 10 * 125_000
    tokens: int = 12
    connecting: float | None = None
    slower: dict[str, float] = field(default_factory=dict)  # by mode, of the whole answer
    setting: Setting = field(default_factory=device)

    def __post_init__(self) -> None:
        self.clock = Ticks()
        self.planner = Planner(self.setting, link(), clock=self.clock)

    def plan(self, **options: Any) -> Chosen:
        return self.planner.plan(prepared(**options), ready=())

    def answer(self, padding: int = 0, **options: Any) -> tuple[Chosen, float]:
        """Plan a request and carry it out, the gate keeping nothing; with the seconds that it took."""
        asked = prepared(padding, **options)
        chosen = self.planner.plan(asked, ready=())
        drafted = chosen.plan.parts_ms["drafter"] / 1e3 / chosen.correction if chosen.plan.mode != "cloud" else 0.0
        latency = 0.004 + drafted
        progress = Generation(0.0, Transcript(VOCABULARY), tokens=[9] * self.tokens)
        if chosen.plan.mode != "edge":
            size = 250 + 4 * len(asked.request.images[0]) // 3
            wait = size / self.uplink + 0.040 + self.first
            progress.sent, progress.connecting = [(5.0, size)], self.connecting
            progress.first, progress.last = 5.0 + wait, 5.0 + wait + (self.tokens - 1) * self.token
            latency += progress.last - 5.0
        latency *= self.slower.get(chosen.plan.mode, 1.0)
        self.planner.learn(chosen, asked, progress, latency)
        return chosen, latency

    def answers(self, count: int, **options: Any) -> Chosen:
        """The last of so many plans, for pictures of several sizes."""
        return [self.answer((0, 200_000, 50_000)[index % 3], **options)[0] for index in range(count)][-1]


def test_an_upstream_that_never_answered_is_guessed_and_that_is_said() -> None:
    world = World(first=0.3)
    chosen = world.plan()
    told = chosen.forecast(hindsight=1.0, measured=1.0, cold=False)
    assert told.believed.guessed
    assert told.believed.first_ms == pytest.approx(1000, rel=0.01)
    assert told.believed.token_ms == pytest.approx(20, rel=0.01)
    assert "is a guess until it has answered" in told.why
    assert told.runner_up is not None
    assert (told.mode, told.runner_up.mode) in ((Mode.AUTO, Mode.CLOUD), (Mode.CLOUD, Mode.AUTO))
    assert told.runner_up.predicted_ms >= told.predicted_ms
    assert f"against {told.runner_up.predicted_ms:.0f} ms for" in told.why
    world.answer(min_agreement=1.0)
    after = world.plan().forecast(hindsight=1.0, measured=1.0, cold=False)
    assert not after.believed.guessed
    assert "guess" not in after.why


@pytest.mark.parametrize("first", [0.05, 0.4, 6.0])
def test_its_speed_is_learnt(first: float) -> None:
    world = World(first=first, token=0.005)
    chosen = world.answers(12, min_agreement=1.0)
    assert chosen.plan.mode == "cloud"
    assert chosen.serving is not None
    assert chosen.serving.first.value == pytest.approx(first, rel=0.25)
    assert chosen.serving.token.value == pytest.approx(0.005, rel=0.25)
    _, took = world.answer(min_agreement=1.0)
    assert world.plan(min_agreement=1.0).plan.latency_ms / 1e3 == pytest.approx(took, rel=0.15)


def test_pictures_of_several_sizes_tell_a_slow_link_from_a_slow_server() -> None:
    world = World(first=0.5, uplink=0.5 * 125_000)
    world.answers(30, min_agreement=1.0)
    for padding in (0, 100_000, 300_000):
        asked = prepared(padding, min_agreement=1.0)
        upload = (250 + 4 * len(asked.request.images[0]) / 3) / world.uplink
        plan = world.planner.plan(asked, ready=()).plan
        assert plan.latency_ms / 1e3 == pytest.approx(0.044 + upload + 0.5 + 11 * 0.02, rel=0.25)


def test_the_round_trip_is_what_connecting_takes() -> None:
    world = World(first=0.5, connecting=0.3)
    chosen = world.answers(6, min_agreement=1.0)
    assert chosen.conditions.rtt == pytest.approx(0.3, rel=0.2)


def test_what_is_left_corrects_the_mode() -> None:
    world = World(first=1.0, slower={"cloud": 2.0})
    chosen = world.answers(20, min_agreement=1.0)
    assert chosen.correction == pytest.approx(2.0, rel=0.25)


def test_a_quick_upstream_is_asked_straight_and_a_slow_one_behind_the_gate() -> None:
    """On a device that drafts for half a second, as the gate keeps half of its answers."""
    profile = drafting(0.5)
    for first, wanted in ((0.02, "cloud"), (5.0, "auto")):
        world = World(first=first, token=0.001, setting=device(edge=profile))
        world.answers(6, min_agreement=1.0)
        chosen = world.plan()
        assert chosen.plan.mode == wanted, chosen.why
        assert (chosen.execution.mode, chosen.execution.cut) == (Mode(wanted), "image")


def test_a_latency_that_the_device_alone_can_keep_to() -> None:
    world = World(first=5.0)
    world.answers(6, min_agreement=1.0)
    chosen = world.plan(max_latency_ms=1500.0)
    assert (chosen.plan.mode, chosen.plan.cut, chosen.execution.mode) == ("edge", None, Mode.EDGE)
    assert chosen.plan.slowest_ms <= 1500.0
    assert "no plan keeps to 1.5e+03 ms and 0.9 of the answers" in chosen.why
    told = chosen.forecast(hindsight=0.1, measured=0.1, cold=False)
    assert (told.mode, told.cut, told.wire) == (Mode.EDGE, None, None)
    with pytest.raises(InputError, match=r"no plan keeps to 1.5e\+03 ms and 0.9 of the answers"):
        world.plan(max_latency_ms=1500.0, min_agreement=0.9)
    with pytest.raises(InputError, match=r"no plan keeps to 0.01 ms"):
        world.plan(max_latency_ms=0.01)


@pytest.mark.threat("inversion")
@pytest.mark.parametrize("bounds", [{"image_must_stay": True}, {"max_leak": 0.99}])
def test_a_picture_that_must_stay_never_goes_there(bounds: dict[str, Any]) -> None:
    world = World(first=0.001, token=1e-4)
    for _ in range(3):
        chosen, _ = world.answer(**bounds)
        assert (chosen.plan.mode, chosen.plan.bytes_up) == ("edge", 0.0)
    with pytest.raises(InputError, match="no plan keeps to"):
        world.plan(min_agreement=0.9, **bounds)
    message = Message("user", (TextPart("And what is that?"),))
    wordy = PREPARER.prepare(Request(messages=(message,), min_agreement=1.0, **bounds))
    assert world.planner.plan(wordy, ready=()).plan.mode == "cloud", "there is none in the question"


def test_how_good_an_answer_must_be() -> None:
    """The upstream's own answer counts as the best there is, the drafter's as the calibration found it."""
    world = World(first=0.5)
    modes = {share: world.plan(min_agreement=share).plan.mode for share in (0.0, 0.49, 0.98, 0.995)}
    assert modes == {0.0: "edge", 0.49: "edge", 0.98: "auto", 0.995: "cloud"}
    with pytest.raises(InputError, match="no plan keeps to exact answers"):
        world.plan(exact=True)
    assert World(first=0.5, setting=device(gate=None)).plan().plan.mode == "cloud"
    assert world.plan(sampling=Sampling(temperature=0.5)).plan.mode == "cloud", "the gate keeps no sampled answer"


def test_what_was_learnt_fades_so_that_a_slow_one_is_tried_again() -> None:
    world = World(first=8.0)
    world.answers(6, min_agreement=1.0)
    slow = world.plan(min_agreement=1.0).plan.latency_ms
    world.clock.now += 3600.0
    assert world.plan(min_agreement=1.0).plan.latency_ms < slow / 3


class Late(httpx.AsyncByteStream):
    """An answer whose first words come after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def __aiter__(self) -> AsyncIterator[bytes]:
        await asyncio.sleep(self._seconds)
        for delta, finish in (({"content": "4 "}, None), ({"content": "3 7"}, None), ({}, "stop")):
            chunk = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
            yield b"data: " + json.dumps(chunk).encode() + b"\n\n"


def asked(index: int = 0, **options: Any) -> Request:
    return Request.about(REQUESTS[index].image, "Which digits?", **options)


async def answers(agent: Agent, *questions: Request) -> list[Answer]:
    return [await agent.answer(question) for question in questions]


def in_agent(work: Callable[[Agent], Any], *, seconds: float, edge: DeviceProfile, gate: float = 2.0) -> Any:
    """What `work` makes of an agent whose upstream takes `seconds`; its gate keeps what has more confidence."""

    async def run() -> Any:
        transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Late(seconds)))
        upstream = Upstream("https://there/v1", model="big", transport=transport)
        planner = Planner(device(edge=edge), link(rtt_ms=1.0, uplink_mbps=1000.0, downlink_mbps=1000.0))
        drafter, settings = (
            gated(BUNDLE, keeps_from(gate, against=upstream_named("big"))),
            AgentSettings(upstream=upstream),
        )
        async with Agent(drafter, threads=1, settings=settings, planner=planner) as agent:
            return await work(agent)

    return asyncio.run(run())


@pytest.mark.parametrize(("seconds", "wanted"), [(0.0, Mode.CLOUD), (1.2, Mode.AUTO)])
def test_an_agent_learns_whether_its_upstream_is_worth_asking(seconds: float, wanted: Mode) -> None:
    """Drafting takes 0.3 s by the profile and half of it is in vain, so it is worth it from 0.6 s on."""

    async def work(agent: Agent) -> list[Answer]:
        return await answers(agent, *[asked(min_agreement=1.0)] * 3, asked())

    *straight, last = in_agent(work, seconds=seconds, edge=drafting(0.3), gate=0.0)
    for index, answer in enumerate(straight):
        assert answer.plan.mode is Mode.CLOUD
        assert (answer.mode, answer.worker, answer.exact) == (Mode.AUTO, "https://there/v1", None)
        assert answer.text == "4 3 7"
        assert answer.plan.measured_ms == answer.latency_ms
        assert answer.plan.cold == (index == 0)
        assert answer.plan.believed.guessed == (index < 2), "what came over a new connection teaches no times"
    assert last.plan.mode is wanted
    assert last.plan.why
    assert last.plan.runner_up.mode is (Mode.AUTO if wanted is Mode.CLOUD else Mode.CLOUD)
    if wanted is Mode.AUTO:
        assert last.worker is None
        assert {token.source for token in last.tokens} == {Provenance.EDGE}


def test_a_planned_answer_of_the_device_alone() -> None:
    async def work(agent: Agent) -> list[Any]:
        streamed = [event async for event in agent.stream(asked(image_must_stay=True))]
        return [streamed, await agent.answer(asked(mode=Mode.EDGE))]

    events, edge = in_agent(work, seconds=0.0, edge=drafting(0.3))
    planned, answer = events[0], events[-1]
    assert (planned.mode, planned.why) == (Mode.EDGE, answer.plan.why)
    assert "no plan keeps to an image that stays" in planned.why
    assert (answer.mode, answer.plan.mode, answer.plan.cut) == (Mode.AUTO, Mode.EDGE, None)
    assert (answer.worker, answer.exact, answer.bytes_up) == (None, False, 0)
    assert answer.tokens == edge.tokens


def test_its_gate_passes_on_to_it_and_bytes_are_as_planned() -> None:
    async def work(agent: Agent) -> list[Answer]:
        return await answers(agent, asked(), asked(1, min_agreement=1.0))

    gated, straight = in_agent(work, seconds=0.0, edge=drafting(1e-3))
    assert gated.plan.mode is Mode.AUTO
    assert gated.worker == "https://there/v1"
    assert gated.text == straight.text == "4 3 7"
    planner = Planner(device(), link())
    for index, answer in ((0, gated), (1, straight)):
        chosen = planner.plan(PREPARER.prepare(asked(index, min_agreement=1.0)), ready=())
        assert chosen.plan.bytes_up == pytest.approx(answer.bytes_up, rel=0.03, abs=40)


def test_offline_it_is_not_planned_for() -> None:
    async def work(agent: Agent) -> list[Answer]:
        agent.offline = True
        return await answers(agent, asked(), asked(image_must_stay=True))

    for answer in in_agent(work, seconds=0.0, edge=drafting(0.3)):
        assert (answer.plan, answer.worker) == (None, None)


def test_an_agent_says_that_it_plans_and_whom_it_asks() -> None:
    async def work(agent: Agent) -> Any:
        return agent.state()

    state = in_agent(work, seconds=0.0, edge=drafting(0.3))
    assert (state.plans, state.upstream, state.workers) == (True, "https://there/v1", ())


def test_a_planner_is_for_workers_or_for_an_upstream() -> None:
    upstream = Upstream("https://there/v1", model="big")
    of_worker = open_planner(
        Profiles(edge_profile="raspberry-pi-5", cloud_profile="l4", link="4g"), BUNDLE, Bundle.open(TARGET)
    )
    of_upstream = open_planner(Profiles(edge_profile="raspberry-pi-5", link="4g"), BUNDLE, None, upstream="big")
    with pytest.raises(InputError, match="by its own planner"):
        Agent(BUNDLE, worker=None, threads=1, settings=AgentSettings(upstream=upstream), planner=of_worker)
    with pytest.raises(InputError, match="by its own planner"):
        Agent(BUNDLE, worker="127.0.0.1:1", target=Bundle.open(TARGET), threads=1, planner=of_upstream)
    with pytest.raises(InputError, match="--cloud-profile is a worker's"):
        open_planner(
            Profiles(edge_profile="raspberry-pi-5", cloud_profile="l4", link="4g"), BUNDLE, None, upstream="big"
        )
    with pytest.raises(InputError, match="--edge-profile and --link"):
        open_planner(Profiles(edge_profile="raspberry-pi-5"), BUNDLE, None, upstream="big")
    assert open_planner(Profiles(), BUNDLE, None, upstream="big") is None
