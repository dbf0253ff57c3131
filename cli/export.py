"""`cutline export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutline.models.bundle import Bundle, Precision, Role

EPILOG = "Example: cutline export SmolVLM-256M-Instruct --out drafter --role drafter --precision int4 --target target"


def export(
    model: Annotated[Path, typer.Argument(help="A Hugging Face folder: config.json, safetensors, tokenizer.json.")],
    out: Annotated[Path, typer.Option(help="The bundle's folder; a bundle that is there is replaced.")],
    role: Annotated[Role, typer.Option(help="drafter (runs on the device) or target (runs on a worker).")],
    precision: Annotated[
        Precision | None, typer.Option(help="fp32, int8 or int4; without it int8 for a drafter.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its name; without it, the folder's.", show_default=False)] = None,
    target: Annotated[
        Path | None, typer.Option(help="A drafter's target: the bundle whose answers count.", show_default=False)
    ] = None,
) -> None:
    """Make a bundle from a Hugging Face folder."""
    from rich.console import Console

    from cutline.errors import InputError

    try:
        from cutline.models.export import export_bundle
    except ModuleNotFoundError as error:
        raise InputError(f"exporting needs {error.name}; install it with `pip install 'cutline[export]'`") from None

    chosen: Precision = precision or ("int8" if role == "drafter" else "fp32")
    console = Console(stderr=True)
    with console.status("exporting") as status:
        bundle = export_bundle(
            model,
            out,
            role=role,
            precision=chosen,
            name=name or model.name,
            target=None if target is None else Bundle.open(target),
            progress=lambda step: status.update(step),
        )
    size = sum(file.stat().st_size for file in bundle.path.iterdir()) / 1e6
    console.print(f"{bundle.path}: {role}, {chosen}, {size:.1f} MB, identity {bundle.manifest.identity[:12]}")
