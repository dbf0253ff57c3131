"""Write the tables of docs/reference/models.md: what crosses the cuts of published models, and the fate of settings.

They are of `cutline.models.shapes` and `cutline.models.export.settings`. With `--check`, only say whether the page is
fresh.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from cutline.core.wire import Wire, bytes_per_row
from cutline.models.costs import layer_costs, request_sizes
from cutline.models.export.encoders.settings import TABLES as ENCODER_TABLES
from cutline.models.export.encoders.source import CLASSES
from cutline.models.export.fates import SettingFate
from cutline.models.export.settings import TABLES, Tables
from cutline.models.families import FAMILIES
from cutline.models.shapes import known_shapes

PHOTOGRAPH, TEXT = (1024, 768), 40  # pixels, and tokens of text
PAGE = Path(__file__).resolve().parent.parent / "docs/reference/models.md"
BEGIN, END = "<!-- settings: written by `make docs` -->\n", "<!-- end of settings -->\n"
ENCODERS = "## Every setting of an encoder\n\nOf folders for `--role encoder`; their `model_type` may be {}.\n"


def render() -> str:
    """The tables, one a file."""
    kinds = ", ".join(f"`{kind}`" for family in FAMILIES for kind in family.kinds)
    encoders = ENCODERS.format(", ".join(f"`{kind}`" for kind in CLASSES))
    parts = [f"What `model_type` in `config.json` may be: {kinds}.\n", crossing(), *sections(TABLES, "")]
    return "\n".join([*parts, encoders, *sections(ENCODER_TABLES, "An encoder's ")])


def sections(tables: Tables, whose: str) -> Iterator[str]:
    """A table for each file, under its name."""
    for where, table in tables.items():
        yield f"### {whose}{where}\n\n| settings | here | how |\n|---|---|---|\n{''.join(lines(table))}"


def crossing() -> str:
    """What crosses each model's cuts."""
    heads = ("`vision.0`", "`connector`", "`decoder.0`", "`decoder.1`", "middle", "a token", "keys and values")
    width, height = PHOTOGRAPH
    rows = [
        "### What crosses\n",
        f"Megabytes in fp16 for a photograph of {width} x {height} and {TEXT} tokens of text, by the sizes of "
        "published models; at `image` some 0.1 to 0.4, a JPEG. A token that follows takes kilobytes at cuts inside "
        "the decoder, and its keys and values take kilobytes in fp32 on a device that runs the whole decoder.\n",
        f"| model | {' | '.join(heads)} |",
        f"|---|{'---|' * len(heads)}",
    ]
    for name, shape in known_shapes().items():
        manifest = shape.manifest(name, role="target", precision="fp32")
        grid = shape.family.grid(PHOTOGRAPH)
        sizes = request_sizes(manifest, [grid], shape.family.tokens(grid) + TEXT)
        costs = {layer.name: layer for layer in layer_costs(manifest)}
        deep = shape.line.deep_cuts
        cuts = ("vision.0", "connector", "decoder.0", "decoder.1", middle := deep[len(deep) // 2 - 1])
        sent = [f"{(costs[cut].boundary_bytes(sizes, Wire.FLOAT16) or 0) / 1e6:.1f}" for cut in cuts]
        token = bytes_per_row(Wire.FLOAT16, costs[middle].width) / 1e3
        cache = sum(layer.kv_bytes_per_token for layer in costs.values()) / 1e3
        rows.append(f"| {name} | {' | '.join(sent)} | {token:.1f} | {cache:.0f} |")
    return "\n".join(rows) + "\n"


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
