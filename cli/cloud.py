"""`cutline cloud`."""

from __future__ import annotations

from typing import Annotated

import typer

from cutline.cli import options
from cutline.errors import InputError
from cutline.models.layerline import END, LayerLine
from cutline.models.wire import Wire

EPILOG = "Example: cutline cloud --bundle my-target --listen 127.0.0.1:50051 --device cuda"


def cloud(
    bundle: options.Bundle = None,
    listen: options.Listen = "127.0.0.1:50051",
    device: Annotated[str, typer.Option(help="Where torch runs the target: cpu, cuda, cuda:1.")] = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(help="Compute in bf16 or fp32; without it, as the weights are stored.", show_default=False),
    ] = None,
    max_sessions: Annotated[
        int | None,
        typer.Option(
            help="Sessions served at once; more are refused. Without it, as many as memory has room for.",
            show_default=False,
        ),
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens a session may hold, the model's own limit at most.")] = 2048,
    layers: Annotated[
        str, typer.Option(help="START:END, the layers to run: from START on, up to but without END.")
    ] = "image:end",
    next_worker: Annotated[
        str | None,
        typer.Option("--next", help="HOST:PORT of the worker that has the layers from END on.", show_default=False),
    ] = None,
    wires: Annotated[str, typer.Option(help="Formats in which boundary rows are taken.")] = ",".join(Wire),
    metrics: Annotated[
        str | None,
        typer.Option(help="HOST:PORT to show metrics at, in Prometheus' format.", show_default=False),
    ] = None,
    threads: options.Threads = None,
    insecure: options.Insecure = False,
) -> None:
    """Run a cloud worker: it serves the target of a bundle until it is stopped.

    With --layers it loads and runs some of the layers; the worker at --next goes on from there, and must run already.
    Answers are the same in every mode at one --dtype, not across them. `cutline top` shows the metrics.
    Prints the address it listens at as its first line. Ctrl-C or SIGTERM stops it in order, with exit code 0.
    """
    import asyncio
    import logging
    import signal
    from contextlib import nullcontext

    from cutline.cli.setting import check_listen, open_target, thread_count

    try:
        import torch

        from cutline.cloud.accelerator import check_device
        from cutline.cloud.metrics import Metrics, show
        from cutline.cloud.observer import NOBODY
        from cutline.cloud.server import serve
    except ModuleNotFoundError as error:
        raise InputError(f"a worker needs {error.name}; install it with `pip install 'cutline[cloud]'`") from None

    check_listen(listen, insecure=insecure)
    check_device(device)
    if (max_sessions is not None and max_sessions < 1) or context < 2:
        raise InputError("--max-sessions must be 1 or more, --context 2 or more")
    if dtype not in (None, "bf16", "fp32"):
        raise InputError(f"--dtype is bf16 or fp32, not {dtype}")
    if metrics is not None:
        check_listen(metrics, insecure=insecure)
    torch.set_num_threads(thread_count(threads))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    opened = open_target(bundle)
    span = _span(layers, opened.manifest.line, next_worker)
    taken = _formats(wires)

    async def run() -> None:
        stop = asyncio.Event()
        for name in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
        counts = Metrics()
        async with serve(
            opened,
            listen=listen,
            slots=max_sessions,
            context=context,
            device=device,
            layers=span,
            next_worker=next_worker,
            wires=taken,
            dtype={"bf16": torch.bfloat16, "fp32": torch.float32}.get(dtype or ""),
            observer=counts if metrics is not None else NOBODY,
        ) as address:
            with show(counts, metrics) if metrics is not None else nullcontext() as shown:
                print(f"worker of {opened.manifest.name} listens at {address}", flush=True)
                if shown is not None:
                    print(f"metrics at {shown}", flush=True)
                await stop.wait()

    asyncio.run(run())


def _span(layers: str, line: LayerLine, next_worker: str | None) -> tuple[str, str]:
    """Start and end of `layers`; either may be left out. Raises InputError."""
    start, colon, end = layers.partition(":")
    start, end = start or line.layers[0], end or END
    if not colon or start not in line.layers or end not in (*line.layers, END):
        raise InputError(f"--layers {layers} is not START:END; the layers are {', '.join(line.layers)}")
    if line.place(start) >= line.place(end):
        raise InputError(f"--layers {layers} has no layer; END must come after START")
    if end == END and next_worker is not None:
        raise InputError("--next is for layers that end before the head; give --layers START:END too")
    if end != END and next_worker is None:
        raise InputError(f"--layers {layers} leaves the layers from {end} on; give --next HOST:PORT of their worker")
    return start, end


def _formats(wires: str) -> tuple[Wire, ...]:
    """The formats in a list with commas. Raises InputError."""
    try:
        return tuple(Wire(name) for name in wires.split(","))
    except ValueError:
        raise InputError(f"--wires {wires} is no list of formats; choose from {','.join(Wire)}") from None
