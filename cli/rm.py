"""`cutline rm`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import typer

from cutline.cli import options

EPILOG = "Example: cutline rm HuggingFaceTB/SmolVLM-256M-Instruct --kind weights"


def rm(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name of `cutline list`, or NAME@COMMIT.")],
    kind: Annotated[
        Literal["weights", "bundle", "unfinished", "broken"] | None,
        typer.Option(help="Only what is of that kind; without it, all of that name.", show_default=False),
    ] = None,
    role: Annotated[
        Literal["drafter", "target", "encoder"] | None,
        typer.Option(help="Only the bundle of that role.", show_default=False),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Remove a model that is at hand by name. An agent or a worker that runs it goes on with what it has read."""
    import sys

    from cutline.cli.terminal.tables import amount
    from cutline.models.hub.library import remove
    from cutline.models.hub.names import ModelName

    gone = remove(ModelName.read(model), kind=kind, role=role)
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode({"removed": gone}) + b"\n")
        return
    for one in gone:
        print(f"removed {one.path}: {one.role or one.kind}, {amount(one.size, 'B')}")
