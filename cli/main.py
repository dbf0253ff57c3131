"""`cutline`: one command a file, and every error as one line and an exit code."""

from __future__ import annotations

import sys

import typer

from cutline.cli import ask, calibrate, cloud, demo, edge, export
from cutline.errors import CutlineError

INTERRUPTED = 130  # as shells expect after Ctrl-C

app = typer.Typer(
    help="Answer questions about images with a small model on the device and a big one in the cloud.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module, command in (
    (ask, ask.ask),
    (calibrate, calibrate.calibrate),
    (cloud, cloud.cloud),
    (demo, demo.demo),
    (edge, edge.edge),
    (export, export.export),
):
    app.command(epilog=module.EPILOG)(command)


def main() -> None:
    """The entry point. Exit codes: cutline.errors says them."""
    try:
        app()
    except CutlineError as error:
        print(f"cutline: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("cutline: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
