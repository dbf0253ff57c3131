"""How plots are drawn: as inline SVG in the colours of the page around them."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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


def bars(axes: Axes, values: Sequence[float], form: str, *, title: str) -> None:
    """A bar for each of `values` with its figure behind it, in this form."""
    drawn = axes.barh(range(len(values)), values, height=0.45, color=CLOUD)
    axes.bar_label(drawn, [form.format(value) for value in values], padding=3, color=INK)
    axes.set_title(title, loc="left")
    axes.set_xlim(0, max(*values, 1e-9) * 1.4)  # room for the labels
    axes.xaxis.set_visible(False)
    axes.spines.bottom.set_visible(False)
    axes.axvline(0, color=RULE, linewidth=1)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def draw_plot(title: str, note: str, words: str, draw: Callable[[Figure], None]) -> Plot:
    """The plot that `draw` makes of an empty figure."""
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
