"""A gate in words: what each group of requests is kept by, and how populations of the data fared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from cutline.core.agreement.shares import interval
from cutline.edge.generation.gate import Gate, Group, Population, whose

if TYPE_CHECKING:
    from rich.console import Console


def show_gate(console: Console, gate: Gate) -> None:
    """Print what the gate does, a line a group and a line for each population in it."""
    for name, group in gate.groups.items():
        for line in (f"{name}: {_line(group)}", *_populations(group)):
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def bias(populations: Mapping[str, Population]) -> tuple[float, float]:
    """The largest difference between two populations: of the share kept, and of the share of those that differ."""
    kept = [one.kept / one.requests for one in populations.values()]
    differ = [one.disagreed / one.kept for one in populations.values() if one.kept]
    return max(kept) - min(kept), max(differ) - min(differ) if differ else 0.0


def _line(group: Group) -> str:
    if group.is_open:
        return (
            f"keeps answers of confidence {group.threshold:.4f} and more, {group.kept} of {group.requests}, of which "
            f"{group.disagreed} differ from {whose(group.against)}, by {group.agree} (promised: "
            f"{group.risk:.1%} at most)"
        )
    more = "more of them would not help" if group.needs is None else f"about {group.needs} more are needed to open it"
    return f"closed, every answer will be verified; {group.requests} samples, {more}"


def _populations(group: Group) -> Iterator[str]:
    """How those in an open group fared: nothing is kept of any in a closed one."""
    if not group.populations or not group.is_open:
        return
    for name, one in group.populations.items():
        differ = f", of which {_share(one.disagreed, one.kept)} differ" if one.kept else ""
        yield f"  {name}: {_share(one.kept, one.requests)} kept{differ}"
    kept, differ_by = bias(group.populations)
    yield f"  bias: {kept:.1%} between the shares kept, {differ_by:.1%} between those that differ"


def _share(found: int, count: int) -> str:
    low, high = interval(found, count)
    return f"{found} of {count} ({low:.1%} to {high:.1%})"
