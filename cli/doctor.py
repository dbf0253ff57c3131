"""`cutline doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cutline.cli import options
from cutline.cli.fields import with_options

if TYPE_CHECKING:
    from cutline.edge.diagnostics.doctor import Diagnosis

EPILOG = "Example: cutline doctor --bundle my-drafter --worker 192.0.2.7:50051 --ca ca.crt --token-file token"

STYLES = {"ok": "green", "advice": "yellow", "problem": "red"}


@with_options
def doctor(
    *,
    bundle: options.Bundle = None,
    target: options.Target = None,
    worker: options.Worker = None,
    provider: options.Provider = None,
    keys: options.WorkerKeys,
    as_json: options.Json = False,
) -> int:
    """Look at this device before a model is loaded: what it is, what works, what fits, and what to do.

    Looks at the board, ONNX Runtime's providers (a small product is computed with each), cores, memory and disk
    against what the bundle needs, power and heat under load, and at the worker: the link to it and its model. Ends
    with exit code 8 if there is a problem; advice alone is 0.
    """
    import asyncio
    import sys

    import msgspec
    from rich.console import Console

    from cutline.cli.setting import open_keys
    from cutline.demo.bundles import DRAFTER, TARGET
    from cutline.edge.diagnostics.doctor import UNWELL, diagnose
    from cutline.edge.diagnostics.inspection import examine
    from cutline.protos.channel.address import parse_address

    if worker is not None:
        parse_address(worker)
    cut = target or (TARGET if bundle is None else None)
    with Console(stderr=True).status("looking") as status:
        facts = asyncio.run(
            examine(
                bundle or DRAFTER,
                target=cut,
                worker=worker,
                keys=open_keys(keys),
                provider=provider or "cpu",
                on_step=lambda step: status.update(f"looking at {step}"),
            )
        )
    diagnosis = diagnose(facts)
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(diagnosis) + b"\n")
    else:
        _show(diagnosis)
    return 0 if diagnosis.well else UNWELL


def _show(diagnosis: Diagnosis) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in diagnosis.findings:
        said = escape(finding.what) + (f"\n[bold]→ {escape(finding.do)}[/bold]" if finding.do else "")
        table.add_row(f"[{STYLES[finding.level]}]{finding.level}[/]", finding.check, said)
    console = Console(highlight=False)
    console.print(table)
    problems = sum(finding.level == "problem" for finding in diagnosis.findings)
    counted = f"{problems} problem" + ("s" if problems > 1 else "")
    console.print("all is well" if diagnosis.well else counted, style="green" if diagnosis.well else "red")
