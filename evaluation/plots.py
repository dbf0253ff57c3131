"""The plots of an evaluation's report."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cutline.core.request import Mode
from cutline.evaluation.drawing import CLOUD, DRAFT, EDGE, MUTED, RULE, Plot, bars, draw_plot, name_rows
from cutline.evaluation.figures import ModeFigures

MARKS = {Mode.EDGE: ("D", EDGE), Mode.CLOUD: ("o", CLOUD), Mode.DRAFT: ("s", DRAFT)}  # others are muted


def right(modes: Mapping[Mode, ModeFigures], name: str) -> Plot:
    """Every mode's score, with its interval."""
    known = {mode: figures.score for mode, figures in modes.items() if figures.score is not None}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for row, found in enumerate(known.values()):
            axes.plot([found.low, found.high], [row, row], color=CLOUD, linewidth=1.2)
            axes.plot([found.value], [row], "o", color=CLOUD, markersize=6)
        axes.grid(axis="x")
        name_rows(axes, list(known))

    return draw_plot(
        "Right answers",
        f"The score ({name}) of each mode, with its 95% interval.",
        "; ".join(f"{mode}: {found.value:.3f} ({found.low:.3f} to {found.high:.3f})" for mode, found in known.items()),
        draw,
    )


def cost(modes: Mapping[Mode, ModeFigures]) -> Plot:
    """How long answers take, and what goes up the link."""

    def draw(figure: Figure) -> None:
        time, size = figure.subplots(1, 2, sharey=True)
        bars(time, [one.p50_ms for one in modes.values()], "{:,.0f}", title="ms, p50")
        bars(size, [one.bytes_up for one in modes.values()], "{:,.0f}", title="bytes up a question")
        name_rows(time, list(modes))

    return draw_plot(
        "Time and uplink",
        "The median of the whole answer's time, and bytes sent, as a mean over all questions.",
        "; ".join(f"{mode}: {one.p50_ms:.0f} ms, {one.bytes_up:.0f} bytes" for mode, one in modes.items()),
        draw,
    )


def reliability(modes: Mapping[Mode, ModeFigures]) -> Plot | None:
    """How sure the drafter was, and how right the answers were; None where nobody said how sure."""
    known = {mode: [one for one in figures.reliability if one is not None] for mode, figures in modes.items()}
    known = {mode: found for mode, found in known.items() if found}
    if not known:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=RULE, linewidth=1)
        for mode, found in known.items():
            mark, colour = MARKS.get(mode, ("^", MUTED))
            axes.plot(
                [one.confidence for one in found],
                [one.score for one in found],
                mark,
                linestyle="-",
                color=colour,
                label=mode,
                markersize=4.5,
            )
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel("confidence")
        axes.grid()
        figure.legend(loc="outside upper left", ncols=3)

    errors = {mode: modes[mode].calibration_error or 0.0 for mode in known}
    return draw_plot(
        "Reliability",
        "The drafter's confidence, in ten bins, and the score of the answers in each: on the line both are equal.",
        "; ".join(f"{mode}: expected calibration error {error:.3f}" for mode, error in errors.items()),
        draw,
    )
