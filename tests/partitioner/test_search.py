"""The search against an enumeration of its own, and what must hold of any search."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutline.core.request import DRAFT_CHUNK, Mode
from cutline.core.wire import Wire
from cutline.errors import InputError
from cutline.models.costs import layer_costs, request_sizes
from cutline.partitioner.cost import AGENT_BYTES, memory_bytes
from cutline.partitioner.plan import PARTS, Choice, Conditions, Drafting, Limits, Objective, Plan
from cutline.partitioner.search import Search, replan, search
from cutline.partitioner.setting import Setting

unhurried = settings(deadline=None, max_examples=60)  # a machine with other work on it stumbles

limits = st.builds(
    Limits,
    latency=st.none() | st.floats(1e-3, 3.0),
    energy=st.none() | st.floats(1e-3, 10.0),
    bytes_up=st.none() | st.floats(1e2, 1e6),
    memory=st.none() | st.floats(1.1e8, 1.2e8),
    image_must_stay=st.booleans(),
    min_cut=st.sampled_from([None, "image", "connector", "decoder.0", "head"]),
    exact=st.booleans(),
    agreement=st.sampled_from([0.0, 0.9, 0.97, 1.0]),
    leak=st.none() | st.floats(0, 1),
)
objectives: st.SearchStrategy[Objective] = st.sampled_from(get_args(Objective))


def found(made: Any, data: st.DataObject, **given_: Any) -> tuple[Setting, Any, Search]:
    setting = given_.get("setting") or data.draw(made.settings)
    asked = data.draw(made.questions)
    search_ = search(
        setting,
        asked,
        made.space(setting),
        data.draw(made.conditions),
        limits=given_.get("limits") or data.draw(limits),
        objective=given_.get("objective") or data.draw(objectives),
    )
    return setting, asked, search_


def keeps(plan: Plan, limits: Limits, layers: tuple[str, ...]) -> bool:
    """Whether a plan keeps to the limits, told one by one."""
    place = len(layers) if plan.cut is None else layers.index(plan.cut)
    return (
        (limits.latency is None or plan.slowest_ms / 1e3 <= limits.latency)
        and (limits.energy is None or (plan.energy_j or 0) <= limits.energy)
        and (limits.bytes_up is None or plan.bytes_up <= limits.bytes_up)
        and (limits.memory is None or plan.memory_bytes <= limits.memory)
        and not (limits.image_must_stay and plan.cut in ("image", "vision.0"))
        and (limits.min_cut is None or place >= layers.index(limits.min_cut))
        and not (limits.exact and not plan.exact)
        and (plan.agreement is None or plan.agreement >= limits.agreement)
        and (limits.leak is None or (1.0 if plan.leak is None else plan.leak) <= limits.leak)
    )


def leaked(setting: Setting, choice: Choice) -> float | None:
    """What a choice leaks, looked up format by format from the narrowest that may stand for it."""
    if choice.cut is None or choice.wire is None:
        return 0.0 if choice.cut is None else 1.0
    measured, rungs = setting.leaks or {}, [[Wire.INT4], [Wire.INT8], [Wire.FLOAT16, Wire.BFLOAT16], [Wire.FLOAT32]]
    own = next(index for index, rung in enumerate(rungs) if choice.wire in rung)
    for rung in [[choice.wire], *rungs[own + 1 :]]:
        known = [measured[choice.cut, wire] for wire in rung if (choice.cut, wire) in measured]
        if known:
            return max(known)
    return None


def value(plan: Plan, objective: Objective) -> float:
    return {"latency": plan.latency_ms, "energy": plan.energy_j or 0, "cloud-cost": plan.cloud_ms}[objective]


@pytest.mark.threat("inversion")
@unhurried
@given(data=st.data())
def test_no_plan_within_the_limits_is_better(made: Any, data: st.DataObject) -> None:
    setting, _, search_ = found(made, data)
    layers = setting.target.line.layers
    within = [plan for plan in search_ if keeps(plan, search_.limits, layers)]
    if not within:
        assert search_.plan is None
        return
    assert search_.plan is not None
    assert keeps(search_.plan, search_.limits, layers)
    best = min(value(plan, search_.objective) for plan in within)
    assert value(search_.plan, search_.objective) == pytest.approx(best)
    ranked = list(search_.ranked())
    assert ranked[0] == search_.plan
    assert len(ranked) == len(within)
    costs = [value(plan, search_.objective) for plan in ranked]
    assert costs == sorted(costs)


@unhurried
@given(data=st.data())
def test_what_leaks_is_what_was_measured(made: Any, data: st.DataObject) -> None:
    setting, _, search_ = found(made, data, limits=Limits(leak=data.draw(st.floats(0, 1))))
    for plan, allowed in zip(search_, search_.allowed, strict=True):
        assert plan.leak == leaked(setting, plan)
        if setting.leaks is None and plan.cut is not None:
            assert allowed == (search_.limits.leak == 1.0), "nothing is promised that nobody measured"


def test_every_mode_cut_format_and_effort_is_searched_once(made: Any) -> None:
    setting = made.setting()
    layers, deep = setting.target.line.layers, setting.target.line.deep_cuts
    expected = {Choice(mode=Mode.EDGE), Choice(mode=Mode.CLOUD, cut="image")}
    for cut, wire in itertools.product(layers, Wire):
        form = None if cut == "image" else wire
        if form:
            expected.add(Choice(mode=Mode.SPLIT, cut=cut, wire=form))
        for mode, effort in itertools.product(("draft", "auto"), (1.0,) if cut in deep else (1.0, 0.5, 0.0)):
            expected.add(Choice(mode=mode, cut=cut, wire=form, drafting=Drafting(DRAFT_CHUNK, effort)))  # type: ignore[arg-type]
    now = Conditions(rtt=0.05, uplink=1e6, downlink=1e6)
    choices = search(setting, made.asked(), made.space(setting), now, limits=Limits()).terms.choices
    assert len(choices) == len(expected)
    assert set(choices) == expected


@unhurried
@given(data=st.data())
def test_the_front_is_what_no_plan_beats(made: Any, data: st.DataObject) -> None:
    _, _, search_ = found(made, data, limits=Limits(min_cut=data.draw(st.sampled_from([None, "decoder.0"]))))
    costs = {
        index: (plan.latency_ms, plan.bytes_up, plan.cloud_ms, plan.energy_j)
        for index, plan in enumerate(search_)
        if search_.allowed[index]
    }

    def beats(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
        return all(a <= b for a, b in zip(one, other, strict=True)) and one != other

    expected = {index for index, cost in costs.items() if not any(beats(other, cost) for other in costs.values())}
    assert set(search_.front()) == expected


@unhurried
@given(data=st.data(), faster=st.floats(1, 100))
def test_a_better_link_never_makes_the_best_plan_slower(made: Any, data: st.DataObject, faster: float) -> None:
    _, _, before = found(made, data, limits=Limits(), objective="latency")
    now = before.conditions
    better = {"uplink": now.uplink * faster, "downlink": now.downlink * faster, "rtt": now.rtt / faster}
    better |= {"loss": now.loss / faster, "queue": now.queue / faster}
    for name, value_ in better.items():
        after = replan(before, msgspec.structs.replace(now, **{name: value_}))
        slower = after.found.latency - before.found.latency
        assert (slower <= 1e-9 + 1e-7 * before.found.latency).all(), name


@unhurried
@given(data=st.data())
def test_planning_anew_is_what_a_new_search_finds(made: Any, data: st.DataObject) -> None:
    setting, asked, before = found(made, data)
    now = data.draw(made.conditions)
    again = replan(before, now)
    anew = search(setting, asked, made.space(setting), now, limits=before.limits, objective=before.objective)
    assert again.best == anew.best
    assert list(again) == list(anew)


@unhurried
@given(data=st.data())
def test_every_figure_makes_sense(made: Any, data: st.DataObject) -> None:
    _, _, search_ = found(made, data, limits=Limits())
    for field in fields(search_.found):
        assert (getattr(search_.found, field.name) >= -1e-12).all(), field.name
    for plan in search_:
        assert sum(plan.parts_ms.values()) == pytest.approx(plan.latency_ms)
        assert set(plan.parts_ms) == set(PARTS)
        assert plan.ttft_ms <= plan.latency_ms * (1 + 1e-9)
        assert plan.slowest_ms >= plan.latency_ms * (1 - 1e-9)
        assert plan.exact == (plan.mode in ("cloud", "split", "draft") and plan.wire in (None, Wire.FLOAT32))


def test_racing_costs_no_more_than_decoding_and_effort_trades_latency_for_cloud_time(made: Any) -> None:
    setting = made.setting()
    now = Conditions(rtt=0.05, uplink=1e6, downlink=1e6, acceptance=0.6)
    plans = list(search(setting, made.asked(answer_tokens=40), made.space(setting), now, limits=Limits()))
    for cut in ("image", "vision.1", "decoder.0"):
        here = [plan for plan in plans if plan.cut == cut and plan.wire in (None, Wire.FLOAT32)]
        alone = next(plan for plan in here if plan.mode in ("cloud", "split"))
        raced = [plan for plan in here if plan.mode == "draft"]
        assert raced[0].latency_ms <= alone.latency_ms
        assert [plan.drafting.effort for plan in raced if plan.drafting] == [1.0, 0.5, 0.0]
        assert raced[0].latency_ms <= raced[1].latency_ms <= raced[2].latency_ms
        assert raced[0].cloud_ms >= raced[1].cloud_ms >= raced[2].cloud_ms


def test_one_round_trip_a_token_inside_the_decoder_and_one_a_rejection_with_drafts(made: Any) -> None:
    setting = made.setting()
    now = Conditions(rtt=1.0, uplink=1e9, downlink=1e9, acceptance=0.9)
    plans = list(search(setting, made.asked(answer_tokens=21), made.space(setting), now, limits=Limits()))
    split, draft = (
        next(plan for plan in plans if plan.mode == mode and plan.cut == "decoder.1") for mode in ("split", "draft")
    )
    assert split.rounds == pytest.approx(21)
    assert split.parts_ms["round trips"] == pytest.approx(21_000, rel=0.01)
    assert draft.rounds == pytest.approx(1 + 20 * 0.1)
    assert draft.parts_ms["round trips"] == pytest.approx(3_000, rel=0.01)


def test_the_gate_is_asked_only_for_its_share(made: Any) -> None:
    setting = made.setting()
    now = Conditions(rtt=0.5, uplink=1e6, downlink=1e6)
    plans = list(search(setting, made.asked(), made.space(setting), now, limits=Limits()))
    edge = next(plan for plan in plans if plan.mode == "edge")
    auto = next(plan for plan in plans if plan.mode == "auto" and plan.cut == "image")
    assert auto.latency_ms == pytest.approx(0.7 * edge.latency_ms + 0.3 * auto.slowest_ms)
    assert auto.agreement == pytest.approx(0.7 * 0.98 + 0.3)
    assert edge.agreement == pytest.approx(0.7 * 0.98)


def test_prices_say_which_narrow_formats_agree_enough(made: Any) -> None:
    prices = {("connector", Wire.INT8): 0.99, ("connector", Wire.INT4): 0.5}
    setting = made.setting(prices=prices)
    now = Conditions(rtt=0.05, uplink=1e4, downlink=1e6)
    found_ = search(
        setting,
        made.asked(),
        replace(made.space(setting), modes=(Mode.SPLIT,)),
        now,
        limits=Limits(agreement=0.95, min_cut="connector"),
    )
    allowed = {(plan.cut, plan.wire) for plan in found_.ranked()}
    assert ("connector", Wire.INT8) in allowed
    assert ("connector", Wire.INT4) not in allowed
    assert ("head", Wire.INT4) in allowed  # nobody measured it


def test_a_quantized_device_part_is_not_exact_inside_the_decoder(made: Any) -> None:
    setting = made.setting(target=made.manifest("target", precision="int4"))
    now = Conditions(rtt=0.05, uplink=1e6, downlink=1e6)
    plans = list(search(setting, made.asked(), made.space(setting), now, limits=Limits(exact=True)).ranked())
    assert {plan.cut for plan in plans} & set(setting.target.line.deep_cuts) == set()
    assert {plan.cut for plan in plans} >= {"image", "vision.0", "decoder.0"}


@unhurried
@given(data=st.data())
def test_memory_is_weights_and_caches_of_what_runs_on_the_device(made: Any, data: st.DataObject) -> None:
    setting = data.draw(made.settings)
    asked = data.draw(made.questions)
    tokens = asked.prompt_tokens + asked.answer_tokens
    names = setting.target.line.layers
    cut = data.draw(st.sampled_from(names))
    layers = layer_costs(setting.target)[: names.index(cut)]
    extra = sum(4 * layer.parameters + tokens * layer.kv_bytes_per_token for layer in layers)
    cloud, split = memory_bytes(
        setting, asked, [Choice(mode=Mode.CLOUD, cut="image"), Choice(mode=Mode.SPLIT, cut=cut)]
    )
    assert split - cloud == pytest.approx(extra)


def test_the_drafter_is_held_in_every_mode(made: Any) -> None:
    setting, asked = made.setting(), made.asked(prompt_tokens=40, answer_tokens=12)
    drafter = sum(4 * layer.parameters + 52 * layer.kv_bytes_per_token for layer in layer_costs(setting.drafter))
    choices = [Choice(mode=Mode.EDGE), Choice(mode=Mode.CLOUD, cut="image"), Choice(mode=Mode.SPLIT, cut="image")]
    assert memory_bytes(setting, asked, choices) == pytest.approx(AGENT_BYTES + drafter)


def test_energy_needs_a_profile_with_power(made: Any) -> None:
    setting = made.setting(edge=made.profile(loaded_watts=None, idle_watts=None))
    now = Conditions(rtt=0.05, uplink=1e6, downlink=1e6)
    for more in ({"objective": "energy", "limits": Limits()}, {"limits": Limits(energy=1.0)}):
        with pytest.raises(InputError, match="has no power"):
            search(setting, made.asked(), made.space(setting), now, **more)
    found_ = search(setting, made.asked(), made.space(setting), now, limits=Limits())
    assert all(plan.energy_j is None for plan in found_)
    assert found_.front()


def test_nothing_to_choose_from(made: Any) -> None:
    setting = made.setting(gate=None)
    now = Conditions(rtt=0.05, uplink=1e6, downlink=1e6)
    with pytest.raises(InputError, match="nothing to choose from"):
        search(setting, made.asked(), replace(made.space(setting), modes=(Mode.AUTO,)), now, limits=Limits())


def test_sizes_of_a_request_follow_from_the_family(made: Any) -> None:
    target = made.manifest("target")
    sizes = request_sizes(target, [(0, 0)], 40)
    assert (sizes.patches, sizes.seen, sizes.image_tokens, sizes.tokens) == (64, 64, 16, 40)
    assert np.isfinite([layer.prefill_flops(sizes) for layer in layer_costs(target)]).all()
