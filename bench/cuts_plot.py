"""The plot of bench/cuts.py: latency over each link, bytes up and memory, against the cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cutline.bench.plot_file import save_plot

if TYPE_CHECKING:
    from cutline.bench.cuts import Cells

INK, MUTED, RULE = "#1d1f23", "#5d626b", "#dddad4"
COLOURS = ("#2f8fd3", "#e08e00", "#17a07a")  # of the manners of asking
STYLE: dict[Any, object] = {
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "xtick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.color": RULE,
    "ytick.labelcolor": MUTED,
}


def draw(path: Path, cuts: Sequence[str], links: Mapping[str, Cells], memory: Mapping[str, int]) -> None:
    """Draw what was measured into the file `path`; `memory` in bytes."""
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 3.2 * ((len(links) + 3) // 2)), layout="constrained")
        panels = list(figure.subplots((len(links) + 3) // 2, 2, sharex=True).flat)
        for axes, (link, cells) in zip(panels, links.items(), strict=False):
            _lines(axes, cuts, {way: one.latency_ms for way, one in cells.items()})
            axes.set_title(f"Mean latency over {link}, ms")
            axes.set_ylim(0)
        sent, held, *others = panels[len(links) :]
        first = next(iter(links.values()))
        _lines(sent, cuts, {way: one.bytes_up / 1e3 for way, one in first.items()})
        sent.set_title("Bytes up a question, kB")
        sent.set_ylim(0)
        held.bar(range(len(cuts)), [memory[cut] / 1e6 for cut in cuts], color=MUTED, width=0.6)
        held.set_title("Resident memory of a process with the layers before the cut, MB")
        for axes in (sent, held):
            axes.set_xticks(range(len(cuts)), cuts, rotation=40, ha="right", rotation_mode="anchor")
        for axes in others:
            axes.remove()
        figure.legend(*sent.get_legend_handles_labels(), loc="outside upper right", ncols=3)
        save_plot(figure, path, dpi=130, metadata={"Software": None})


def _lines(axes: Axes, cuts: Sequence[str], values: Mapping[tuple[str, str], float]) -> None:
    manners = dict.fromkeys(manner for manner, _ in values)
    for manner, colour, line in zip(manners, COLOURS, ("o-", "o-", "o:"), strict=True):  # the last may hide another
        heights = [values[manner, cut] for cut in cuts]
        axes.plot(range(len(cuts)), heights, line, color=colour, markersize=3.5, linewidth=1.4, label=manner)
