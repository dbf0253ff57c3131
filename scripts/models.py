"""Write the tables of docs/reference/models.md: what becomes of every setting of a model's configuration files.

They are those of `cutline.models.export.settings`. With `--check`, only say whether the page is fresh.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from cutline.models.export.encoders.settings import TABLES as ENCODER_TABLES
from cutline.models.export.encoders.source import CLASSES
from cutline.models.export.fates import SettingFate
from cutline.models.export.settings import TABLES, Tables
from cutline.models.families import FAMILIES

PAGE = Path(__file__).resolve().parent.parent / "docs/reference/models.md"
BEGIN, END = "<!-- settings: written by `make docs` -->\n", "<!-- end of settings -->\n"
ENCODERS = "## Every setting of an encoder\n\nOf folders for `--role encoder`; their `model_type` may be {}.\n"


def render() -> str:
    """The tables, one a file."""
    kinds = ", ".join(f"`{kind}`" for family in FAMILIES for kind in family.kinds)
    encoders = ENCODERS.format(", ".join(f"`{kind}`" for kind in CLASSES))
    parts = [f"What `model_type` in `config.json` may be: {kinds}.\n", *sections(TABLES, "")]
    return "\n".join([*parts, encoders, *sections(ENCODER_TABLES, "An encoder's ")])


def sections(tables: Tables, whose: str) -> Iterator[str]:
    """A table for each file, under its name."""
    for where, table in tables.items():
        yield f"### {whose}{where}\n\n| settings | here | how |\n|---|---|---|\n{''.join(lines(table))}"


def lines(table: Mapping[str, SettingFate]) -> Iterator[str]:
    """A line for all settings that have the same fate for the same reason, one after the other."""
    ordered = sorted(table.items(), key=lambda one: (one[1].fate, one[1].how, repr(one[1].taken)))
    for (fate, how, taken), of in groupby(ordered, key=lambda one: (one[1].fate, one[1].how, one[1].taken)):
        names = ", ".join(f"`{name}`" for name, _ in of)
        if fate == "limited":
            how = f"only {' or '.join(f'`{one!r}`' for one in taken)}; {how}" if taken else "refused with any value"
        yield f"| {names} | {fate} | {how} |\n"


def main() -> None:
    """Write the tables, or check them and exit with 1 if they are stale."""
    parser = argparse.ArgumentParser(description="Write the tables of docs/reference/models.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is stale")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page = f"{before}{BEGIN}\n{render()}\n{END}{after}"
    if not parser.parse_args().check:
        PAGE.write_text(page, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page:
        sys.exit("docs/reference/models.md is stale; run `make docs`")


if __name__ == "__main__":
    main()
