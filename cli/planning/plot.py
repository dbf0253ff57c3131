"""The plot of a search: latency by part against the cut, and the best plan over a plane of round trip and uplink."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from cutline.core.storage.files import write_file
from cutline.partitioner.explain import MBIT
from cutline.partitioner.plan import PARTS, Choice
from cutline.partitioner.search import Search, replan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RTTS = (1.0, 1000.0)  # ms
UPLINKS = (0.1, 1000.0)  # Mbit/s
_STEPS = 48  # on each side of the plane
_COLOURS = (
    "#4e79a7", "#f28e2b", "#76b7b2", "#59a14f", "#e15759", "#b07aa1", "#9c755f", "#edc948", "#bab0ac", "#ff9da7",
    "#86bcb6", "#d37295", "#a0cbe8", "#8cd17d", "#fabfd2", "#d7b5a6",
)  # fmt: skip
_NAMED = 20  # bars that can stand beside each other with a name each
_GREY = "#d9d9d9"


def draw(search: Search, path: Path) -> None:
    """Draw a search that has found a plan into the file `path`. Raises as `write_file` where it cannot be written."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "plan"}):
        figure = Figure(figsize=(12, 5), layout="constrained")
        parts, plane = figure.subplots(1, 2, width_ratios=(3, 2))
        _parts(parts, search)
        _plane(plane, search)
        drawn, form = io.BytesIO(), path.suffix[1:].lower()
        figure.savefig(drawn, format=form, metadata={"Date": None} if form == "svg" else None, dpi=150)
    write_file(path, drawn.getvalue())


def _parts(axes: Axes, search: Search) -> None:
    """The quickest plan within the limits at each cut, its latency stacked by part."""
    places = search.terms.place
    shown = []
    for place in np.unique(places):
        allowed = np.flatnonzero((places == place) & search.allowed)
        if len(allowed):
            shown.append(search[int(allowed[np.argmin(search.found.latency[allowed])])])
    below = np.zeros(len(shown))
    for part, colour in zip(PARTS, _COLOURS, strict=False):
        heights = np.array([plan.parts_ms[part] for plan in shown])
        if heights.any():
            axes.bar(range(len(shown)), heights, bottom=below, width=0.7, color=colour, label=part)
        below += heights
    names = [_name(plan) for plan in shown]
    every = math.ceil(len(names) / _NAMED)
    axes.set_xticks(range(0, len(names), every), names[::every], rotation=45, ha="right", rotation_mode="anchor")
    axes.set_ylabel("ms")
    uplink = search.conditions.uplink / MBIT
    axes.set_title(
        f"The quickest plan at each cut: {search.conditions.rtt * 1e3:g} ms, {uplink:g} Mbit/s up", loc="left"
    )
    axes.set_ylim(0, max(below) * 1.3)  # room for the legend
    axes.legend(frameon=False, fontsize=8, ncols=5, loc="upper left")


def _plane(axes: Axes, search: Search) -> None:
    """Which plan is best at each round trip and uplink; grey where none keeps to the limits."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    rtts, uplinks = np.geomspace(*RTTS, _STEPS), np.geomspace(*UPLINKS, _STEPS)
    names: dict[str | None, int] = {}
    best = np.empty((_STEPS, _STEPS))
    for row, uplink in enumerate(uplinks):
        for column, rtt in enumerate(rtts):
            there = msgspec.structs.replace(search.conditions, rtt=rtt / 1e3, uplink=uplink * MBIT)
            index = replan(search, there).best
            name = None if index is None else _name(search.terms.choices[index])
            best[row, column] = names.setdefault(name, len(names))
    colours = [_GREY if name is None else _COLOURS[index % len(_COLOURS)] for name, index in names.items()]
    axes.pcolormesh(
        rtts, uplinks, best, cmap=ListedColormap(colours), vmin=-0.5, vmax=len(names) - 0.5, rasterized=True
    )
    here = (search.conditions.rtt * 1e3, search.conditions.uplink / MBIT)
    axes.plot(*here, "o", color="black", markersize=7, fillstyle="none")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("round trip, ms")
    axes.set_ylabel("uplink, Mbit/s")
    axes.set_title("The best plan", loc="left")
    handles = [Patch(color=colour, label=name or "none") for name, colour in zip(names, colours, strict=True)]
    axes.figure.legend(handles=handles, frameon=False, fontsize=8, loc="outside right upper")


def _name(choice: Choice) -> str:
    return " ".join(filter(None, (choice.mode, choice.cut, choice.wire)))
