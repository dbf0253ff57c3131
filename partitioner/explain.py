"""Why a plan is the best, in a sentence; where another one would be; what did not fit, and what no plan can keep to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import msgspec
import numpy as np

from cutline.core.request import Mode
from cutline.models.bundle import Precision
from cutline.partitioner.cost import Bools, memory_bytes
from cutline.partitioner.plan import Choice, Plan
from cutline.partitioner.search import Search, cost, replan, within
from cutline.partitioner.setting import Asked, Setting

MBIT = 125_000  # bytes a second in one Mbit/s
SLOWEST, FASTEST = 0.01 * MBIT, 10_000 * MBIT  # uplinks between which crossovers are looked for
_STEPS = 60  # of the walk between them
_WELL = 1.005  # a crossover's uplink is known as well as this ratio

_PARTS = {
    "prepare": "preparing the image",
    "edge": "the device's layers",
    "drafter": "drafting",
    "upload": "the upload",
    "round trips": "round trips",
    "queue": "the queue",
    "cloud prefill": "the worker's prefill",
    "decode": "decoding",
    "download": "the download",
}

_UPSTREAM_PARTS = {"cloud prefill": "the upstream's first word", "decode": "the upstream's other words"}


@dataclass(frozen=True, slots=True)
class UplinkRange:
    """The choice (an index of the search) that is best at uplinks from `low` to `high`, in bytes a second."""

    low: float
    high: float
    best: int | None


def why(search: Search, asked: Asked) -> str:
    """One sentence: what is best, what takes most of its time, and at which uplinks another plan would be best.

    There must be a best plan.
    """
    return f"{summary(search, asked)}; {_elsewhere(search, asked)}."


def summary(search: Search, asked: Asked) -> str:
    """The same without other uplinks, which take many plannings to find, and without a full stop."""
    plan = search.plan
    assert plan is not None
    part, most = max(plan.parts_ms.items(), key=lambda one: one[1])
    spent = (_PARTS | _UPSTREAM_PARTS if search.terms.upstream else _PARTS)[part]
    praise = {
        "latency": "is quickest",
        "energy": f"takes least energy, {plan.energy_j or 0:.3g} J",
        "cloud-cost": f"takes least of the cloud, {plan.cloud_ms:.3g} ms",
    }[search.objective]
    sentence = f"{_phrase(search, plan, asked)} {praise}: {plan.latency_ms:.0f} ms, {most:.0f} of them for {spent}"
    if search.limits.leak is not None and plan.cut is not None:
        sentence += f", with a leak of {search.terms.feared[search.best or 0]:.3g}"
    plain = _plain_upload(search)
    if search.terms.upstream:
        if (other := search.runner_up) is not None:
            sentence += f", against {other.latency_ms:.0f} ms for {_phrase(search, other, asked)}"
    elif plain is not None and plan.cut != "image":
        sentence += f", against {plain.latency_ms:.0f} ms for uploading the {_size(asked.image_bytes)} image"
    return f"{sentence[0].upper()}{sentence[1:]}"


def crossovers(search: Search) -> tuple[UplinkRange, ...]:
    """The best choice by uplink, all else as it is: stretches in rising order, each beginning where the last one ends.

    A stretch between two steps of the walk (a quarter apart) may be missed.
    """
    now = min(max(search.conditions.uplink, SLOWEST), FASTEST)
    rates = sorted({*np.geomspace(SLOWEST, FASTEST, _STEPS).tolist(), now})
    stretches = [UplinkRange(rates[0], rates[0], _best_at(search, rates[0]))]
    for low, high in pairwise(rates):
        best = _best_at(search, high)
        if _alike(search, best, stretches[-1].best):
            stretches[-1] = UplinkRange(stretches[-1].low, high, stretches[-1].best)
            continue
        while high / low > _WELL:
            middle = (low * high) ** 0.5
            low, high = (
                (middle, high) if _alike(search, _best_at(search, middle), stretches[-1].best) else (low, middle)
            )
        stretches[-1] = UplinkRange(stretches[-1].low, high, stretches[-1].best)
        stretches.append(UplinkRange(high, high, best))
    return tuple(stretches)


def misfit(search: Search, setting: Setting, asked: Asked) -> str | None:
    """What would be best if memory did not count, where that is another plan, and whether fewer bits a weight fit."""
    limit = search.limits.memory
    if limit is None:
        return None
    unlimited = replace(search, limits=msgspec.structs.replace(search.limits, memory=None))
    free = replan(unlimited, search.conditions).best
    if free is None or search.terms.memory[free] <= limit:
        return None
    choice = search.terms.choices[free]
    sentence = f"{_phrase(search, choice, asked)} needs {_size(search.terms.memory[free])}, {_size(limit)} are free"
    for precision in ("int8", "int4"):
        if memory_bytes(_quantized(setting, precision), asked, [choice])[0] <= limit:
            return f"{sentence}; {precision} fits"
    return f"{sentence}; no precision fits"


def refusal(search: Search) -> str:
    """Which limits no plan keeps to, and the plan that comes nearest. There must be no plan within the limits."""
    kept = within(search.terms, search.found, search.line, search.limits)
    nearest = search[_nearest(search, kept)]
    facts = [
        f"{nearest.slowest_ms:.0f} ms",
        f"{_size(nearest.bytes_up)} up",
        f"{_size(nearest.memory_bytes)} of memory",
    ]
    if nearest.energy_j is not None:
        facts.append(f"{nearest.energy_j:.3g} J")
    if search.limits.leak is not None:
        facts.append("a leak that nobody measured" if nearest.leak is None else f"a leak of {nearest.leak:.3g}")
    return f"{conflict(search)}; the nearest is {nearest}, with {', '.join(facts)}"


def conflict(search: Search) -> str:
    """The fewest limits that no plan keeps to together. There must be no plan within the limits."""
    kept = within(search.terms, search.found, search.line, search.limits)
    names = tuple(kept)
    binding = next(
        group
        for count in range(1, len(names) + 1)
        for group in combinations(names, count)
        if not np.logical_and.reduce([kept[name] for name in group]).any()
    )
    return f"no plan keeps to {' and '.join(_limit(search, name) for name in binding)}"


def _limit(search: Search, name: str) -> str:
    """A limit in words."""
    limits, whose = search.limits, "the upstream's or the target's" if search.terms.upstream else "the target's"
    return {
        "latency": f"{(limits.latency or 0) * 1e3:.3g} ms",
        "energy": f"{limits.energy or 0:.3g} J",
        "bytes_up": f"{_size(limits.bytes_up or 0)} up",
        "memory": f"{_size(limits.memory or 0)} of memory",
        "image_must_stay": "an image that stays",
        "min_cut": f"a cut at {limits.min_cut} or later",
        "exact": "exact answers",
        "agreement": f"{limits.agreement:.3g} of the answers being {whose} own",
        "leak": f"{limits.leak or 0:.3g} of a picture leaking",
    }[name]


def _nearest(search: Search, kept: dict[str, Bools]) -> int:
    """The choice that keeps to most of what can only be kept or not, and misses the figures by the least factor."""
    figures = {
        "latency": search.found.slowest,
        "energy": search.found.energy,
        "bytes_up": search.found.bytes_up,
        "memory": search.terms.memory,
        "leak": search.terms.feared,
    }
    missed, excess = np.zeros(len(search)), np.ones(len(search))
    for name, within_it in kept.items():
        if name in figures:
            excess = np.maximum(excess, figures[name] / max(getattr(search.limits, name), 1e-12))
        else:
            missed += ~within_it
    return int(np.lexsort((cost(search.found, search.objective), excess, missed))[0])


def _elsewhere(search: Search, asked: Asked) -> str:
    """Which plans are best at slower and at faster uplinks."""
    stretches = crossovers(search)
    now = min(max(search.conditions.uplink, SLOWEST), FASTEST)
    here = next(index for index, one in enumerate(stretches) if one.low <= now <= one.high)
    said = []
    for index, word, rate in ((here - 1, "below", stretches[here].low), (here + 1, "above", stretches[here].high)):
        if 0 <= index < len(stretches):
            best = stretches[index].best
            other = "no plan keeps to the limits"
            if best is not None:
                other = f"{_phrase(search, search.terms.choices[best], asked)} is"
            said.append(f"{word} {rate / MBIT:.3g} Mbit/s up {other}")
    return ", ".join(said) or "so it is at every other uplink"


def _best_at(search: Search, uplink: float) -> int | None:
    return replan(search, msgspec.structs.replace(search.conditions, uplink=uplink)).best


def _alike(search: Search, one: int | None, other: int | None) -> bool:
    """Whether two choices differ in nothing that the sentence tells."""
    if one is None or other is None:
        return one is other
    ours, theirs = search.terms.choices[one], search.terms.choices[other]
    return (ours.mode, ours.cut, ours.wire) == (theirs.mode, theirs.cut, theirs.wire)


def _plain_upload(search: Search) -> Plan | None:
    """Mode `cloud`, if it was searched."""
    index = next((index for index, one in enumerate(search.terms.choices) if one.mode == Mode.CLOUD), None)
    return None if index is None else search[index]


def _phrase(search: Search, choice: Choice, asked: Asked) -> str:
    if choice.cut is None:
        return "answering on the device alone"
    if search.terms.upstream:
        picture = f"uploading the {_size(asked.image_bytes)} image to" if asked.grids else "asking"
        where = f"{picture} the upstream"
    elif choice.cut == "image":
        where = f"uploading the {_size(asked.image_bytes)} image"
    else:
        where = f"cutting at {choice.cut} in {choice.wire}"
    if choice.mode == Mode.AUTO:
        return f"answering alone and {where} for the {1 - search.terms.kept:.0%} that the gate passes on"
    return f"{where} and drafting" if choice.mode == Mode.DRAFT else where


def _quantized(setting: Setting, precision: Precision) -> Setting:
    """The setting with both models' weights of no more bits than `precision`."""
    order = ("fp32", "int8", "int4")
    target, drafter = (
        msgspec.structs.replace(one, precision=max(one.precision, precision, key=order.index))
        for one in (setting.target, setting.drafter)
    )
    return replace(setting, target=target, drafter=drafter)


def _size(size: float) -> str:
    """Three digits and a prefix, as in 8.65 kB."""
    for prefix in ("", "k", "M"):
        if size < 999.5:
            return f"{size:.3g} {prefix}B"
        size /= 1000
    return f"{size:.3g} GB"
