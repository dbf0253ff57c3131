"""`cutline cluster`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import typer

from cutline.cli import options
from cutline.cli.config import Config
from cutline.cli.fields import made, with_options
from cutline.errors import CutlineError, InputError
from cutline.errors.extras import missing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from cutline.cloud.cluster.autoscaler import ScalingLimits
    from cutline.protos.directory import Listing

S = TypeVar("S", bound=msgspec.Struct)

app = typer.Typer(help="Run several workers as one, and see how they are.", no_args_is_help=True)

_OURS = ("--bundle", "--model", "--drain", "--listen", "--metrics", "--threads")
# Options of `cutline cloud` that name files: the workers run elsewhere than here.
_FILES = (
    *("--audit", "--ca", "--cert", "--client-ca", "--config", "--journal", "--journal-key-file", "--key", "--revoked"),
    *("--tls-cert", "--tls-key", "--token-file", "--tokens"),
)


CHANGES = frozenset({"workers", "max-workers"})  # while it runs


class ClusterOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `cutline cluster up` is given."""

    bundle: options.Bundle = None
    listen: Annotated[str, "HOST:PORT for the directory to listen at; port 0 takes any free one."] = "127.0.0.1:50050"
    workers: Annotated[int, "Workers that there are at least."] = 1
    max_workers: Annotated[int | None, "Workers that there are at most; without it, no more."] = None
    gpus_per_worker: Annotated[float, "GPUs that each gets of its node; 0.5 is two workers a GPU."] = 0.0
    threads: Annotated[int, "Threads of each worker, and cores that it gets of its node."] = 1
    address: Annotated[
        str | None, "A Ray that runs: auto, HOST:PORT or ray://HOST:PORT; without it one is started here."
    ] = None
    metrics: Annotated[
        str | None, "HOST:PORT to list at where each worker shows metrics, for Prometheus' HTTP service discovery."
    ] = None
    drain: Annotated[float, "Seconds that sessions get to end in before a worker stops."] = 30.0
    admission: options.Admission
    looked_at_by: options.WorkerKeys
    worker_options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- OPTION...]", help="More options of `cutline cloud`, for every worker."),
    ] = None


@app.command(epilog="Example: cutline cluster up --workers 2 --max-workers 6 --gpus-per-worker 1 --bundle my-target")
@with_options
def up(*, context: typer.Context, config: Config = None, given: ClusterOptions) -> None:
    """Keep several workers, and a directory of them for agents, until stopped.

    Ray places the workers on nodes; Cutline and the bundle must be there at the same paths. A worker that dies is
    started again. Between --workers and --max-workers there are as many as sessions need: one more while they wait, one
    less after two quiet minutes. Directory and workers serve whoever shows a token of --tokens or a certificate of
    --client-ca; by --ca, --cert, --key and --token-file the workers are looked at. All these are files of every node.
    Prints the directory's address as its first line. Ctrl-C or SIGTERM stops it in order, with exit code 0: the workers
    leave the directory and drain. A second one ends it at once, and the workers with it. Where Ray's own controller is
    gone, workers that run drain likewise, and it ends with exit code 4, to be started again.
    """
    import contextlib
    import functools
    import queue
    import sys
    import threading

    from cutline.cli.process.reload import Reload
    from cutline.cli.process.signals import Signals, leave
    from cutline.cli.setting import check_metrics, open_admission, open_keys
    from cutline.cli.terminal.logs import printable
    from cutline.cloud.cluster.autoscaler import ScalingLimits
    from cutline.cloud.cluster.ray_env import prepare
    from cutline.cloud.cluster.status import changes, hopeless
    from cutline.errors import WorkerUnavailable
    from cutline.protos.channel.address import parse_address
    from cutline.protos.directory import Standing

    given = _there(given)
    address, metrics, admission = given.address, given.metrics, given.admission
    server_keys = open_admission(admission, given.listen)
    if metrics is not None:
        for shown in (metrics, given.listen):  # the workers are where the directory is, or beside it
            check_metrics(shown, secured=server_keys is not None and admission.client_ca is not None)
    host, _ = parse_address(given.listen)
    if address is None and host in ("0.0.0.0", "[::]"):  # noqa: S104 (it is refused)
        raise InputError(f"agents are told where the workers are, and {host} is no such place; give this machine's own")
    limits = limits_of(given.workers, given.max_workers)
    if given.threads < 1 or given.gpus_per_worker < 0 or given.drain < 0:
        raise InputError("--threads must be 1 or more, --gpus-per-worker and --drain 0 or more")
    more = _checked(given.worker_options or [])
    _check_workers(more, given)
    prepare(address)
    try:
        from cutline.cloud.cluster.discovery import discovery
        from cutline.cloud.cluster.ray_backend import Cluster, ClusterSpec, Head, HeadGone, connected
        from cutline.cloud.telemetry.metrics import shown as shown_at
    except ModuleNotFoundError as error:
        raise missing(f"a cluster needs {error.name}", "cluster") from None

    order = ClusterSpec(
        listen=given.listen,
        options=(
            *(("--bundle", str(given.bundle)) if given.bundle else ()),
            *("--drain", str(given.drain)),
            *(("--device", "cuda") if given.gpus_per_worker and "--device" not in more else ()),
            *more,
        ),
        limits=limits,
        threads=given.threads,
        gpus=given.gpus_per_worker,
        drain=given.drain,
        server_keys=server_keys,
        tokens=admission.tokens,
        keys=open_keys(given.looked_at_by),
        metrics=metrics is not None,
    )
    stop = threading.Event()
    with connected(address), Signals() as signals:  # after Ray has set its own
        signals.end_by(stop.set)
        asked = queue.SimpleQueue[ScalingLimits]()

        def change(to: Mapping[str, Any]) -> None:
            asked.put(limits_of(to["workers"], to["max-workers"]))

        tell = functools.partial(print, "cutline:", file=sys.stderr, flush=True)
        signals.reread_by(Reload(context, CHANGES, change, tell=tell))
        cluster, head = Cluster(order), Head.of(address)
        try:
            signals.ready()
            print(f"directory listens at {cluster.address}", flush=True)
            with contextlib.ExitStack() as stack:
                if metrics is not None:
                    told = stack.enter_context(shown_at(discovery(cluster.listing), metrics, server_keys))
                    print(f"metrics of the workers are listed at {told}", flush=True)
                seen, served = None, False
                while not stop.wait(0.5):
                    while not asked.empty():
                        cluster.resize(asked.get())
                    listing = cluster.listing()
                    for line in changes(seen, listing):
                        print(printable(line), file=sys.stderr, flush=True)
                    served = served or any(one.standing is Standing.READY for one in listing.workers)
                    if not served and (why := hopeless(listing)) is not None:
                        raise WorkerUnavailable(f"no worker of the cluster starts: {why}")
                    seen = listing
                    if head is not None:
                        head.check()
        except CutlineError as error:
            with contextlib.suppress(CutlineError):  # what is wrong is known already
                cluster.close()
            if isinstance(error, HeadGone):  # for which Ray would look for many seconds more; its processes end with us
                leave(error.exit_code, str(error))
            raise
        cluster.close()


@app.command(epilog="Example: cutline cluster restart 127.0.0.1:50050 --rolling")
@with_options
def restart(
    *,
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the directory of a cluster listens.")],
    rolling: Annotated[
        bool, typer.Option("--rolling", help="One worker after the other; there is no other way.")
    ] = False,
    known_by: options.WorkerKeys,
) -> None:
    """Replace the workers of a cluster that run now, as after an upgrade or with a bundle that changed.

    A new worker is started beside the others. Once it is ready one that was there leaves the directory and drains, and
    when that is gone the next follows. Where no node has room for one more, the old one leaves first. It takes the
    token or the certificate that `cluster up` was given. Ctrl-C ends the waiting, not the restart.
    """
    import asyncio
    import sys

    from cutline.cli.setting import open_keys
    from cutline.cli.terminal.logs import printable
    from cutline.cloud.cluster.status import changes, failing
    from cutline.errors import WorkerUnavailable
    from cutline.protos.directory import DirectoryClient

    if not rolling:
        raise InputError("give --rolling: one worker after the other; to stop all at once, stop `cluster up`")
    keys = open_keys(known_by)

    async def replace() -> int:
        async with DirectoryClient(address, keys) as directory:
            before, count = await directory.list(everyone=True), 0
            await directory.restart()
            while (now := await directory.list(everyone=True)).outdated:
                for line in changes(before, now):
                    print(printable(line), file=sys.stderr, flush=True)
                if (why := failing(now)) is not None:
                    raise WorkerUnavailable(f"no new worker starts, and those that are left go on: {why}")
                count, before = max(count, now.outdated), now
                await asyncio.sleep(0.5)
        return count

    print(f"workers replaced: {asyncio.run(replace())}")


@app.command(epilog="Example: cutline cluster status 127.0.0.1:50050 --json")
@with_options
def status(
    *,
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the directory of a cluster listens.")],
    known_by: options.WorkerKeys,
    as_json: options.Json = False,
) -> None:
    """Show the workers of a cluster: where they are, how they stand, what they have to do."""
    import asyncio
    import sys

    import msgspec
    from rich.console import Console

    from cutline.cli.setting import open_keys
    from cutline.cli.terminal.tables import show_table
    from cutline.protos.directory import DirectoryClient

    keys = open_keys(known_by)

    async def ask() -> Listing:
        async with DirectoryClient(address, keys) as directory:
            return await directory.list(everyone=True)

    listing = asyncio.run(ask())
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(listing) + b"\n")
    else:
        show_table(Console(), _table(address, listing))


def limits_of(workers: int, max_workers: int | None) -> ScalingLimits:
    """How many workers there are. Raises InputError."""
    from cutline.cloud.cluster.autoscaler import ScalingLimits

    most = workers if max_workers is None else max_workers
    if not 1 <= workers <= most:
        raise InputError("--workers must be 1 or more, and --max-workers no fewer")
    return ScalingLimits(least=workers, most=most)


def _there(given: S) -> S:
    """Options for who works in another folder; links stay links, for certificates are renewed by them."""
    values = msgspec.structs.asdict(given).items()
    files = {name: one.absolute() for name, one in values if isinstance(one, Path)}
    groups = {name: _there(one) for name, one in values if isinstance(one, msgspec.Struct)}
    return msgspec.structs.replace(given, **files, **groups)


def _checked(given: Sequence[str]) -> tuple[str, ...]:
    """Options for the workers, their files as for `_there`. Raises InputError for those of this command itself."""
    checked, before = list[str](), ""
    for text in given:
        name, equals, value = text.partition("=")
        if name in _OURS:
            raise InputError(f"{name} is given to `cutline cluster up` itself, before the --")
        if before in _FILES:
            checked.append(str(Path(text).absolute()))
        elif equals and name in _FILES:
            checked.append(f"{name}={Path(value).absolute()}")
        else:
            checked.append(text)
        before = text
    return tuple(checked)


def _check_workers(more: Sequence[str], given: ClusterOptions) -> None:
    """That workers take `more` options: else each would end with that, one after another, and the cluster wait.

    What is in the bundle is looked at where they run here; elsewhere it need not be on this machine. Raises
    InputError, BundleError.
    """
    from cutline.cli.cloud import CloudOptions, check, cloud, formats_of, span_of
    from cutline.cli.setting import open_target

    alone = typer.Typer(add_completion=False)
    alone.command("cloud")(cloud)
    theirs = made(CloudOptions, typer.main.get_command(alone).make_context("cutline cloud", list(more)).params)
    check(msgspec.structs.replace(theirs, drain=given.drain))
    formats_of(theirs.wires)
    if given.address is None:
        span_of(theirs, open_target(given.bundle).manifest.line)


def _table(address: str, listing: Listing) -> Table:
    import time

    from rich.table import Table
    from rich.text import Text

    from cutline.cli.terminal.logs import printable

    table = Table("worker", "address", "standing", "since", "sessions", "queue", "failures")
    table.title = Text(f"cluster at {address}")
    table.caption = f"{listing.wanted} wanted"
    for one in listing.workers:
        seconds = max(0.0, time.time() - one.since)
        # What workers say is text, and neither markup nor what a terminal would obey.
        table.add_row(
            Text(printable(one.name)),
            Text(printable(one.address) or "-"),
            Text(printable(f"{one.standing}: {one.why}" if one.why else one.standing)),
            f"{seconds:,.0f} s",
            f"{one.sessions} of {one.max_sessions}",
            f"{one.queue_seconds * 1000:,.0f} ms",
            str(one.failures),
        )
    return table
