"""The plot of bench/plan_accuracy.py: every prediction against its measurement, and what choices by them cost."""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cutline.bench.cuts_plot import INK, MUTED, RULE, STYLE
from cutline.bench.plan_figures import LIMITS, Result
from cutline.bench.plot_file import save_plot

COLOURS = {"edge": INK, "cloud": "#c8453b", "split": "#2f8fd3", "draft": "#e08e00", "auto": "#17a07a"}
MARKS = dict(zip(LIMITS, "osD", strict=True))


def draw(path: Path, made: Result) -> None:
    """Draw a run into the file `path`."""
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 4.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        _predictions(left, made)
        _regrets(right, made)
        save_plot(figure, path, dpi=130, metadata={"Software": None})


def _predictions(axes: Axes, made: Result) -> None:
    plans = [plan for cell in made.cells for plan in cell.plans]
    for mode, colour in COLOURS.items():
        ours = [plan for plan in plans if plan.mode == mode]
        if ours:
            spread = made.error_by_mode[mode]
            axes.plot(
                [plan.measured_ms for plan in ours],
                [plan.predicted_ms for plan in ours],
                "o",
                color=colour,
                markersize=3,
                alpha=0.7,
                markeredgewidth=0,
                label=f"{mode}: off by {spread.median:.0%}, 9 in 10 within {spread.ninth_decile:.0%}",
            )
    times = [time for plan in plans for time in (plan.measured_ms, plan.predicted_ms)]
    ends = [min(times) / 1.2, max(times) * 1.2]
    axes.plot(ends, ends, color=MUTED, linewidth=0.8)
    axes.fill_between(ends, [end * 0.75 for end in ends], [end * 1.25 for end in ends], color=RULE, linewidth=0)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured, ms", ylabel="predicted, ms")
    axes.set_title(f"Latency of {len(plans)} plans in {len(made.cells)} cells; band: 25%")
    axes.legend(loc="upper left")


def _regrets(axes: Axes, made: Result) -> None:
    """Regret of the planner's choice and of the agent's, cell by cell."""
    names = [f"{cell.link} {cell.speed:g}" for cell in made.cells]
    for limits, mark in MARKS.items():
        ours = [next(one for one in cell.choosing if one.limits == limits) for cell in made.cells]
        axes.plot([one.regret * 100 for one in ours], mark, color=COLOURS["draft"], markersize=4.5)
        axes.plot([one.auto_loss * 100 for one in ours], mark, color=COLOURS["auto"], markersize=4.5, mfc="none")
        axes.plot([], [], mark, color=MUTED, markersize=4.5, label=f"limits: {limits}")
    axes.plot([], [], "o", color=COLOURS["draft"], markersize=4.5, label="planner's choice")
    axes.plot([], [], "o", color=COLOURS["auto"], markersize=4.5, mfc="none", label="agent that plans")
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.set_title("Slower than the best measured plan, %")
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.legend(loc="best")
