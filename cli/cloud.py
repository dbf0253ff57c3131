"""`cutline cloud`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutline.cli import options
from cutline.cli.config import Config
from cutline.core.wire import Wire
from cutline.errors import InputError, WorkerFailed
from cutline.errors.extras import missing
from cutline.models.layerline import END, LayerLine

if TYPE_CHECKING:
    from cutline.cloud.telemetry.tracing import Tracing

EPILOG = "Example: cutline cloud --bundle my-target --listen 127.0.0.1:50051 --device cuda --insecure"


def cloud(
    config: Config = None,
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
    image_cache: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Bytes for images that are kept for other sessions. Without it, a twentieth of what is free.",
            show_default=False,
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            help="Tokens a session may hold. Without it the model's own limit, or what memory has room for.",
            show_default=False,
        ),
    ] = None,
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
    tensor_parallel: Annotated[
        int,
        typer.Option(min=1, help="Devices of that kind which share every layer of a target too big for one."),
    ] = 1,
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Compile the decoder's layers at start, by torch.compile: a minute or so."),
    ] = False,
    threads: options.Threads = None,
    tls_cert: options.TlsCert = None,
    tls_key: options.TlsKey = None,
    client_ca: Annotated[
        Path | None,
        typer.Option(help="Certificates in PEM of who vouches for callers: each must show one.", show_default=False),
    ] = None,
    revoked: options.Revoked = None,
    tokens: Annotated[
        Path | None,
        typer.Option(help="TOML file of who may come with which token, and of their limits.", show_default=False),
    ] = None,
    ca: options.Ca = None,
    cert: options.Cert = None,
    key: options.Key = None,
    token_file: options.TokenFile = None,
    drain: Annotated[float, typer.Option(help="Seconds that open sessions get once the worker is to stop.")] = 10.0,
    log: options.Log = "text",
    audit: Annotated[
        Path | None, typer.Option(help="File that gets a line a call: who, what, how it ended.", show_default=False)
    ] = None,
    otel: Annotated[
        bool, typer.Option("--otel", help="Send a span a session to the collector of OTEL_EXPORTER_OTLP_ENDPOINT.")
    ] = False,
    insecure: options.Insecure = False,
) -> None:
    """Run a cloud worker: it serves the target of a bundle until it is stopped.

    With --layers it loads and runs some of the layers; the worker at --next goes on from there, and must run already.
    Answers are the same in every mode at one --dtype, not across them. `cutline top` shows the metrics. Who calls shows
    a token of --tokens or a certificate of --client-ca. --ca, --cert, --key and --token-file are for the way to --next.
    Prints the address it listens at as its first line. Ctrl-C or SIGTERM stops it in order, with exit code 0: it takes
    no new sessions and gives the open ones --drain seconds. A second one ends it at once, whatever it is at. A
    connection takes a descriptor: raise the limit (`ulimit -n 65536`) where many agents come.
    """
    import asyncio
    from contextlib import AsyncExitStack

    from cutline.cli.process.signals import Signals, leave
    from cutline.cli.setting import (
        check_free,
        check_listen,
        check_metrics,
        open_keys,
        open_server_keys,
        open_target,
        thread_count,
    )
    from cutline.cli.terminal.logs import write_logs
    from cutline.cloud.model.device_names import device_of
    from cutline.protos.channel.address import parse_address

    # All that can be wrong with what is given comes before torch, whose import takes its time.
    keys, onward = open_server_keys(tls_cert, tls_key, client_ca, revoked), open_keys(ca, cert, key, token_file)
    needs = "--tls-cert, --tls-key, and --tokens or --client-ca"
    secured = keys is not None and (tokens is not None or client_ca is not None)
    check_listen(listen, secured=secured, insecure=insecure, needs=needs)
    check_sizes(max_sessions=max_sessions, context=context, dtype=dtype, drain=drain)
    check_devices(device, tensor_parallel)
    if compiled and tensor_parallel > 1:
        raise InputError("layers that several devices share are not compiled; leave out --compile or --tensor-parallel")
    if metrics is not None:
        check_metrics(metrics, secured=client_ca is not None)
        check_free(metrics, "show metrics")
    cores = thread_count(threads)
    write_logs(log, audit)
    taken = formats_of(wires)
    opened = open_target(bundle)
    span = span_of(layers, opened.manifest.line, next_worker)
    if next_worker is not None:
        parse_address(next_worker)
    check_free(listen, "listen")

    with Signals() as signals:
        try:
            import torch

            from cutline.cloud.access.audit import Audit
            from cutline.cloud.model.device import check_device
            from cutline.cloud.serving.server import Access, serve
            from cutline.cloud.telemetry.metrics import WorkerMetrics, show
            from cutline.cloud.telemetry.observer import Observer, Observers
            from cutline.cloud.telemetry.request_log import SessionLog
        except ModuleNotFoundError as error:
            raise missing(f"a worker needs {error.name}", "cloud") from None

        for rank in range(tensor_parallel):
            check_device(device if tensor_parallel == 1 else device_of(device, rank))
        torch.set_num_threads(cores if threads else max(1, cores // tensor_parallel))
        access = Access(keys=keys, tokens=tokens, onward=onward)

        async def run() -> None:
            stop, broken = asyncio.Event(), False

            def broke() -> None:
                nonlocal broken
                broken = broken or not stop.is_set()  # one that is to stop anyway does so in order
                stop.set()

            observers: list[Observer] = [SessionLog(), Audit()]
            shown = None
            async with AsyncExitStack() as stack:
                if metrics is not None:
                    observers.append(counts := WorkerMetrics())
                    shown = stack.enter_context(show(counts, metrics, access.keys))
                if otel:
                    observers.append(tracing := _tracing())
                    stack.callback(tracing.close)
                address = await stack.enter_async_context(
                    serve(
                        opened,
                        listen=listen,
                        slots=max_sessions,
                        images=image_cache,
                        context=context,
                        device=device,
                        layers=span,
                        next_worker=next_worker,
                        wires=taken,
                        dtype={"bf16": torch.bfloat16, "fp32": torch.float32}.get(dtype or ""),
                        observer=Observers(*observers),
                        access=access,
                        drain=drain,
                        tensor_parallel=tensor_parallel,
                        compiled=compiled,
                        on_broken=broke,
                    )
                )
                signals.end_by_setting(stop)
                print(f"worker of {opened.manifest.name} listens at {address}", flush=True)
                if shown is not None:
                    print(f"metrics at {shown}", flush=True)
                await stop.wait()
            if broken:
                leave(WorkerFailed.exit_code, "the worker broke; its log says more")
            leave(0)

        asyncio.run(run())


def check_sizes(*, max_sessions: int | None, context: int | None, dtype: str | None, drain: float) -> None:
    """That these options of `cutline cloud` mean something. Raises InputError."""
    if (max_sessions is not None and max_sessions < 1) or (context is not None and context < 2):
        raise InputError("--max-sessions must be 1 or more, --context 2 or more")
    if dtype not in (None, "bf16", "fp32"):
        raise InputError(f"--dtype is bf16 or fp32, not {dtype}")
    if not 0 <= drain <= 3600:
        raise InputError(f"--drain is {drain:g}; give 0 to 3600 seconds")


def check_devices(device: str, tensor_parallel: int) -> None:
    """That these options of `cutline cloud` name devices, here or not. Raises InputError."""
    from cutline.cloud.model.device_names import check_name, device_of

    check_name(device)
    if tensor_parallel > 1:
        device_of(device, 0)


def _tracing() -> Tracing:
    """Spans on their way to a collector. Raises InputError."""
    try:
        from cutline.cloud.telemetry.tracing import Tracing
    except ModuleNotFoundError as error:
        raise missing(f"--otel needs {error.name}", "otel") from None

    return Tracing.to_collector()


def span_of(layers: str, line: LayerLine, next_worker: str | None) -> tuple[str, str]:
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


def formats_of(wires: str) -> tuple[Wire, ...]:
    """The formats in a list with commas. Raises InputError."""
    try:
        return tuple(Wire(name) for name in wires.split(","))
    except ValueError:
        raise InputError(f"--wires {wires} is no list of formats; choose from {','.join(Wire)}") from None
