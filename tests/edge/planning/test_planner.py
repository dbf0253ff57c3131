"""What the agent plans, in worlds played out by the planner's own model."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest

from cutline.core.conversation import ImagePart, Message, TextPart
from cutline.core.conversation import question as ask_about
from cutline.core.request import Mode, Request
from cutline.core.sampling import Sampling
from cutline.core.wire import Wire
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.devices.link import LinkProfile
from cutline.devices.profile import Compute, DeviceProfile
from cutline.edge.generation.conditions import PLAIN
from cutline.edge.generation.detokenizer import Transcript
from cutline.edge.generation.gate import open_gate
from cutline.edge.generation.generation import Generation, Prepared
from cutline.edge.generation.preprocess import Preparer
from cutline.edge.planning.plan_inputs import setting_of
from cutline.edge.planning.plan_result import Chosen
from cutline.edge.planning.planner import Planner
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.prompt import PromptBuilder
from cutline.models.vocabulary import Vocabulary
from cutline.partitioner.cost import terms_of
from cutline.partitioner.plan import Conditions, Limits, Space
from cutline.partitioner.predict import predict
from cutline.partitioner.search import search
from cutline.partitioner.setting import GateRates, Setting
from cutline.protos.messages import Opened

CUTS = Bundle.open(TARGET).manifest.line.layers
REQUESTS = list(requests(Split.EVALUATION, 2, seed=11))


def machine(name: str, speed: float, **figures: Any) -> DeviceProfile:
    return DeviceProfile(
        **{
            "name": name,
            "source": "measured",
            "date": datetime.date(2026, 1, 1),
            "memory_bytes": 8e9,
            "memory_bandwidth": speed / 4,
            "compute": Compute(fp32=speed),
            "overhead_seconds": 10e-6,
            "preprocess_seconds": 1e-3,
            **figures,
        }
    )


def demo(**changes: Any) -> Setting:
    """The demo's models on a small device and a quick worker."""
    setting = Setting(
        drafter=Bundle.open(DRAFTER).manifest,
        target=Bundle.open(TARGET).manifest,
        edge=machine("device", 2e10),
        cloud=machine("worker", 2e12),
        gate=GateRates(kept=0.5, agreed=0.98),
        prices={(cut, wire): 1.0 for cut in CUTS for wire in Wire},
        leaks={("vision.2", Wire.FLOAT32): 0.75, ("decoder.0", Wire.FLOAT32): 0.25},
    )
    made = replace(setting, **changes)
    return replace(made, gates={} if made.gate is None else {PLAIN: made.gate})


def link(**figures: Any) -> LinkProfile:
    told = {"name": "a link", "rtt_ms": 40.0, "uplink_mbps": 10.0, "downlink_mbps": 40.0}
    return LinkProfile(**{**told, "source": "measured", "reference": "none", **figures})


def prepared(index: int = 0, **options: Any) -> Prepared:
    request = REQUESTS[index]
    question = Request.about(request.image, request.question.text, mode=Mode.AUTO, **options)
    bundle = Bundle.open(DRAFTER)
    image = decode_image(request.image)
    pixels = bundle.manifest.family.preprocess(image)
    prompt = PromptBuilder.open(bundle).build([ask_about(question.text)], [pixels.grid]).ids
    return Prepared(question, (image,), (pixels,), prompt, prompt, min(question.max_tokens or 100, 100))


@dataclass
class World:
    """Answers plans: over a link of its own, on machines `slower` than predicted by so much a mode."""

    planner: Planner
    now: Conditions
    tokens: int = 6
    slower: dict[str, float] = field(default_factory=dict)
    setting: Setting = field(default_factory=demo)

    def plan(self, **options: Any) -> Chosen:
        return self.planner.plan(prepared(**options), ready=CUTS)

    def answer(self, *, cold: bool = False, **options: Any) -> Chosen:
        """Plan a request and carry it out; the gate keeps nothing."""
        asked = prepared(**options)
        chosen = self.planner.plan(asked, ready=CUTS)
        plan, way = chosen.plan, chosen.execution
        effort = 1.0 if plan.drafting is None else plan.drafting.effort
        space = Space(modes=(plan.mode,), cuts=(way.cut,), wires=(way.wire,), efforts=(effort,))
        setting = self.setting
        if setting.gate is not None:
            setting = replace(setting, gate=replace(setting.gate, kept=0.0))
        terms = terms_of(setting, replace(chosen.asked, answer_tokens=self.tokens), space)
        latency = float(predict(terms, self.now).latency[0]) * self.slower.get(plan.mode, 1.0)
        progress = Generation(
            0.0, Transcript(Vocabulary.open(Bundle.open(DRAFTER))), tokens=[9] * self.tokens, cold=cold
        )
        size = round(float(terms.upload[0]))
        upload = (size - 300) / self.now.uplink
        progress.sent = [(5.0, 300), (5.0, size - 300)]
        answered = 300 / self.now.uplink + self.now.rtt + upload + setting.overheads.session
        progress.opened = (5.0 + answered, Opened("it", upload_seconds=upload))
        self.planner.learn(chosen, asked, progress, latency)
        return chosen

    def answers(self, count: int, **options: Any) -> list[Chosen]:
        return [self.answer(**options) for _ in range(count)]


def world(setting: Setting | None = None, *, over: LinkProfile | None = None, **told: Any) -> World:
    """A world whose planner was told of a link; it is as told unless it is `over` another."""
    setting, clock = setting or demo(), Ticks()
    planner = Planner(setting, link(**told), clock=clock)
    return World(planner, Conditions.over(over or link(**told)), setting=setting)


class Ticks:
    """A clock that goes on by a second whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_the_first_plan_is_the_best_of_all_that_may_be_chosen() -> None:
    setting = demo()
    chosen = world(setting).plan()
    assert chosen.conditions.rtt == pytest.approx(0.04)
    assert chosen.conditions.uplink == pytest.approx(10 * 125_000)
    assert chosen.correction == 1.0
    every = search(
        setting,
        replace(chosen.asked, prompt_tokens=chosen.asked.prompt_tokens),
        Space(modes=(Mode.CLOUD, Mode.SPLIT, Mode.DRAFT, Mode.AUTO), cuts=CUTS),
        chosen.conditions,
        limits=Limits(agreement=0.9),
    )
    best = min(plan.latency_ms for plan in every if plan.agreement is not None and plan.agreement >= 0.9)
    assert chosen.plan.latency_ms == pytest.approx(best, rel=0.04), "but for loaded graphs and alike prompts"
    assert (chosen.execution.mode, chosen.execution.cut) == (chosen.plan.mode, chosen.plan.cut)
    assert str(round(chosen.plan.latency_ms)) in chosen.why


def test_never_the_drafter_alone() -> None:
    """The device alone would be quickest by far, and nobody would have said that its answer may stand."""
    useless = demo(gate=None, cloud=machine("slow worker", 1e9), edge=machine("quick device", 1e13))
    chosen = world(useless, rtt_ms=900.0, uplink_mbps=0.01).plan()
    assert chosen.plan.mode in ("cloud", "split", "draft")


def several(*indices: int) -> Prepared:
    """A question about the images of so many requests."""
    message = Message("user", (*[ImagePart()] * len(indices), TextPart("Which one?")))
    asked = Request(messages=(message,), images=tuple(REQUESTS[index].image for index in indices), exact=True)
    bundle = Bundle.open(DRAFTER)
    return Preparer(bundle.manifest, PromptBuilder.open(bundle), None, planned=True).prepare(asked)


def test_the_sizes_of_all_images_count() -> None:
    here = world()
    one, two, none = (here.planner.plan(several(*which), ready=CUTS) for which in ((0,), (0, 7), ()))
    assert [len(chosen.asked.grids) for chosen in (one, two, none)] == [1, 2, 0]
    assert two.asked.prompt_tokens > one.asked.prompt_tokens > none.asked.prompt_tokens
    assert two.asked.image_bytes > one.asked.image_bytes > none.asked.image_bytes == 0
    assert two.plan.latency_ms > one.plan.latency_ms > none.plan.latency_ms > 0.0
    # A question without an image has nothing to gain by a cut before the decoder: its words are all that crosses.
    space = Space(modes=(Mode.SPLIT,), cuts=("vision.0", "decoder.0"), wires=(Wire.FLOAT32,))
    terms = terms_of(demo(), none.asked, space)
    assert terms.upload.max() < 400
    assert terms.edge_prefill.max() < 1e-3


@pytest.mark.parametrize(("known", "cut"), [(("image",), "image"), (("vision.1",), "vision.1")])
def test_what_the_worker_keeps_costs_nothing_to_send(known: tuple[str, ...], cut: str) -> None:
    """Over a link that takes seconds for either, the way on which it keeps the image is the best one."""
    here = world(demo(prices=None), uplink_mbps=0.02)

    def keeps(at: str, wire: Wire) -> int:
        del wire
        return int(at in known)

    anew = here.planner.plan(several(0), ready=CUTS)
    chosen = here.planner.plan(several(0), ready=CUTS, known=keeps)
    assert chosen.execution.cut == cut
    assert chosen.plan.bytes_up < anew.plan.bytes_up / 3
    assert chosen.plan.latency_ms < anew.plan.latency_ms / 2
    # The second of two images is still to be sent, and small as it is rather both as files than its rows.
    both, half = (here.planner.plan(several(0, 7), ready=CUTS, known=one) for one in (lambda *_: 0, keeps))
    assert (chosen.plan.bytes_up < half.plan.bytes_up < both.plan.bytes_up) == (cut == "image")
    assert half.plan.bytes_up <= both.plan.bytes_up


def test_hindsight_knows_what_was_not_sent() -> None:
    here, asked = world(uplink_mbps=0.02), several(0)
    for cut in ("image", "vision.1"):
        chosen = here.planner.plan(asked, ready=CUTS, known=lambda at, wire, only=cut: int(at == only))  # type: ignore[misc]
        assert chosen.execution.cut == cut
        progress = Generation(0.0, Transcript(Vocabulary.open(Bundle.open(DRAFTER))), tokens=[9] * 4, cold=True)
        progress.sent, progress.reused_images = [(5.0, 300)], 1
        progress.opened = (5.2, Opened("it", kept=True))
        latency = chosen.plan.latency_ms / 1e3
        assert here.planner.learn(chosen, asked, progress, latency) == pytest.approx(latency, rel=0.5)


def test_an_answer_whose_worker_was_lost_teaches_nothing() -> None:
    here, asked = world(uplink_mbps=100.0), prepared()
    chosen, before = here.planner.plan(asked, ready=CUTS), here.planner._live
    progress = Generation(0.0, Transcript(Vocabulary.open(Bundle.open(DRAFTER))), tokens=[9] * 60)
    assert here.planner.learn(chosen, asked, progress, 100.0, whole=False) > 0.0
    assert here.planner._live is before
    here.planner.learn(chosen, asked, progress, 100.0)
    assert here.planner._live is not before


@pytest.mark.parametrize("exact", [True, False])
def test_the_plan_follows_the_link(exact: bool) -> None:
    """Told of a quick link that has become slow, the agent sends less, and more again once it is quick."""
    here = world(uplink_mbps=1000.0, rtt_ms=5.0)
    quick = here.answers(4, exact=exact)[-1]
    here.now = Conditions.over(link(uplink_mbps=0.05, rtt_ms=5.0))
    slow = here.answers(6, exact=exact)[-1]
    assert slow.conditions.uplink == pytest.approx(0.05 * 125_000, rel=0.3)
    assert slow.plan.bytes_up < quick.plan.bytes_up
    assert (slow.plan.cut, slow.plan.wire, slow.plan.mode) != (quick.plan.cut, quick.plan.wire, quick.plan.mode)
    told = world(uplink_mbps=0.05, rtt_ms=5.0).plan(exact=exact)
    assert (slow.plan.cut, slow.plan.wire) == (told.plan.cut, told.plan.wire), "as if it had been told"
    here.now = Conditions.over(link(uplink_mbps=1000.0, rtt_ms=5.0))
    again = here.answers(8, exact=exact)[-1]
    assert again.plan.latency_ms < 2 * quick.plan.latency_ms


@pytest.mark.parametrize("factor", [0.4, 1.6, 3.0])
def test_predictions_that_are_off_by_a_factor_are_corrected(factor: float) -> None:
    here = world()
    here.slower = dict.fromkeys(("cloud", "split", "draft", "auto"), factor)
    # One mode alone: of several that are off, those that were tried less look better, and are tried.
    chosen = here.answers(60, exact=True, effort=0.5)[-1]
    assert chosen.plan.mode == "draft"
    assert chosen.correction == pytest.approx(factor, rel=0.1)
    told = chosen.forecast(hindsight=0.1, measured=0.2, cold=False)
    assert told.predicted_ms == pytest.approx(told.uncorrected_ms * told.correction)


def test_a_mode_that_is_slower_than_it_should_be_is_left() -> None:
    here = world()
    first = here.plan(exact=True)
    here.slower = {first.plan.mode: 4.0}
    modes = {chosen.plan.mode for chosen in here.answers(12, exact=True)[-3:]}
    assert first.plan.mode not in modes


def test_a_cold_answer_teaches_nothing_of_time() -> None:
    here = world(over=link(rtt_ms=900.0))
    here.slower = dict.fromkeys(("cloud", "split", "draft", "auto"), 4.0)
    for _ in range(5):
        here.answer(cold=True)
    chosen = here.plan()
    assert chosen.correction == 1.0
    assert chosen.conditions.rtt == pytest.approx(0.04)
    assert chosen.asked.answer_tokens == pytest.approx(here.tokens, abs=1), "yet of lengths"


def test_the_gates_live_record_counts() -> None:
    here = world(demo(gate=GateRates(kept=0.95, agreed=0.98), edge=machine("device", 5e8)), rtt_ms=300.0)
    assert here.plan().plan.mode == "auto"
    assert here.answers(80)[-1].plan.mode != "auto", "it keeps nothing here, and drafting first only costs"


LIMITS: list[tuple[dict[str, Any], Callable[[Chosen], bool]]] = [
    ({"exact": True}, lambda one: one.plan.exact and one.plan.mode != "auto"),
    ({"image_must_stay": True}, lambda one: CUTS.index(one.execution.cut) > CUTS.index("vision.0")),
    ({"exact": True, "image_must_stay": True}, lambda one: one.plan.exact and one.execution.cut != "image"),
    ({"max_latency_ms": 500.0}, lambda one: one.plan.slowest_ms <= 500.0),
    ({"min_agreement": 1.0}, lambda one: one.plan.agreement == 1.0),
    ({"max_leak": 0.5}, lambda one: (one.execution.cut, one.plan.leak) == ("decoder.0", 0.25)),
    ({"sampling": Sampling(temperature=0.7)}, lambda one: one.plan.mode != "auto"),
    ({"effort": 0.5}, lambda one: one.plan.drafting is not None and one.plan.drafting.effort == 0.5),
]


@pytest.mark.threat("inversion")
@pytest.mark.parametrize(("options", "holds"), LIMITS, ids=lambda one: str(one) if isinstance(one, dict) else "")
@pytest.mark.parametrize("uplink", [0.05, 1.0, 1000.0])
def test_plans_keep_to_what_is_asked(options: dict[str, Any], holds: Callable[[Chosen], bool], uplink: float) -> None:
    assert holds(world(uplink_mbps=uplink, rtt_ms=20.0).plan(**options))


def test_limits_that_no_plan_keeps_to() -> None:
    with pytest.raises(InputError, match=r"no plan keeps to 1 ms; the nearest is"):
        world().plan(max_latency_ms=1.0)
    with pytest.raises(InputError, match=r"no plan keeps to .* of memory"):
        world(demo(edge=machine("device", 2e10, memory_free_bytes=1e6))).plan()


def test_formats_whose_price_is_not_known_are_not_tried() -> None:
    slow: dict[str, Any] = {"uplink_mbps": 0.05, "rtt_ms": 5.0}
    assert world(demo(gate=None), **slow).plan().execution.wire is not Wire.FLOAT32
    assert world(demo(gate=None, prices=None), **slow).plan().execution.wire is Wire.FLOAT32
    target = msgspec.structs.replace(Bundle.open(TARGET).manifest, precision="int8")
    unpriced = world(demo(gate=None, prices=None, target=target, cloud=machine("worker", 1e9)), **slow).plan()
    assert unpriced.execution.cut not in target.line.deep_cuts
    bad = {(cut, wire): 1.0 if wire is Wire.FLOAT32 else 0.5 for cut in CUTS for wire in Wire}
    assert world(demo(gate=None, prices=bad), **slow).plan().execution.wire is Wire.FLOAT32
    assert world(demo(gate=None, prices=bad), **slow).plan(min_agreement=0.4).execution.wire is not Wire.FLOAT32


def test_graphs_that_are_loaded_decide_between_plans_that_are_alike() -> None:
    here = world(exact := demo(gate=None))
    assert exact.gate is None
    best = here.planner.plan(prepared(), ready=CUTS)
    others = [cut for cut in CUTS if cut != best.execution.cut]
    kept = here.planner.plan(prepared(), ready=others)
    assert kept.plan.latency_ms <= best.plan.latency_ms * 1.03 + 1e-6


def test_a_device_that_is_held_back_is_planned_as_one() -> None:
    held: list[bool | None] = [True]
    answers = threading.Event()
    hot = demo(edge=machine("device", 2e10, sustained=0.25))

    def read() -> bool | None:
        answers.wait(30)
        return held[0]

    planner = Planner(hot, link(), throttled=read, clock=(clock := Ticks()))
    cool = planner.plan(prepared(exact=True), ready=CUTS)
    assert not cool.throttled, "no request waits for a sensor"
    answers.set()

    def settled(wanted: bool) -> Chosen:
        for _ in range(200):
            clock.now += 20.0
            chosen = planner.plan(prepared(exact=True), ready=CUTS)
            if chosen.throttled is wanted:
                return chosen
            time.sleep(0.01)
        pytest.fail("the sensor was never heard")

    slow = settled(True)
    assert slow.plan.parts_ms["prepare"] > 2 * cool.plan.parts_ms["prepare"]
    assert slow.plan.latency_ms > cool.plan.latency_ms
    held[0] = None
    assert settled(False).plan.latency_ms == pytest.approx(cool.plan.latency_ms, rel=0.1)


def test_sensors_are_left_alone_where_they_would_change_nothing() -> None:
    def read() -> bool | None:
        raise AssertionError("asked in vain")

    Planner(demo(), link(), throttled=read).plan(prepared(), ready=CUTS)


def test_many_kinds_of_requests_do_not_fill_the_memory() -> None:
    planner = Planner(demo(), link())
    asked = prepared()
    for index in range(150):
        other = replace(asked, prompt=asked.prompt * (1 + index % 40), limit=1 + index)
        planner.plan(replace(other, request=msgspec.structs.replace(asked.request, effort=1 - index / 300)), ready=())
    assert planner._searches.size <= 64


def test_acceptance_begins_as_the_pair_was_calibrated() -> None:
    assert world().plan().conditions.acceptance == pytest.approx(0.8)
    assert world(demo(acceptance=0.3)).plan().conditions.acceptance == pytest.approx(0.3)
    drafter = Bundle.open(DRAFTER)
    found = setting_of(drafter, Bundle.open(TARGET), edge="raspberry-pi-5", cloud="l4")
    assert found.acceptance == open_gate(drafter).groups[PLAIN].foreseen
    bare = Bundle(drafter.path, msgspec.structs.replace(drafter.manifest, calibration=None), drafter.part)
    assert setting_of(bare, Bundle.open(TARGET), edge="raspberry-pi-5", cloud="l4").acceptance is None
