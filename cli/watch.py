"""`cutline watch`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from cutline.cli import options
from cutline.cli.config import Config
from cutline.errors import InputError

EPILOG = "Example: cutline watch --source /dev/video0 --ask 'Is the gate open?' --every 5s --on-change --mode edge"

_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"kB": 1e3, "MB": 1e6, "GB": 1e9}


def watch(
    source: Annotated[
        list[str],
        typer.Option(help="A folder of images, a video file, a camera such as /dev/video0, or rtsp://...; repeatable."),
    ],
    ask: Annotated[str, typer.Option(help="What to ask about every frame.")],
    every: Annotated[
        str, typer.Option(help="Time between two frames of a camera or video: 500ms, 2s, 1m. A folder gives all.")
    ] = "2s",
    on_change: Annotated[bool, typer.Option("--on-change", help="Leave out frames that show nothing new.")] = False,
    threshold: Annotated[
        float, typer.Option(help="With --on-change: what is new, as a share of the range from black to white.")
    ] = 0.01,
    mode: Annotated[str, typer.Option(help="edge, cloud, draft or auto, as of `cutline ask`.")] = "auto",
    worker: options.Workers = None,
    directory: options.Directory = None,
    bundle: options.Bundle = None,
    target: options.Target = None,
    edge_profile: options.EdgeProfile = None,
    cloud_profile: options.CloudProfile = None,
    link: options.Link = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 64,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the worker.")] = 20.0,
    queue: Annotated[int, typer.Option(help="Frames of each source that wait; a camera drops its oldest.")] = 4,
    spool: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps frames while no worker answers, and all answers.", show_default=False),
    ] = None,
    spool_limit: Annotated[str, typer.Option(help="Size of the frames in it; the oldest make room.")] = "256MB",
    once: Annotated[
        bool, typer.Option("--once", help="End when folders hold nothing new and videos are over.")
    ] = False,
    threads: options.Threads = None,
    provider: options.Provider = None,
    ca: options.Ca = None,
    cert: options.Cert = None,
    key: options.Key = None,
    token_file: options.TokenFile = None,
    notice: options.Notice = 2.0,
    upstream: options.Upstream = None,
    upstream_model: options.UpstreamModel = "default",
    upstream_key_file: options.UpstreamKeyFile = None,
    memory: options.Memory = 0.0,
    fresh: options.Fresh = False,
    offline: options.Offline = False,
    config: Config = None,
) -> None:
    """Ask the same question about every frame of cameras, videos and folders, and print answers as JSON lines.

    Ctrl-C or SIGTERM stops it in order, with exit code 0; with 130 if nobody read its last line, and a second one at
    once. Videos and cameras need Cutline's extra `camera`.
    """
    import asyncio

    from cutline.cli.process.signals import Signals
    from cutline.cli.setting import AgentOptions, agent_opener, open_keys
    from cutline.core.request import Mode, Request
    from cutline.edge.watch.sources import open_sources
    from cutline.edge.watch.spool import Spool

    question = Request.about(b"", ask, mode=mode, max_tokens=max_tokens, timeout=timeout)
    if not 0.0 < threshold <= 1.0:
        raise InputError(f"--threshold is {threshold:g}; give a share above 0, and 1 at most")
    if queue < 1:
        raise InputError(f"--queue is {queue}; give 1 or more")
    interval, limit = amount("--every", every, _SECONDS), amount("--spool-limit", spool_limit, _BYTES)
    sources = open_sources(source, every=interval, threshold=threshold if on_change else None, once=once, tell=_tell)
    given = AgentOptions(
        bundle=bundle,
        target=target,
        workers=worker or (),
        directory=directory,
        profiles=(edge_profile, cloud_profile, link),
        threads=threads,
        provider=provider,
        keys=open_keys(ca, cert, key, token_file),
        notice=notice,
        offline=offline,
        upstream=upstream,
        upstream_model=upstream_model,
        upstream_key_file=upstream_key_file,
        memory=memory,
        fresh=fresh,
    )
    open_agent = agent_opener(given, cuts=False)
    if question.mode is not Mode.EDGE and not (worker or directory or upstream or offline):
        raise InputError(f"mode {mode} needs a worker; give --worker HOST:PORT, or use --mode edge or --offline")
    kept = None if spool is None else Spool(spool, question=ask, limit=round(limit))

    async def run(signals: Signals) -> bool:
        """Whether all lines were read as far as they were written."""
        from cutline.edge.watch.watcher import Watch

        stop = asyncio.Event()
        signals.end_by_setting(stop)
        async with open_agent() as agent:
            watching = Watch(agent, sources, question, write=_write, room=queue, spool=kept, tell=_tell)
            try:
                await watching.run(stop)
            finally:
                left = f", {len(kept)} in the spool" if kept is not None else ""
                _tell(f"{watching.answered} answered, {watching.still} still, {watching.dropped} dropped{left}")
        return not watching.unread

    try:
        with Signals() as signals:  # at the second one what is in the spool is whole, as at any point
            read = asyncio.run(run(signals))
    except BrokenPipeError:  # who reads has seen enough
        return
    finally:
        if kept is not None:
            kept.close()
    if not read:
        raise KeyboardInterrupt


def amount(option: str, given: str, units: dict[str, float]) -> float:
    """A positive number with one of the units, such as `2s`. Raises InputError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", given)
    if found is None or found[2] not in units or float(found[1]) <= 0:
        raise InputError(f"{option} is {given}; give a number and {', '.join(units)}, such as 2{list(units)[1]}")
    return float(found[1]) * units[found[2]]


def _write(line: bytes) -> None:
    """Past Python's own buffer, which a thread that hangs in a write would keep from being closed at the end."""
    import sys

    from cutline.core.files import write_all
    from cutline.errors import StorageError

    try:
        write_all(sys.stdout.fileno(), line)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StorageError(f"the output cannot be written: {error.strerror}") from None


def _tell(line: str) -> None:
    import sys

    print("cutline:", line, file=sys.stderr, flush=True)
