"""A gate in words: what each group of requests is kept by, and how populations of the data fared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from cutline.core.agreement.shares import interval
from cutline.edge.generation.gate import Gate, Group, Population, whose
from cutline.edge.inference.familiarity import ALARM, Familiarity, fewest_pictures

if TYPE_CHECKING:
    from rich.console import Console


def show_gate(console: Console, gate: Gate) -> None:
    """Print what the gate does, a line a group and a line for each population in it."""
    views = populations_of(gate)
    for name, group in gate.groups.items():
        more = _populations(views[name]) if name in views else ()
        for line in (f"{name}: {_line(group)}", *more):
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def pictures_told(pictures: Familiarity | None) -> str:
    """What is said of the pictures that are familiar to a gate."""
    if pictures is None:
        return (
            f"unfamiliar pictures are kept as others are; to tell them takes {fewest_pictures(ALARM)} pictures or more"
        )
    return (
        f"pictures unlike the calibration's are passed on, and of those like them {pictures.alarm:.1%} at most, as "
        f"{len(pictures.distances)} of them tell"
    )


class SeenShare(msgspec.Struct, frozen=True):
    """A share of which `found` of `count` were seen, and its exact interval of 95%."""

    found: int
    count: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.found} of {self.count} ({self.low:.1%} to {self.high:.1%})"


class PopulationView(msgspec.Struct, frozen=True):
    """Of a population the share kept, and that of those which differ; None where none is kept."""

    kept: SeenShare
    differ: SeenShare | None


class PopulationsView(msgspec.Struct, frozen=True):
    """How the populations in a group of requests fared, and the largest differences of both shares between two."""

    populations: dict[str, PopulationView]
    bias_kept: float
    bias_differ: float


def populations_of(gate: Gate) -> dict[str, PopulationsView]:
    """How populations fared, by groups of requests: the open ones that have any."""
    return {name: view_of(group) for name, group in gate.groups.items() if group.is_open and group.populations}


def view_of(group: Group) -> PopulationsView:
    """How the populations in one group fared."""
    views = {name: _view(one) for name, one in group.populations.items()}
    kept = [one.kept / one.requests for one in group.populations.values()]
    differ = [one.disagreed / one.kept for one in group.populations.values() if one.kept]
    return PopulationsView(views, max(kept) - min(kept), max(differ) - min(differ) if differ else 0.0)


def _view(one: Population) -> PopulationView:
    return PopulationView(_share(one.kept, one.requests), _share(one.disagreed, one.kept) if one.kept else None)


def _line(group: Group) -> str:
    if group.is_open:
        return (
            f"keeps answers of confidence {group.threshold:.4f} and more, {group.kept} of {group.requests}, of which "
            f"{group.disagreed} differ from {whose(group.against)}, by {group.agree} (promised: "
            f"{group.risk:.1%} at most)"
        )
    more = "more of them would not help" if group.needs is None else f"about {group.needs} more are needed to open it"
    return f"closed, every answer will be verified; {group.requests} samples, {more}"


def _populations(view: PopulationsView) -> Iterator[str]:
    for name, one in view.populations.items():
        differ = "" if one.differ is None else f", of which {one.differ} differ"
        yield f"  {name}: {one.kept} kept{differ}"
    yield f"  bias: {view.bias_kept:.1%} between the shares kept, {view.bias_differ:.1%} between those that differ"


def _share(found: int, count: int) -> SeenShare:
    return SeenShare(found, count, *interval(found, count))
