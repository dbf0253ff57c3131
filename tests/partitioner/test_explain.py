"""What is said of a search is what the search finds."""

from __future__ import annotations

import itertools
import re
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutline.core.wire import Wire
from cutline.partitioner.explain import _STEPS, MAX_UPLINK, MBIT, MIN_UPLINK, crossovers, misfit, refusal, why
from cutline.partitioner.plan import Conditions, Limits, Objective
from cutline.partitioner.search import Search, replan, search

NOW = Conditions(rtt=0.05, uplink=5 * MBIT, downlink=20 * MBIT)


def searched(made: Any, *, now: Conditions = NOW, limits: Limits | None = None, **changes: Any) -> Search:
    setting = made.setting(**changes)
    return search(setting, made.asked(), made.space(setting), now, limits=limits or Limits(exact=True))


def told(search_: Search, index: int | None) -> tuple[Any, ...] | None:
    """What the sentence tells of a choice."""
    if index is None:
        return None
    choice = search_.terms.choices[index]
    return choice.mode, choice.cut, choice.wire


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_within_a_stretch_its_choice_is_the_best(made: Any, data: st.DataObject) -> None:
    setting = data.draw(made.settings)
    limits = data.draw(st.sampled_from([Limits(), Limits(exact=True), Limits(latency=0.3, exact=True)]))
    found = search(setting, made.asked(), made.space(setting), NOW, limits=limits)
    stretches = crossovers(found)
    assert stretches[0].low == MIN_UPLINK
    assert stretches[-1].high == pytest.approx(MAX_UPLINK)
    for before, after in itertools.pairwise(stretches):
        assert before.high == after.low
        assert told(found, before.best) != told(found, after.best)
    for stretch in stretches:
        # What lies between two steps of the search may be missed, as it says.
        looked_at = np.geomspace(MIN_UPLINK, MAX_UPLINK, _STEPS)
        for rate in looked_at[(looked_at >= stretch.low) & (looked_at <= stretch.high / 1.01)][:: len(stretches)]:
            there = replan(found, msgspec.structs.replace(NOW, uplink=float(rate)))
            if stretch.best is None or there.best is None:
                assert stretch.best is there.best
            else:  # another may be as good, but for rounding
                said = [index for index in range(len(found)) if told(found, index) == told(found, stretch.best)]
                costs = there.found.latency
                assert min(costs[said]) == pytest.approx(costs[there.best], rel=1e-3)


def test_the_sentence_tells_the_plan_its_time_and_the_crossovers(made: Any) -> None:
    found = searched(made, edge=1e9)
    plan = found.plan
    assert plan is not None
    assert plan.cut == "image"
    sentence = why(found, made.asked())
    assert sentence.startswith("Uploading the 9 kB image")
    assert f"{plan.latency_ms:.0f} ms" in sentence
    assert "for round trips" in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    crossings = re.findall(r"(below|above) (\S+) Mbit/s up (?:cutting at (\S+)|uploading)", sentence)
    assert crossings
    for word, rate, cut in crossings:
        factor = 0.95 if word == "below" else 1.05
        there = replan(found, msgspec.structs.replace(NOW, uplink=float(rate) * MBIT * factor)).plan
        assert there is not None
        assert there.cut == (cut or "image")
        assert told(found, found.best) != (there.mode, there.cut, there.wire)


def test_a_cut_is_weighed_against_the_plain_upload(made: Any) -> None:
    found = searched(made, now=msgspec.structs.replace(NOW, uplink=0.1 * MBIT))
    plain = next(plan for plan in found if plan.mode == "cloud")
    sentence = why(found, made.asked())
    assert sentence.startswith("Cutting at decoder.0 in fp32")
    assert f"against {plain.latency_ms:.0f} ms for uploading the 9 kB image" in sentence


def test_the_gate_and_the_device_alone_have_their_words(made: Any) -> None:
    assert "30% that the gate passes on" in why(searched(made, limits=Limits(agreement=0.9)), made.asked())
    assert why(searched(made, limits=Limits()), made.asked()).startswith("Answering on the device alone")


def test_other_objectives_say_what_they_save(made: Any) -> None:
    setting = made.setting()
    aims: dict[Objective, str] = {"energy": "least energy", "cloud-cost": "least of the cloud"}
    for objective, words in aims.items():
        found = search(setting, made.asked(), made.space(setting), NOW, limits=Limits(exact=True), objective=objective)
        assert words in why(found, made.asked())


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(latency=1e-4), "keeps to 0.1 ms;"),
        (Limits(latency=0.01, exact=True), "keeps to 10 ms and exact answers;"),
        (Limits(bytes_up=10, exact=True), "keeps to 10 B up and exact answers;"),
        (Limits(memory=1e8), "keeps to 100 MB of memory;"),
        (Limits(energy=1e-9), "keeps to 1e-09 J;"),
        (Limits(leak=0.5, exact=True), "keeps to exact answers and 0.5 of a picture leaking;"),
        (
            Limits(bytes_up=300, min_cut="decoder.1", agreement=1.0),
            "300 B up and a cut at decoder.1 or later and 1 of the answers",
        ),
        (Limits(exact=True, image_must_stay=True, bytes_up=3000), "3 kB up and exact answers"),
    ],
)
def test_limits_that_nothing_keeps_to_are_named(made: Any, limits: Limits, said: str) -> None:
    found = searched(made, limits=limits)
    assert found.plan is None
    message = refusal(found)
    assert said in message
    assert "the nearest is" in message
    assert "\n" not in message


def test_what_leaks_is_said_where_it_is_bounded(made: Any) -> None:
    leaks = {("vision.1", Wire.FLOAT32): 0.8, ("decoder.0", Wire.FLOAT32): 0.25}
    slow = msgspec.structs.replace(NOW, uplink=0.1 * MBIT)
    said = why(searched(made, now=slow, limits=Limits(exact=True, leak=0.5), leaks=leaks), made.asked())
    assert said.startswith("Cutting at decoder.0 in fp32")
    assert "with a leak of 0.25" in said
    assert "leak" not in why(searched(made, now=slow, leaks=leaks), made.asked())
    nothing = refusal(searched(made, limits=Limits(exact=True, leak=0.2), leaks=leaks))
    assert "the nearest is draft at decoder.0" in nothing
    assert "a leak of 0.25" in nothing


def test_the_nearest_plan_misses_by_least(made: Any) -> None:
    found = searched(made, limits=Limits(latency=0.01, exact=True))
    fastest = min((plan for plan in found if plan.exact), key=lambda plan: plan.slowest_ms)
    assert f"the nearest is {fastest}, with {fastest.slowest_ms:.0f} ms" in refusal(found)


def test_what_does_not_fit_is_said_with_the_precision_that_does(made: Any) -> None:
    setting = made.setting(layers=2, width=2048)
    now = msgspec.structs.replace(NOW, uplink=0.01 * MBIT)

    def said(memory: float) -> str | None:
        limits = Limits(exact=True, memory=memory, min_cut="decoder.1")
        return misfit(search(setting, made.asked(), made.space(setting), now, limits=limits), setting, made.asked())

    needed = min(
        plan.memory_bytes
        for plan in search(setting, made.asked(), made.space(setting), now, limits=Limits())
        if plan.cut == "decoder.1"
    )
    assert said(needed * 2) is None
    message = said(needed * 0.97) or ""
    assert re.search(r"needs \d+ MB, \d+ MB are free; int8 fits$", message)
    assert (said(1e8) or "").endswith("no precision fits")
