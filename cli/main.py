"""`cutline`: one command a file, and every error as one line and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
from functools import cache, partial
from typing import Annotated

import typer

from cutline.cli import (
    ask,
    bundle,
    bundle_serve,
    calibrate,
    classify,
    cloud,
    cluster,
    config_show,
    demo,
    doctor,
    edge,
    export,
    health,
    journal,
    keys,
    learn,
    pair,
    plan,
    profile,
    pull,
    rm,
    top,
    watch,
)
from cutline.cli import eval as eval_command
from cutline.cli import list as list_command
from cutline.cli.entry import INTERRUPTED
from cutline.cli.terminal.output import UNREAD, Unread, close_output, drop_output, open_output
from cutline.errors import CutlineError, InputError

app = typer.Typer(
    help="Answer questions about images with a small model on the device and a big one in the cloud.",
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module, command in (
    (ask, ask.ask),
    (calibrate, calibrate.calibrate),
    (classify, classify.classify),
    (cloud, cloud.cloud),
    (demo, demo.demo),
    (doctor, doctor.doctor),
    (edge, edge.edge),
    (export, export.export),
    (health, health.health),
    (learn, learn.learn),
    (plan, plan.plan),
    (pull, pull.pull),
    (rm, rm.rm),
    (top, top.top),
    (watch, watch.watch),
):
    app.command(epilog=module.EPILOG)(command)
app.command("eval", epilog=eval_command.EPILOG)(eval_command.evaluate)
app.command("list", epilog=list_command.EPILOG)(list_command.list_models)
bundle.app.command("serve", epilog=bundle_serve.EPILOG)(bundle_serve.serve_bundles)
app.add_typer(bundle.app, name="bundle")
app.add_typer(cluster.app, name="cluster")
app.add_typer(config_show.app, name="config")
app.add_typer(journal.app, name="journal")
app.add_typer(keys.app, name="keys")
app.add_typer(pair.app, name="pair")
app.add_typer(profile.app, name="profile")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"cutline {version('cutline')}")
        raise typer.Exit


@app.callback()
def cutline(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Answer questions about images with a small model on the device and a big one in the cloud."""


_command = cache(partial(typer.main.get_command, app))  # to put all options together takes as long as some commands


def main() -> None:
    """Run a command. Exit codes: cutline.errors says them."""
    # gRPC writes what it logs to stderr, where an error of ours must stand alone.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Like Ctrl-C, so that the processes which a command started end with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    open_output()
    try:
        code = _command()(args=sys.argv[1:] or ["--help"], prog_name="cutline", standalone_mode=False) or 0
        close_output()
    except typer.TyperException as error:  # an option that does not exist, or a value that does not fit
        code = _say(getattr(error, "format_message", error.__str__)(), InputError.exit_code)
    except CutlineError as error:
        code = _say(str(error), error.exit_code)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # which only a name is that somebody gave
            raise
        code = _say(f"{error.filename}: {error.strerror}", InputError.exit_code)
    except Unread:
        code = UNREAD
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        _say("interrupted", code)
    else:
        drop_output()
    sys.exit(code)


def _say(message: str, code: int) -> int:
    print("cutline:", " ".join(message.split()), file=sys.stderr)
    return code
