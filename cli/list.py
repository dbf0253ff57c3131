"""`cutline list`."""

from __future__ import annotations

import msgspec

from cutline.cli import options

EPILOG = "Example: cutline list"
SHOWN = 12  # digits of a commit or an identity


def list_models(as_json: options.Json = False) -> None:
    """The models at hand by name: weights that were pulled, and bundles that were exported or pulled.

    They are below CUTLINE_HOME, else below the user's folder for data. `cutline rm` removes what is shown.
    """
    import sys

    from cutline.models.hub.library import entries, home

    found = entries()
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode({"home": str(home()), "models": found}) + b"\n")
        return
    from rich.console import Console
    from rich.table import Table

    from cutline.cli.terminal.tables import amount, show_table

    console = Console()
    table = Table(title=f"Models below {home()}", title_justify="left")
    for heading in ("name", "kind", "role", "version"):
        table.add_column(heading)
    table.add_column("size", justify="right")
    for one in found:
        table.add_row(one.name, one.kind, one.role, one.version[:SHOWN], amount(one.size, "B"))
    if found:
        show_table(console, table)
    else:
        console.print(f"none below {home()}; `cutline pull OWNER/NAME` is a beginning", highlight=False, soft_wrap=True)
