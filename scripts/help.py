"""Write docs/reference/help.md, the `--help` of every command; with `--check`, only say whether it is fresh."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from typer.core import TyperCommand, TyperGroup

from cutline.cli.main import app

PAGE = Path(__file__).resolve().parent.parent / "docs/reference/help.md"
WIDTH = 100  # columns


def render() -> str:
    """The whole page."""
    parts = ["# Commands\n\nWritten by `make docs` from each command's `--help`.\n"]
    for name, text in sections(typer.main.get_command(app), "cutline"):
        parts.append(f"## `{name}`\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def sections(command: object, name: str) -> Iterator[tuple[str, str]]:
    """Every command's full name and help, depth first, hidden ones left out."""
    assert isinstance(command, TyperCommand | TyperGroup)
    command.rich_markup_mode = None  # plain text, the same on every terminal
    context = command.make_context(name, [], resilient_parsing=True, terminal_width=WIDTH)
    text = command.get_help(context)
    yield name, "\n".join(line.rstrip() for line in text.splitlines())
    if isinstance(command, TyperGroup):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found and not found.hidden:
                yield from sections(found, f"{name} {child}")


def main() -> None:
    """Write the page, or check it and exit with 1 if it is stale."""
    parser = argparse.ArgumentParser(description="Write docs/reference/help.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is stale")
    if not parser.parse_args().check:
        PAGE.write_text(render(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != render():
        sys.exit("docs/reference/help.md is stale; run `make docs`")


if __name__ == "__main__":
    main()
