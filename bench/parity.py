"""Split equals unsplit, at every cut: `python -m cutline.bench.parity [--steps 64] [--stride 4] [MODEL ...]`.

What crosses a cut, the logits after it and whole answers, compared with transformers' own model run whole
(`testing/models/comparison.py` says how).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cutline.demo.bundles import TARGET
from cutline.edge.inference.target_prefix import device_cuts
from cutline.models.bundle import Bundle
from cutline.testing.models.comparison import PROMPTS, compare_cuts, small_target, smolvlm_256m
from cutline.testing.models.small_models import SMALL

MODELS: dict[str, Callable[[Path], Bundle]] = {
    "demo": lambda place: Bundle.open(TARGET),
    "smolvlm-256m": smolvlm_256m,
    **{name: partial(small_target, name) for name in SMALL},
}


def main() -> None:
    """Compare and print; exits with 1 where split is not unsplit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--steps", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--stride", type=int, default=4, help="compare every so many cuts; of the demo's model every")
    args = parser.parse_args()
    console, good = Console(), True
    for name in args.models:
        table = Table(title=name)
        for heading in ("cut", "prompts", "boundary", "logits", f"{args.steps} tokens"):
            table.add_column(heading, justify="left" if heading == "cut" else "right")
        with tempfile.TemporaryDirectory() as place, console.status(name):
            bundle = MODELS[name](Path(place))
            cuts = ("image", *device_cuts(bundle.manifest))[:: 1 if name == "demo" else args.stride]
            for one in compare_cuts(bundle, cuts, steps=args.steps, alone=len(PROMPTS)):
                good &= one.holds
                same = "same" if one.same else "other"
                table.add_row(one.cut, str(one.batch), f"{one.boundary:.1e}", f"{one.logits:.1e}", same)
        console.print(table)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
