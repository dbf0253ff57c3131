"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Bundle = Annotated[Path | None, typer.Option(help="The bundle's folder; without it, the demo's.", show_default=False)]
Worker = Annotated[str | None, typer.Option(help="HOST:PORT of a worker.", show_default=False)]
Listen = Annotated[str, typer.Option(help="HOST:PORT to listen at; port 0 takes any free one.")]
Target = Annotated[
    Path | None,
    typer.Option(help="The target's bundle, for cuts; without --bundle and it, the demo's.", show_default=False),
]
Threads = Annotated[
    int | None, typer.Option(help="Threads of the model; without it, the cores this process has.", show_default=False)
]
Provider = Annotated[
    str | None,
    typer.Option(help="ONNX Runtime's execution provider: cpu, cuda, coreml, ...; without it cpu.", show_default=False),
]
EdgeProfile = Annotated[
    str | None,
    typer.Option(
        help="Profile of this device, to plan mode auto with: a name, or a TOML file of `cutline profile`.",
        show_default=False,
    ),
]
CloudProfile = Annotated[
    str | None, typer.Option(help="Profile of the worker's machine, likewise.", show_default=False)
]
Link = Annotated[
    str | None,
    typer.Option(
        help="Name of a link profile, or a TOML file: what the link is taken for at first.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Allow plain text beyond this machine's own addresses.")]
