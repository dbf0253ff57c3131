"""The plots of a demo run's report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from cutline.demo.questions import KINDS
from cutline.demo.results import SHOWN_MODES, DemoResult, Outcome
from cutline.edge.generation.result import Provenance
from cutline.evaluation.drawing import CLOUD, DRAFT, EDGE, MUTED, ON_COLOUR, RULE, Plot, bars, draw_plot, name_rows

_COLOURS = {Provenance.EDGE: EDGE, Provenance.DRAFT: DRAFT, Provenance.CLOUD: CLOUD}


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
        name_rows(axes, [mode.mode for mode in result.modes])

    return draw_plot(
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
        bars(size, [mode.bytes_up for mode in result.modes], "{:,.0f}", title="bytes up a request")
        bars(share, [mode.offloaded for mode in result.modes], "{:.0%}", title="requests offloaded")
        name_rows(size, names)

    return draw_plot(
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
        name_rows(axes, kinds)

    return draw_plot(
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
        name_rows(axes, list(shares))

    return draw_plot(
        "Where the tokens came from",
        "Share of all answers' tokens: edge (the drafter's), draft (drafted, confirmed by the target), cloud.",
        "; ".join(
            f"{mode}: " + ", ".join(f"{share[source]:.0%} {source}" for source in Provenance if share[source])
            for mode, share in shares.items()
        ),
        draw,
    )
