"""`cutline config`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cutline.cli import options
from cutline.cli.config import settings, told
from cutline.errors import InputError

COMMANDS = {"edge": ("edge",), "cloud": ("cloud",), "watch": ("watch",), "cluster": ("cluster", "up")}

app = typer.Typer(help="What a command that runs for long would run with.", no_args_is_help=True)


@app.callback()
def config() -> None:
    """What a command that runs for long would run with."""


@app.command(
    epilog="Example: cutline config show edge --config edge.toml",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def show(
    context: typer.Context,
    command: Annotated[str, typer.Argument(help="edge, cloud, watch or cluster; its options may follow.")],
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings, in place of the one found.", show_default=False)
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show each setting, and where its value comes from: a file, a variable, an option, or the default."""
    import json

    from rich.console import Console
    from rich.table import Table

    from cutline.cli.terminal.tables import show_table

    if command not in COMMANDS:
        raise InputError(f"there are no settings of {command!r}; choose {', '.join(COMMANDS)}")
    file, found = settings(_context(context, COMMANDS[command]), context.args, config)
    if as_json:
        print(json.dumps({one.key: {"value": told(one.value), "source": one.source} for one in found}, default=str))
        return
    table = Table("setting", "value", "from")
    for one in found:
        table.add_row(one.key, "" if one.value is None else _text(told(one.value)), one.source)
    console = Console(highlight=False)
    console.print(f"file: {file or 'none found'}", markup=False, soft_wrap=True)
    show_table(console, table)


def _context(context: typer.Context, path: tuple[str, ...]) -> Any:
    """The context that a command of this path would run in."""
    above: Any = context.find_root()
    for name in path:
        command = above.command.commands[name]
        above = command.context_class(command, info_name=name, parent=above)
    return above


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
