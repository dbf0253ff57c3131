"""`cutline cloud`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from cutline.cli import options
from cutline.cli.config import Config
from cutline.cli.fields import with_options
from cutline.core.wire import Wire
from cutline.errors import InputError, WorkerFailed
from cutline.errors.extras import missing
from cutline.models.layerline import END, LayerLine

if TYPE_CHECKING:
    from cutline.cloud.telemetry.tracing import Tracing

EPILOG = "Example: cutline cloud --bundle my-target --listen 127.0.0.1:50051 --device cuda --insecure"


CHANGES = frozenset({"log"})  # while it runs


class CloudOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `cutline cloud` is given."""

    bundle: options.Bundle = None
    listen: options.Listen = "127.0.0.1:50051"
    device: Annotated[str, "Where torch runs the target: cpu, cuda, cuda:1."] = "cpu"
    dtype: Annotated[str | None, "Compute in bf16 or fp32; without it, as the weights are stored."] = None
    max_sessions: Annotated[
        int | None, "Sessions served at once; more are refused. Without it, as many as memory has room for."
    ] = None
    image_cache: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Bytes for images that are kept for other sessions. Without it, a twentieth of what is free.",
            show_default=False,
        ),
    ] = None
    context: Annotated[
        int | None, "Tokens a session may hold. Without it the model's own limit, or what memory has room for."
    ] = None
    layers: Annotated[str, "START:END, the layers to run: from START on, up to but without END."] = "image:end"
    next_worker: Annotated[
        str | None,
        typer.Option("--next", help="HOST:PORT of the worker that has the layers from END on.", show_default=False),
    ] = None
    wires: Annotated[str, "Formats in which boundary rows are taken."] = ",".join(Wire)
    metrics: Annotated[str | None, "HOST:PORT to show metrics at, in Prometheus' format."] = None
    tensor_parallel: Annotated[
        int,
        typer.Option(min=1, help="Devices of that kind which share every layer of a target too big for one."),
    ] = 1
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Compile the decoder's layers at start, by torch.compile: a minute or so."),
    ] = False
    threads: options.Threads = None
    admission: options.Admission
    onward: options.WorkerKeys
    drain: Annotated[float, "Seconds that open sessions get once the worker is to stop."] = 10.0
    journal: options.JournalOptions
    log: options.Log = "text"
    audit: Annotated[Path | None, "File that gets a line a call: who, what, how it ended."] = None
    otel: Annotated[bool, "Send a span a session to the collector of OTEL_EXPORTER_OTLP_ENDPOINT."] = False


@with_options
def cloud(*, running: typer.Context, config: Config = None, given: CloudOptions) -> None:
    """Run a cloud worker: it serves the target of a bundle until it is stopped.

    With --layers it loads and runs some of the layers; the worker at --next goes on from there, and must run already.
    Answers are the same in every mode at one --dtype, not across them. `cutline top` shows the metrics. Who calls shows
    a token of --tokens or a certificate of --client-ca. --ca, --cert, --key and --token-file are for the way to --next.
    Prints the address it listens at as its first line. Ctrl-C or SIGTERM stops it in order, with exit code 0: it takes
    no new sessions and gives the open ones --drain seconds. A second one ends it at once, whatever it is at. A
    connection takes a descriptor: raise the limit (`ulimit -n 65536`) where many agents come.
    """
    import asyncio
    import logging
    from contextlib import AsyncExitStack

    from cutline.cli.process.reload import Reload
    from cutline.cli.process.signals import Signals, leave
    from cutline.cli.setting import (
        check_free,
        check_metrics,
        open_admission,
        open_keys,
        open_recorder,
        open_target,
        thread_count,
    )
    from cutline.cli.terminal.logs import change_form, write_logs
    from cutline.cloud.model.device_names import device_of
    from cutline.protos.channel.address import parse_address

    # All that can be wrong with what is given comes before torch, whose import takes its time.
    keys, onward = open_admission(given.admission, given.listen), open_keys(given.onward)
    check(given)
    if given.metrics is not None:
        check_metrics(given.metrics, secured=given.admission.client_ca is not None)
        check_free(given.metrics, "show metrics")
    cores, ranks = thread_count(given.threads), given.tensor_parallel
    write_logs(given.log, given.audit)
    taken = formats_of(given.wires)
    opened = open_target(given.bundle)
    span = span_of(given, opened.manifest.line)
    if given.next_worker is not None:
        parse_address(given.next_worker)
    check_free(given.listen, "listen")
    journal = open_recorder(given.journal)

    with Signals() as signals:
        try:
            import torch

            from cutline.cloud.access.audit import Audit
            from cutline.cloud.model.device import check_device
            from cutline.cloud.serving.server import Access, WorkerOptions, serve
            from cutline.cloud.telemetry.metrics import WorkerMetrics, show
            from cutline.cloud.telemetry.observer import Observer, Observers
            from cutline.cloud.telemetry.request_log import SessionLog
            from cutline.cloud.telemetry.session_journal import SessionJournal
        except ModuleNotFoundError as error:
            raise missing(f"a worker needs {error.name}", "cloud") from None

        for rank in range(ranks):
            check_device(given.device if ranks == 1 else device_of(given.device, rank))
        torch.set_num_threads(cores if given.threads else max(1, cores // ranks))
        access = Access(keys=keys, tokens=given.admission.tokens, onward=onward)

        async def run() -> None:
            stop, broken = asyncio.Event(), False

            def broke() -> None:
                nonlocal broken
                broken = broken or not stop.is_set()  # one that is to stop anyway does so in order
                stop.set()

            observers: list[Observer] = [SessionLog(), Audit()]
            shown = None
            async with AsyncExitStack() as stack:
                if journal is not None:
                    stack.callback(journal.close)
                    observers.append(SessionJournal(journal, opened.manifest.identity))
                if given.metrics is not None:
                    observers.append(counts := WorkerMetrics())
                    if journal is not None:
                        counts.journal(lambda: journal.counts)
                    shown = stack.enter_context(show(counts, given.metrics, access.keys))
                if given.otel:
                    observers.append(tracing := _tracing())
                    stack.callback(tracing.close)
                address = await stack.enter_async_context(
                    serve(
                        opened,
                        WorkerOptions(
                            listen=given.listen,
                            slots=given.max_sessions,
                            images=given.image_cache,
                            context=given.context,
                            device=given.device,
                            layers=span,
                            next_worker=given.next_worker,
                            wires=taken,
                            dtype={"bf16": torch.bfloat16, "fp32": torch.float32}.get(given.dtype or ""),
                            drain=given.drain,
                            tensor_parallel=ranks,
                            compiled=given.compiled,
                        ),
                        observer=Observers(*observers),
                        access=access,
                        on_broken=broke,
                    )
                )
                signals.end_by_setting(stop)
                tell = logging.getLogger(__name__).warning
                signals.reread_by(Reload(running, CHANGES, lambda to: change_form(to["log"]), tell=tell))
                signals.ready()
                print(f"worker of {opened.manifest.name} listens at {address}", flush=True)
                if shown is not None:
                    print(f"metrics at {shown}", flush=True)
                await stop.wait()
            if broken:
                leave(WorkerFailed.exit_code, "the worker broke; its log says more")
            leave(0)

        asyncio.run(run())


def check(given: CloudOptions) -> None:
    """That sizes mean something, and that devices have names, here or not. Raises InputError."""
    from cutline.cloud.model.device_names import check_name, device_of

    if (given.max_sessions is not None and given.max_sessions < 1) or (given.context is not None and given.context < 2):
        raise InputError("--max-sessions must be 1 or more, --context 2 or more")
    if given.journal.journal is not None and given.admission.tokens is None:
        raise InputError("a worker keeps answers of tenants whose key says `journal = true`; give --tokens too")
    if given.dtype not in (None, "bf16", "fp32"):
        raise InputError(f"--dtype is bf16 or fp32, not {given.dtype}")
    if not 0 <= given.drain <= 3600:
        raise InputError(f"--drain is {given.drain:g}; give 0 to 3600 seconds")
    check_name(given.device)
    if given.tensor_parallel > 1:
        device_of(given.device, 0)
        if given.compiled:
            raise InputError(
                "layers that several devices share are not compiled; leave out --compile or --tensor-parallel"
            )


def _tracing() -> Tracing:
    """Spans on their way to a collector. Raises InputError."""
    try:
        from cutline.cloud.telemetry.tracing import Tracing
    except ModuleNotFoundError as error:
        raise missing(f"--otel needs {error.name}", "otel") from None

    return Tracing.to_collector()


def span_of(given: CloudOptions, line: LayerLine) -> tuple[str, str]:
    """Start and end of --layers; either may be left out. Raises InputError."""
    layers, next_worker = given.layers, given.next_worker
    start, colon, end = layers.partition(":")
    start, end = start or line.layers[0], end or END
    if not colon or start not in line.cuts or end not in (*line.cuts, END):
        raise InputError(f"--layers {layers} is not START:END; they may be {', '.join(line.cuts)}")
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
