"""Write docs/reference/pairs.md, the pairs that `cutline pull` knows by name; with `--check`, say if it is fresh."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cutline.models.hub.pairs import ModelPair, known_pairs
from cutline.models.shapes import Shape, known_shapes

PAGE = Path(__file__).resolve().parent.parent / "docs/reference/pairs.md"
INTRODUCTION = """# Known pairs

Written by `make docs` from `models/hub/pairs.toml`.

`cutline pull PAIR` pulls the weights of both models of a pair, to be exported: [models by name](../how-to/models.md). A
small model of a series drafts for a large one. Both are to share tokenizer, template and image processing, so that the
drafter reads its target's prompt; `cutline export --target` compares them and says what they do share. If that is less,
they still are a pair, and less of what is drafted is right: [pairs](../explanation/pairs.md).

**None of these was run with its published weights.** Where *configurations* were compared, published files say that
both models see the same of a picture, and that the drafter holds as many tokens as its target. Of the others not even
these were at hand, and what speaks for them is their series. Tokenizers and templates are compared by the export. Each
*family* was run at every cut and in every mode with seeded weights and reduced widths: [models](models.md#families).

| pair | drafter | target | compared | published weights |
|---|---|---|---|---|
"""
TERMS = """
Models of google's are pulled by who accepted their terms on the hub and is logged in (`hf auth login`, or `HF_TOKEN`).
"""


def render() -> str:
    """The whole page. Raises ValueError for a pair whose known configurations do not fit."""
    shapes = {shape.source: shape for shape in known_shapes().values()}
    return INTRODUCTION + "".join(row(name, pair, shapes) for name, pair in known_pairs().items()) + TERMS


def row(name: str, pair: ModelPair, shapes: dict[str, Shape]) -> str:
    """A pair's line of the table."""
    drafter, target = shapes.get(pair.drafter), shapes.get(pair.target)
    compared = "the series alone"
    if drafter is not None and target is not None:
        compared = "configurations"
        if not drafter.family.is_alike(target.family) or drafter.decoder.context < target.decoder.context:
            raise ValueError(f"{name} is no pair by the sizes of its models")
    return f"| `{name}` | {pair.drafter} | {pair.target} | {compared} | not tried |\n"


def main() -> None:
    """Write the page, or check it and exit with 1 if it is stale."""
    parser = argparse.ArgumentParser(description="Write docs/reference/pairs.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is stale")
    if not parser.parse_args().check:
        PAGE.write_text(render(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != render():
        sys.exit("docs/reference/pairs.md is stale; run `make docs`")


if __name__ == "__main__":
    main()
