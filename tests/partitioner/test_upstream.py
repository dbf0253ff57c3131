"""An upstream in the worker's place: three ways to answer by formulas of their own, and the best of them found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutline.core.request import Mode
from cutline.models.costs import request_sizes
from cutline.partitioner.cost import AGENT_BYTES, EVENT_BYTES, memory_bytes, served, terms_of
from cutline.partitioner.explain import refusal, summary
from cutline.partitioner.plan import Choice, Conditions, Limits, Objective, Plan, Space
from cutline.partitioner.predict import predict
from cutline.partitioner.roofline import Speed, drafter_speed
from cutline.partitioner.search import Search, search
from cutline.partitioner.setting import Asked, GateRates, Setting

unhurried = settings(deadline=None, max_examples=60)

SPACE = Space(cuts=("image", "vision.0", "decoder.0"))
NOW = Conditions(rtt=0.05, uplink=1e6, downlink=4e6)
speeds = st.builds(Speed, first=st.floats(1e-3, 20.0), token=st.floats(1e-5, 0.5))
limits = st.builds(
    Limits,
    latency=st.none() | st.floats(1e-2, 10.0),
    energy=st.none() | st.floats(1e-2, 30.0),
    bytes_up=st.none() | st.floats(1e2, 1e6),
    image_must_stay=st.booleans(),
    exact=st.just(False) | st.booleans(),
    agreement=st.sampled_from([0.0, 0.6, 0.9, 1.0]),
    leak=st.none() | st.floats(0, 1),
)


def expected(setting: Setting, asked: Asked, now: Conditions, speed: Speed) -> dict[str, dict[str, float]]:
    """Means a request of each way to answer, from a request's life: no plan of the partitioner is in it."""
    sizes = request_sizes(setting.drafter, asked.grids, asked.prompt_tokens)
    drafter = drafter_speed(setting.edge, setting.drafter, sizes, context=asked.prompt_tokens + asked.answer_tokens / 2)
    begin = setting.overheads.request + (setting.edge.preprocess_seconds or 0.0)
    alone = begin + drafter.first + (asked.answer_tokens - 1) * drafter.token
    sent = 150 + 4 * -(-asked.image_bytes // 3) + 75 + 4 * (asked.prompt_tokens - sizes.image_tokens)

    def asking(tokens: int) -> float:
        up = (sent + 160 + 28) / now.uplink
        lost = now.rtt * (1 - (1 - now.loss) ** -((sent + 160 + 28) // -1460))
        down = (52 + 9 + 42) / now.downlink
        server = now.queue + speed.first + (tokens - 1) * speed.token
        return up + lost + now.rtt + server + down + setting.overheads.session + setting.overheads.closing

    ways = {
        "edge": {"latency": alone, "slowest": alone, "sent": 0.0, "server": 0.0, "leak": 0.0},
        "cloud": {
            "latency": begin + asking(asked.answer_tokens),
            "slowest": begin + asking(asked.answer_tokens),
            "sent": sent,
            "server": speed.first + (asked.answer_tokens - 1) * speed.token,
            "leak": 1.0,
        },
    }
    if (gate := setting.gate) is not None:
        ways["edge"]["agreement"] = gate.kept * gate.agreed
        passed = max(1, min(round(asked.answer_tokens * gate.longer), 1024 - asked.prompt_tokens))
        longer = max(0, passed - asked.answer_tokens) * drafter.token
        ways["auto"] = {
            "latency": alone + (1 - gate.kept) * asking(passed),
            "slowest": alone + longer + asking(passed),
            "sent": (1 - gate.kept) * sent,
            "server": (1 - gate.kept) * (speed.first + (passed - 1) * speed.token),
            "leak": 1.0,
            "agreement": gate.kept * gate.agreed + 1 - gate.kept,
        }
    for way in ways.values():
        busy = begin if way is ways["cloud"] else alone
        watts = (setting.edge.idle_watts or 0.0, setting.edge.loaded_watts or 0.0)
        way["energy"] = watts[0] * way["latency"] + (watts[1] - watts[0]) * min(busy, way["latency"])
    ways["edge"].setdefault("agreement", 0.0)
    ways["cloud"]["agreement"] = 1.0
    return ways


def keeps(way: dict[str, float], mode: str, bounds: Limits) -> bool:
    return (
        (bounds.latency is None or way["slowest"] <= bounds.latency)
        and (bounds.energy is None or way["energy"] <= bounds.energy)
        and (bounds.bytes_up is None or way["sent"] <= bounds.bytes_up)
        and (mode == "edge" or not bounds.image_must_stay)
        and not bounds.exact
        and way["agreement"] >= bounds.agreement
        and (bounds.leak is None or way["leak"] <= bounds.leak)
    )


def found(made: Any, data: st.DataObject, bounds: Limits, objective: Objective = "latency") -> tuple[Search, Any]:
    speed = data.draw(speeds)
    setting = replace(data.draw(made.settings), cloud=speed)
    asked, now = data.draw(made.questions), data.draw(made.conditions)
    return search(setting, asked, SPACE, now, limits=bounds, objective=objective), expected(setting, asked, now, speed)


@unhurried
@given(data=st.data())
def test_every_way_to_answer_costs_what_its_parts_do(made: Any, data: st.DataObject) -> None:
    plans, ways = found(made, data, Limits())
    assert {plan.mode for plan in plans} == set(ways)
    for plan in plans:
        way = ways[plan.mode]
        assert (plan.cut, plan.wire, plan.drafting) == (None if plan.mode == "edge" else "image", None, None)
        assert plan.latency_ms / 1e3 == pytest.approx(way["latency"])
        assert plan.slowest_ms / 1e3 == pytest.approx(way["slowest"])
        assert sum(plan.parts_ms.values()) == pytest.approx(plan.latency_ms)
        assert plan.bytes_up == pytest.approx(way["sent"])
        assert plan.cloud_ms / 1e3 == pytest.approx(way["server"])
        assert plan.energy_j == pytest.approx(way["energy"])
        assert plan.agreement == pytest.approx(way["agreement"])
        assert (plan.leak, plan.exact) == (way["leak"], False)


@pytest.mark.threat("inversion")
@unhurried
@given(data=st.data(), bounds=limits, objective=st.sampled_from(get_args(Objective)))
def test_the_best_within_the_limits_is_found(
    made: Any, data: st.DataObject, bounds: Limits, objective: Objective
) -> None:
    plans, ways = found(made, data, bounds, objective)
    figure = {"latency": "latency", "energy": "energy", "cloud-cost": "server"}[objective]
    order = sorted((way[figure], mode) for mode, way in ways.items() if keeps(way, mode, bounds))
    if not order:
        assert plans.plan is None
        assert plans.runner_up is None
        assert refusal(plans).startswith("no plan keeps to")
        return
    assert plans.plan is not None
    assert ways[plans.plan.mode][figure] == pytest.approx(order[0][0])
    assert keeps(ways[plans.plan.mode], plans.plan.mode, bounds)
    if len(order) == 1:
        assert plans.runner_up is None
    else:
        second = plans.runner_up
        assert second is not None
        assert second.mode != plans.plan.mode
        assert ways[second.mode][figure] == pytest.approx(order[1][0])


@unhurried
@given(data=st.data(), other=speeds)
def test_another_speed_is_as_if_it_had_been_known(made: Any, data: st.DataObject, other: Speed) -> None:
    setting, asked = data.draw(made.settings), data.draw(made.questions)
    known, guessed = (terms_of(replace(setting, cloud=one), asked, SPACE) for one in (other, Speed(1.0, 0.02)))
    now = data.draw(made.conditions)
    one, two = predict(known, now), predict(served(guessed, other), now)
    for figure in ("latency", "ttft", "slowest", "cloud", "energy", "bytes_up", "bytes_down"):
        assert getattr(one, figure) == pytest.approx(getattr(two, figure)), figure


def test_nobody_verifies_what_was_drafted(made: Any) -> None:
    """However well the drafter foresees it, an upstream decodes every token of its answer."""
    setting = replace(made.setting(), cloud=Speed(0.5, 0.1))
    plans = [
        list(search(setting, made.asked(answer_tokens=21), SPACE, one, limits=Limits()))
        for one in (msgspec.structs.replace(NOW, acceptance=share) for share in (0.0, 1.0))
    ]
    assert plans[0] == plans[1]
    cloud, auto = (next(plan for plan in plans[0] if plan.mode == mode) for mode in ("cloud", "auto"))
    assert cloud.parts_ms["decode"] == pytest.approx(20 * 100)
    assert auto.parts_ms["decode"] == pytest.approx(0.3 * 20 * 100)
    assert cloud.rounds == 1
    assert cloud.bytes_down == pytest.approx(52 + 21 * EVENT_BYTES)


def test_memory_is_the_drafters(made: Any) -> None:
    setting = replace(made.setting(), cloud=Speed(1.0, 0.02))
    choices = [Choice(mode=Mode.EDGE), Choice(mode=Mode.CLOUD, cut="image"), Choice(mode=Mode.AUTO, cut="image")]
    memory = memory_bytes(setting, made.asked(), choices)
    assert set(memory) == {memory[0]}
    assert memory[0] > AGENT_BYTES


def told(made: Any, speed: Speed, *, images: bool = True, **bounds: Any) -> tuple[Plan | None, str]:
    setting, asked = replace(made.setting(), cloud=speed), made.asked()
    if not images:
        asked = replace(asked, grids=(), image_bytes=0)
    plans = search(setting, asked, SPACE, NOW, limits=Limits(**bounds))
    return plans.plan, summary(plans, asked)


def test_the_sentence_tells_what_else_there_was(made: Any) -> None:
    slow = replace(made.setting(), cloud=Speed(3.0, 0.02), gate=GateRates(kept=0.7, agreed=0.98))
    plans = {plan.mode: plan for plan in search(slow, made.asked(), SPACE, NOW, limits=Limits())}
    _, gated = told(made, Speed(3.0, 0.02), agreement=0.9)
    assert gated == (
        "Answering alone and uploading the 9 kB image to the upstream for the 30% that the gate passes on is quickest: "
        f"{plans[Mode.AUTO].latency_ms:.0f} ms, {0.3 * 3000:.0f} of them for the upstream's first word, "
        f"against {plans[Mode.CLOUD].latency_ms:.0f} ms for uploading the 9 kB image to the upstream"
    )
    plan, alone = told(made, Speed(3.0, 0.02))
    assert plan is not None
    assert plan.mode == "edge"
    assert alone.startswith("Answering on the device alone is quickest")
    _, words = told(made, Speed(0.001, 0.1), agreement=1.0, images=False)
    assert words.startswith("Asking the upstream is quickest")
    assert "for the upstream's other words" in words
    assert "against" not in words, "nothing else is the upstream's answer every time"
