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
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Allow plain text beyond this machine's own addresses.")]
