"""Explains a plan: why it is best, at which uplinks another one is, what did not fit, and which limits conflict."""

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
MIN_UPLINK, MAX_UPLINK = 0.01 * MBIT, 10_000 * MBIT  # the range of the search for crossovers
_STEPS = 60  # of the search between them
_PRECISION = 1.005  # ratio within which a crossover's uplink is found

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
    """The index of the choice that is best at uplinks from `low` to `high`, in bytes a second; None if none is."""

    low: float
    high: float
    best: int | None


def why(search: Search, asked: Asked) -> str:
    """One sentence on a search with a best plan: the plan, its largest part, and the uplinks where another is best."""
    return f"{summary(search, asked)}; {_elsewhere(search, asked)}."


def summary(search: Search, asked: Asked) -> str:
    """The sentence of `why` without other uplinks, which take many searches to find, and without a full stop."""
    plan = search.plan
    assert plan is not None
    part, largest = max(plan.parts_ms.items(), key=lambda item: item[1])
    spent = (_PARTS | _UPSTREAM_PARTS if search.terms.upstream else _PARTS)[part]
    praise = {
        "latency": "is quickest",
        "energy": f"takes least energy, {plan.energy_j or 0:.3g} J",
        "cloud-cost": f"takes least of the cloud, {plan.cloud_ms:.3g} ms",
    }[search.objective]
    sentence = f"{_phrase(search, plan, asked)} {praise}: {plan.latency_ms:.0f} ms, {largest:.0f} of them for {spent}"
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
    """The best choice by uplink, all else equal: adjacent ranges in rising order.

    A range that lies between two steps of the search (a quarter apart) may be missed.
    """
    now = min(max(search.conditions.uplink, MIN_UPLINK), MAX_UPLINK)
    rates = sorted({*np.geomspace(MIN_UPLINK, MAX_UPLINK, _STEPS).tolist(), now})
    ranges = [UplinkRange(rates[0], rates[0], _best_at(search, rates[0]))]
    for low, high in pairwise(rates):
        best = _best_at(search, high)
        if _same(search, best, ranges[-1].best):
            ranges[-1] = UplinkRange(ranges[-1].low, high, ranges[-1].best)
            continue
        while high / low > _PRECISION:
            middle = (low * high) ** 0.5
            low, high = (middle, high) if _same(search, _best_at(search, middle), ranges[-1].best) else (low, middle)
        ranges[-1] = UplinkRange(ranges[-1].low, high, ranges[-1].best)
        ranges.append(UplinkRange(high, high, best))
    return tuple(ranges)


def misfit(search: Search, setting: Setting, asked: Asked) -> str | None:
    """Which better plan the memory limit excludes, if any, and whether it would fit with quantized weights."""
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
    """Which limits no plan meets, and the nearest plan, for a search without a plan within the limits."""
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
    """The smallest set of limits that no plan meets, for a search without a plan within the limits."""
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
    """A limit as text."""
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
    """The choice that meets most of the yes-or-no limits, and then exceeds the numeric ones by the least factor."""
    figures = {
        "latency": search.found.slowest,
        "energy": search.found.energy,
        "bytes_up": search.found.bytes_up,
        "memory": search.terms.memory,
        "leak": search.terms.feared,
    }
    missed, excess = np.zeros(len(search)), np.ones(len(search))
    for name, met in kept.items():
        if name in figures:
            excess = np.maximum(excess, figures[name] / max(getattr(search.limits, name), 1e-12))
        else:
            missed += ~met
    return int(np.lexsort((cost(search.found, search.objective), excess, missed))[0])


def _elsewhere(search: Search, asked: Asked) -> str:
    """Which plans are best at slower and faster uplinks."""
    ranges = crossovers(search)
    now = min(max(search.conditions.uplink, MIN_UPLINK), MAX_UPLINK)
    here = next(index for index, known in enumerate(ranges) if known.low <= now <= known.high)
    phrases = []
    for index, word, rate in ((here - 1, "below", ranges[here].low), (here + 1, "above", ranges[here].high)):
        if 0 <= index < len(ranges):
            best = ranges[index].best
            other = "no plan keeps to the limits"
            if best is not None:
                other = f"{_phrase(search, search.terms.choices[best], asked)} is"
            phrases.append(f"{word} {rate / MBIT:.3g} Mbit/s up {other}")
    return ", ".join(phrases) or "so it is at every other uplink"


def _best_at(search: Search, uplink: float) -> int | None:
    return replan(search, msgspec.structs.replace(search.conditions, uplink=uplink)).best


def _same(search: Search, first: int | None, second: int | None) -> bool:
    """Whether two choices have the same mode, cut and format, which is all that the sentence has of them."""
    if first is None or second is None:
        return first is second
    a, b = search.terms.choices[first], search.terms.choices[second]
    return (a.mode, a.cut, a.wire) == (b.mode, b.cut, b.wire)


def _plain_upload(search: Search) -> Plan | None:
    """The plan of mode `cloud`, if it is among the choices."""
    modes = [choice.mode for choice in search.terms.choices]
    index = modes.index(Mode.CLOUD) if Mode.CLOUD in modes else None
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
    """The setting with the weights of both models in at most the bits of `precision`."""
    order = ("fp32", "int8", "int4")
    target, drafter = (
        msgspec.structs.replace(model, precision=max(model.precision, precision, key=order.index))
        for model in (setting.target, setting.drafter)
    )
    return replace(setting, target=target, drafter=drafter)


def _size(size: float) -> str:
    """A size as text with three digits, such as 8.65 kB."""
    for prefix in ("", "k", "M"):
        if size < 999.5:
            return f"{size:.3g} {prefix}B"
        size /= 1000
    return f"{size:.3g} GB"
