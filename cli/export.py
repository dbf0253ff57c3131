"""`cutline export`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from cutline.errors import InputError
from cutline.models.bundle import Bundle, Precision
from cutline.models.hub.library import BundleRole, bundle_path, find_bundle, find_weights, name_given, origin_of
from cutline.models.hub.names import ModelName
from cutline.models.hub.origin import ModelOrigin

if TYPE_CHECKING:
    from rich.console import Console

    from cutline.models.encoders.bundle import EncoderBundle
    from cutline.models.export.make import ExportProgress

EPILOG = "Example: cutline export SmolVLM-256M-Instruct --out drafter --role drafter --precision int4 --target target"


def export(
    model: Annotated[
        Path,
        typer.Argument(
            help="A Hugging Face folder (config.json, safetensors, tokenizer.json), or OWNER/NAME[@REVISION] of pulled "
            "weights."
        ),
    ],
    role: Annotated[
        BundleRole,
        typer.Option(help="drafter (runs on the device), target (runs on a worker) or encoder (CLIP, SigLIP)."),
    ],
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="Of the decoder layers that a device runs: fp32, int8 or int4; without it int8 for a drafter, "
            "fp32 for a target, whose worker always runs its own weights. Of an encoder's towers: fp32 or int8; "
            "without it fp32.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The bundle's folder; a bundle that is there is replaced. Without it the bundle is kept by its name, "
            "for --model.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Its name; without it, the model's or the folder's.", show_default=False)
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option(help="A drafter's target: the bundle whose answers count, or its name.", show_default=False),
    ] = None,
) -> None:
    """Make a bundle from a Hugging Face folder, or from weights that were pulled by name.

    When it is interrupted, the same command goes on from the last step that was finished.
    """
    from rich.console import Console

    from cutline.errors.extras import missing

    try:
        from cutline.models.export import export_bundle
        from cutline.models.export.encoders import export_encoder
        from cutline.models.pairs.pair import shared_in
    except ModuleNotFoundError as error:
        raise missing(f"exporting needs {error.name}", "export") from None

    chosen: Precision = precision or ("int8" if role == "drafter" else "fp32")
    console = Console(stderr=True)
    finished: list[ExportProgress] = []
    source = _source(model, name)
    said, origin = source.called, source.origin
    out = out or _kept(source.address, role)
    made: Bundle | EncoderBundle
    with shown_steps(console, finished) as show:
        if role == "encoder":
            if target is not None:
                raise InputError("an encoder has no target; --target is a drafter's")
            made = export_encoder(source.folder, out, precision=chosen, name=said, origin=origin, progress=show)
        else:
            drafts_for = None if target is None else Bundle.open(find_bundle(target, "target"), "device")
            made = export_bundle(
                source.folder,
                out,
                role=role,
                precision=chosen,
                name=said,
                target=drafts_for,
                origin=origin,
                progress=show,
            )
    size = sum(file.stat().st_size for file in made.path.iterdir()) / 1e6
    reused = sum(step.reused for step in finished)
    if isinstance(made, Bundle) and made.manifest.target is not None:
        console.print(shared_in(made).told, highlight=False, soft_wrap=True)
    console.print(
        f"{made.path}: {role}, {chosen}, {size:.1f} MB, identity {made.manifest.identity[:12]}"
        + (f"; {reused} of {len(finished)} steps were finished before" if reused else ""),
        highlight=False,
        soft_wrap=True,
    )


def _kept(address: str, role: BundleRole) -> Path:
    """Where a bundle is kept by its name. Raises InputError for what is no name."""
    try:
        name = ModelName.read(address)
    except InputError:
        raise InputError(
            f"{address[:80]!r} is no name to keep a bundle by; give one with --name, or a folder with --out"
        ) from None
    return bundle_path(name.name, role)


class _Source(NamedTuple):
    """What is exported: its folder, where that was pulled from, what the bundle says it is called, and its address."""

    folder: Path
    origin: ModelOrigin | None
    called: str
    address: str


def _source(given: Path, name: str | None) -> _Source:
    """The source that a folder or a name is. Raises InputError, BundleError."""
    try:
        given.exists()
    except OSError as error:  # such as a name that is too long for a file
        raise InputError(f"{str(given)[:80]} is no folder: {error.strerror}") from None
    if (model := name_given(given)) is None:
        called = name or given.resolve().name
        return _Source(given, origin_of(given), called, called)  # an export says so, if there is none
    if (folder := find_weights(model)) is None:
        raise InputError(f"{given} is no folder, and no weights of that name are here; `cutline pull {given}` first")
    return _Source(folder, origin_of(folder), name or model.last, name or model.name)


@contextmanager
def shown_steps(console: Console, finished: list[ExportProgress]) -> Iterator[Callable[[ExportProgress], None]]:
    """What shows an export's steps: a bar while it works, and a line for each that is then put into `finished`."""
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
    )
    # Where nobody looks, rich would still end the bar with an empty line.
    with bars.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        track = shown.add_task("", total=None)

        def show(progress: ExportProgress) -> None:
            shown.update(
                track,
                description=progress.step,
                total=progress.steps or None,
                completed=max(progress.number - 1 + progress.share, 0),
            )
            if progress.finished:
                finished.append(progress)
                said = "finished before" if progress.reused else progress.note
                line = f"{progress.number} of {progress.steps}: {progress.step}: {said}"
                console.print(line, highlight=False, soft_wrap=True)

        yield show
