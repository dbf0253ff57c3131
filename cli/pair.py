"""`cutline pair check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutline.cli import options

CHECK = "Example: cutline pair check my-drafter my-target"

app = typer.Typer(help="Find out whether a drafter and a target go together.")


@app.callback()
def pair() -> None:
    """Find out whether a drafter and a target go together."""


@app.command(epilog=CHECK)
def check(
    drafter: Annotated[Path, typer.Argument(metavar="DRAFTER", help="The drafter's bundle, or its name.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The target's bundle, or its name.")],
    as_json: options.Json = False,
) -> None:
    """Say what a drafter shares with a target, what follows from it, and whether the two can run together.

    Nothing of them is run. A pair that cannot ends with exit code 5, and with what to do.
    """
    import sys

    import msgspec
    from rich.console import Console

    from cutline.errors import ModelMismatch
    from cutline.models.bundle import Bundle, part_at
    from cutline.models.hub.library import find_bundle
    from cutline.models.pairs.fit import fit

    ours, theirs = find_bundle(drafter, "drafter"), find_bundle(target, "target")
    found = fit(Bundle.open(ours, part_at(ours)), Bundle.open(theirs, part_at(theirs)))
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(msgspec.to_builtins(found) | {"runs": found.runs}) + b"\n")
    else:
        console = Console()
        for name, one in (("tokens", "tokens"), ("template", "template"), ("image processing", "images")):
            same = "shared" if getattr(found.shared, one) else "not shared"
            console.print(f"{name}: {same}", highlight=False)
        for line in (found.told, *found.follows):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    if found.why is not None:
        raise ModelMismatch(found.why)
