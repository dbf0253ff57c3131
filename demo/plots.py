"""The plots of a demo run's report, as inline SVG in the colours of the page around them."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from cutline.demo.questions import KINDS
from cutline.demo.results import SHOWN_MODES, DemoResult, Outcome
from cutline.edge.generation.result import Provenance

# Colours that stand for the page's CSS variables, which follow the reader's choice of dark or light.
INK, MUTED, RULE, EDGE, DRAFT, CLOUD, ON_COLOUR = (f"#fedc0{digit}" for digit in range(7))
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    EDGE: "var(--edge)",
    DRAFT: "var(--draft)",
    CLOUD: "var(--cloud)",
    ON_COLOUR: "var(--on-colour)",
}
_COLOURS = {Provenance.EDGE: EDGE, Provenance.DRAFT: DRAFT, Provenance.CLOUD: CLOUD}
_STYLE: dict[Any, object] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.titlecolor": MUTED,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.handletextpad": 0.3,
    "xtick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "ytick.left": False,
}


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot as an `<svg>` element, its title, how to read it, and what it shows in words."""

    title: str
    note: str
    words: str
    svg: str


def latency(result: DemoResult, outcomes: Sequence[Outcome]) -> Plot:
    """Every answer's latency, a row per mode."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for row, mode in enumerate(result.modes):
            found = [one.answer.latency_ms for one in outcomes if one.answer.mode is mode.mode]
            spread = np.arange(len(found)) * 0.618 % 1  # even, and the same each time
            axes.scatter(found, row + 0.12 + 0.24 * spread, s=7, color=MUTED, alpha=0.45, linewidths=0)
            axes.plot([mode.p50_ms, mode.p95_ms], [row, row], color=CLOUD, linewidth=1.2)
            axes.plot([mode.p50_ms], [row], "o", color=CLOUD, markersize=6)
            axes.plot([mode.p95_ms], [row], "|", color=CLOUD, markersize=9, markeredgewidth=1.6)
            axes.annotate(
                f"{mode.p50_ms:.0f} ms", (mode.p50_ms, row - 0.16), ha="center", va="bottom", annotation_clip=False
            )
        axes.set_xscale("log")
        times = [one.answer.latency_ms for one in outcomes]
        axes.set_xlim(min(times) * 0.6, max(times) * 1.6)  # wide enough for a tick or more
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("ms, logarithmic")
        axes.grid(axis="x")
        _rows(axes, [mode.mode for mode in result.modes])

    return _plot(
        "Latency",
        "One small dot an answer; the large dot is the median (p50), the bar the 95th percentile (p95).",
        "; ".join(f"{mode.mode}: p50 {mode.p50_ms:.0f} ms, p95 {mode.p95_ms:.0f} ms" for mode in result.modes),
        draw,
    )


def upload(result: DemoResult) -> Plot:
    """What goes up the link, and how often."""
    names = [mode.mode for mode in result.modes]

    def draw(figure: Figure) -> None:
        size, share = figure.subplots(1, 2, sharey=True)
        _bars(size, [mode.bytes_up for mode in result.modes], "{:,.0f}", title="bytes up a request")
        _bars(share, [mode.offloaded for mode in result.modes], "{:.0%}", title="requests offloaded")
        _rows(size, names)

    return _plot(
        "Uplink",
        "Bytes sent to the worker, as a mean over all requests, and the share of requests that asked it at all.",
        "; ".join(f"{mode.mode}: {mode.bytes_up:,.0f} bytes, {mode.offloaded:.0%} offloaded" for mode in result.modes),
        draw,
    )


def right_by_kind(result: DemoResult) -> Plot:
    """The two models alone, by kind of question."""
    target, drafter = result.target.right_by_kind, result.drafter.right_by_kind
    kinds = [kind for kind in KINDS if kind in target and kind in drafter]

    def draw(figure: Figure) -> None:
        axes, rows = figure.subplots(), range(len(kinds))
        axes.hlines(rows, [target[kind] for kind in kinds], [drafter[kind] for kind in kinds], color=RULE, linewidth=2)
        axes.plot(
            [target[kind] for kind in kinds], rows, "o", color=CLOUD, fillstyle="none", markersize=9, label="target"
        )
        axes.plot([drafter[kind] for kind in kinds], rows, "D", color=EDGE, markersize=4.5, label="drafter")
        axes.set_xlim(-0.03, 1.03)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(axis="x")
        figure.legend(loc="outside upper left", ncols=2)
        _rows(axes, kinds)

    return _plot(
        "Right answers by kind of question",
        "Each model alone: the ring is the target, the diamond the drafter.",
        "; ".join(f"{kind}: target {target[kind]:.0%}, drafter {drafter[kind]:.0%}" for kind in kinds),
        draw,
    )


def sources(outcomes: Sequence[Outcome]) -> Plot:
    """Provenance of every token, by mode."""
    counts = {
        mode: Counter(token.source for one in outcomes if one.answer.mode is mode for token in one.answer.tokens)
        for mode in SHOWN_MODES
    }
    shares = {mode: {source: found[source] / found.total() for source in Provenance} for mode, found in counts.items()}

    def draw(figure: Figure) -> None:
        axes, rows = figure.subplots(), range(len(shares))
        start = np.zeros(len(shares))
        for source in Provenance:
            widths = np.array([share[source] for share in shares.values()])
            axes.barh(rows, widths, left=start, height=0.55, color=_COLOURS[source], label=source)
            for row in np.flatnonzero(widths >= 0.1):
                axes.annotate(
                    f"{source} {widths[row]:.0%}" if widths[row] >= 0.25 else f"{widths[row]:.0%}",
                    (start[row] + widths[row] / 2, row),
                    ha="center",
                    va="center",
                    color=ON_COLOUR,
                )
            start += widths
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        figure.legend(loc="outside upper left", ncols=3, handlelength=1)
        _rows(axes, list(shares))

    return _plot(
        "Where the tokens came from",
        "Share of all answers' tokens: edge (the drafter's), draft (drafted, confirmed by the target), cloud.",
        "; ".join(
            f"{mode}: " + ", ".join(f"{share[source]:.0%} {source}" for source in Provenance if share[source])
            for mode, share in shares.items()
        ),
        draw,
    )


def _bars(axes: Axes, values: Sequence[float], form: str, *, title: str) -> None:
    bars = axes.barh(range(len(values)), values, height=0.45, color=CLOUD)
    axes.bar_label(bars, [form.format(value) for value in values], padding=3, color=INK)
    axes.set_title(title, loc="left")
    axes.set_xlim(0, max(*values, 1e-9) * 1.4)  # room for the labels
    axes.xaxis.set_visible(False)
    axes.spines.bottom.set_visible(False)
    axes.axvline(0, color=RULE, linewidth=1)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _plot(title: str, note: str, words: str, draw: Callable[[Figure], None]) -> Plot:
    file = io.StringIO()
    with rc_context(_STYLE | {"svg.hashsalt": title}):
        figure = Figure(figsize=(3.9, 2.5), layout="constrained")
        draw(figure)
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]  # XML's own header has no place in a page
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # Matplotlib's names repeat from plot to plot
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return Plot(title, note, words, svg)
