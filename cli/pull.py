"""`cutline pull`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from cutline.cli import options

if TYPE_CHECKING:
    from rich.console import Console

EPILOG = "Example: cutline pull HuggingFaceTB/SmolVLM-256M-Instruct"


class PulledView(msgspec.Struct, frozen=True, kw_only=True):
    """What was pulled, as `--json` prints it."""

    name: str
    kind: str
    version: str  # the commit of weights, the identity of a bundle
    size: int
    path: str
    files: dict[str, str]  # SHA-256 of each


def pull(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="OWNER/NAME, or OWNER/NAME@REVISION, on a hub.")],
    as_json: options.Json = False,
) -> None:
    """Pull a model's weights from a hub, to export them by their name.

    Only what an export reads is pulled, and checked against the hub's hashes. A pull that was broken off goes on. As
    always, HF_ENDPOINT names the hub, HF_TOKEN or HF_HOME who asks, and HF_HUB_OFFLINE forbids to ask. Prints the
    folder; `cutline list` shows what is there.
    """
    import sys

    from rich.console import Console

    from cutline.models.hub.names import ModelName
    from cutline.models.hub.weights import pull_weights

    console = Console(stderr=True)
    name = ModelName.read(model)
    with shown_bytes(console) as on_total:
        folder, record = pull_weights(name, tell=teller(console), on_total=on_total)
    if not as_json:
        print(folder)
        return
    view = PulledView(
        name=record.name,
        kind="weights",
        version=record.commit,
        size=record.size,
        path=str(folder),
        files={name: file.sha256 for name, file in record.files.items()},
    )
    sys.stdout.buffer.write(msgspec.json.encode(view) + b"\n")


def teller(console: Console) -> Callable[[str], object]:
    """What shows a line about what goes on."""
    return lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def shown_bytes(console: Console) -> Iterator[Callable[[int, int], object]]:
    """What shows how many bytes are here of those that there are: a bar, where somebody looks."""
    from rich import progress as bars

    columns = (bars.BarColumn(), bars.DownloadColumn(), bars.TransferSpeedColumn(), bars.TimeRemainingColumn())
    with bars.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        track = shown.add_task("", total=None)
        yield lambda held, size: shown.update(track, completed=held, total=size)
