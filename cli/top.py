"""`cutline top`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutline.cli import options
from cutline.cli.fields import with_options
from cutline.errors import InputError
from cutline.errors.extras import missing

if TYPE_CHECKING:
    from rich.table import Table

    from cutline.cloud.telemetry.scrape import Figures

EPILOG = "Example: cutline top 127.0.0.1:9090 --json --once"


@with_options
def top(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where a worker shows metrics: its --metrics.")],
    interval: Annotated[float, typer.Option(help="Seconds between two readings.")] = 1.0,
    ca: Annotated[Path | None, "Certificates in PEM of who vouches for the worker, to read HTTPS."] = None,
    cert: Annotated[Path | None, "A certificate that its --client-ca vouches for."] = None,
    key: Annotated[Path | None, "Its private key."] = None,
    once: Annotated[bool, typer.Option("--once", help="Read once: means of all the time since the start.")] = False,
    as_json: options.Json = False,
) -> None:
    """Watch a worker: sessions, passes, tokens a second, what drafts are worth, bytes and errors.

    Ctrl-C ends it. With --json every reading is one line.
    """
    import sys
    import time

    import httpx
    import msgspec
    from rich.console import Console
    from rich.live import Live

    from cutline.errors import WorkerUnavailable
    from cutline.protos.channel.address import parse_address
    from cutline.protos.channel.credentials import AgentKeys, client_context

    try:
        from cutline.cloud.telemetry.scrape import figures, read_counts
    except ModuleNotFoundError as error:
        raise missing(f"metrics need {error.name}", "cloud") from None

    if interval <= 0:
        raise InputError("--interval must be more than 0 seconds")
    host, port = parse_address(address)
    keys = AgentKeys(ca=ca, certificate=cert, key=key)
    keys.check()
    scheme, verify = ("http", True) if ca is None else ("https", client_context(keys))
    asks = "; elsewhere than on this machine it wants --ca, --cert and --key" if cert is None else ""
    console, counts, at = Console(), None, 0.0
    # No proxy of the environment stands between an operator and a worker.
    with httpx.Client(trust_env=False, timeout=5.0, verify=verify) as client, Live(console=console) as live:
        if as_json or once:
            live.stop()
        while True:
            try:
                text = client.get(f"{scheme}://{host}:{port}/metrics").raise_for_status().text
            except httpx.HTTPError:
                raise WorkerUnavailable(
                    f"no metrics at {address}; start the worker with --metrics HOST:PORT{asks}"
                ) from None
            now, before, since = time.monotonic(), counts, at
            counts, at = read_counts(text), now
            shown = figures(counts, before, seconds=now - since)
            if as_json:
                sys.stdout.buffer.write(msgspec.json.encode(shown) + b"\n")
                sys.stdout.buffer.flush()
            elif once:
                console.print(_table(address, shown))
            else:
                live.update(_table(address, shown), refresh=True)
            if once:
                return
            time.sleep(interval)


def _table(address: str, shown: Figures) -> Table:
    from rich.table import Table

    table = Table(title=f"worker at {address}", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # it shows lists of figures, which go on in the next line
    rate = _number(shown.tokens_a_second, "/s")
    for name, value in (
        ("sessions", f"{shown.sessions_open} open, {shown.slots_in_use} of {shown.slots} slots"),
        ("queue", _number(shown.queue_seconds, " ms", 1000)),
        (
            "passes",
            f"{shown.passes}, {_number(shown.pass_seconds, ' ms', 1000)}, {_number(shown.rows_a_pass, ' rows')}",
        ),
        ("tokens", f"{rate}; " + ", ".join(f"{count} {source}" for source, count in shown.tokens.items())),
        ("acceptance", _number(shown.acceptance, "%", 100)),
        ("up", f"{shown.bytes_up:,} bytes, {_number(shown.bytes_up_a_second, ' B/s')}"),
        ("down", f"{shown.bytes_down:,} bytes, {_number(shown.bytes_down_a_second, ' B/s')}"),
        ("ended", ", ".join(f"{count} {status}" for status, count in shown.ended.items()) or "none"),
    ):
        table.add_row(name, value)
    return table


def _number(value: float | None, unit: str, scale: float = 1.0) -> str:
    return "-" if value is None else f"{value * scale:,.1f}{unit}"
