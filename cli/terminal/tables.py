"""Tables as people see them: no figure is ever cut off.

Rich shortens what does not fit. Here a table that is wider than the terminal becomes a list, a block for each row; in a
pipe or a file it is as wide as it needs to be.
"""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_ANY = 10_000  # columns, in which every table fits


def show_table(console: Console, table: Table) -> None:
    """Print `table`, whose cells are text."""
    needed = Measurement.get(console, console.options.update(width=_ANY), table).maximum
    if needed <= console.width:
        console.print(table)
    elif not console.is_terminal:
        Console(file=console.file, width=needed, force_terminal=False, highlight=False).print(table)
    else:
        _show_list(console, table)


def _show_list(console: Console, table: Table) -> None:
    if table.title:
        console.print(table.title, style="italic", markup=False, soft_wrap=True)
    headings = [" ".join(str(column.header).split()) for column in table.columns]
    indent = max(map(len, headings[1:]), default=0) + 2
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        first, *others = (str(cell) for cell in cells)
        console.print(first, style="bold", markup=False, highlight=False, soft_wrap=True)
        for heading, value in zip(headings[1:], others, strict=True):
            if value:
                line = Text.assemble(("  " + heading.ljust(indent), "dim"), value)
                console.print(line, highlight=False, soft_wrap=True)


def amount(number: float, unit: str = "") -> str:
    """Three digits and a prefix: 1234567 is 1.23 M."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if number < 999.5 or prefix == "P":
            break
        number /= 1000
    return f"{number:.3g} {prefix}{unit}".strip()
