"""`cutline watch`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from cutline.cli import options
from cutline.cli.amounts import BYTES, SECONDS, amount
from cutline.cli.config import Config
from cutline.cli.fields import with_options
from cutline.errors import InputError

if TYPE_CHECKING:
    from cutline.edge.watch.scene_filter import Scene
    from cutline.edge.watch.series import Series

EPILOG = "Example: cutline watch --source /dev/video0 --ask 'Is the gate open?' --every 5s --on-change --mode edge"

CHANGES = frozenset({"max-tokens", "timeout"})  # while it runs


class WatchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `cutline watch` is given."""

    source: Annotated[
        list[str], "A folder of images, a video file, a camera such as /dev/video0, or rtsp://...; repeatable."
    ]
    ask: Annotated[str, "What to ask about every frame."]
    every: Annotated[str, "Time between two frames of a camera or video: 500ms, 2s, 1m. A folder gives all."] = "2s"
    frames: Annotated[int, "Ask about so many frames at once, evenly spread over --over; of cameras and videos."] = 1
    over: Annotated[str | None, "With --frames: the time from the first of them to the last, such as 4s."] = None
    on_change: Annotated[bool, "Leave out frames that show nothing new."] = False
    only_if: Annotated[str | None, "Leave out frames that do not show this, by --encoder."] = None
    encoder: Annotated[Path | None, "With --only-if: bundle of a dual encoder."] = None
    above: Annotated[
        float | None, "With --only-if: the least score of a frame; without it, as `cutline calibrate --encoder` found."
    ] = None
    threshold: Annotated[float, "With --on-change: what is new, as a share of the range from black to white."] = 0.01
    mode: Annotated[str, "edge, cloud, draft or auto, as of `cutline ask`."] = "auto"
    max_tokens: Annotated[int, "Tokens of an answer at most."] = 64
    timeout: Annotated[float, "Seconds to wait for the worker."] = 20.0
    queue: Annotated[int, "Frames of each source that wait; a camera drops its oldest."] = 4
    spool: Annotated[Path | None, "Folder that keeps frames while no worker answers, and all answers."] = None
    spool_limit: Annotated[str, "Size of the frames in it; the oldest make room."] = "256MB"
    once: Annotated[bool, "End when folders hold nothing new and videos are over."] = False
    agent: options.AgentOptions
    reuse: options.Reuse
    gate: options.GateOptions
    journal: options.JournalOptions


@with_options
def watch(*, context: typer.Context, config: Config = None, given: WatchOptions) -> None:
    """Ask the same question about every frame of cameras, videos and folders, and print answers as JSON lines.

    Ctrl-C or SIGTERM stops it in order, with exit code 0; with 130 if nobody read its last line, and a second one at
    once. Videos and cameras need Cutline's extra `camera`.
    """
    import asyncio

    from cutline.cli.process.reload import Reload
    from cutline.cli.process.signals import Signals
    from cutline.cli.setting import agent_opener, open_recorder
    from cutline.core.conversation import Message, TextPart, question
    from cutline.core.request import Mode, Priority, Request
    from cutline.edge.watch.sources import open_sources
    from cutline.edge.watch.spool import Spool

    series = _series(given)
    message = question(given.ask) if series is None else Message("user", (series.part, TextPart(given.ask)))
    how: dict[str, Any] = {"mode": given.mode, "max_tokens": given.max_tokens, "timeout": given.timeout}
    how["priority"] = Priority.BACKGROUND
    asked = Request(messages=(message,), images=(b"",) * given.frames, **how)
    if not 0.0 < given.threshold <= 1.0:
        raise InputError(f"--threshold is {given.threshold:g}; give a share above 0, and 1 at most")
    if given.queue < 1:
        raise InputError(f"--queue is {given.queue}; give 1 or more")
    interval = amount("--every", given.every, SECONDS)
    limit = amount("--spool-limit", given.spool_limit, BYTES)
    threshold = given.threshold if given.on_change else None
    sources = open_sources(
        given.source, every=interval, threshold=threshold, once=given.once, series=series, notify=_tell
    )
    if (scene := _scene(given)) is not None:
        from cutline.edge.watch.scene_filter import FilteredSource

        sources = [FilteredSource(source, scene, notify=_tell) for source in sources]
    agent, journal = given.agent, open_recorder(given.journal)
    open_agent = agent_opener(agent, given.reuse, cuts=False, gate=given.gate, journal=journal)
    if asked.mode is not Mode.EDGE and not (agent.worker or agent.directory or agent.server.upstream or agent.offline):
        raise InputError(f"mode {given.mode} needs a worker; give --worker HOST:PORT, or use --mode edge or --offline")
    about = given.ask if series is None else f"{given.ask} (--frames {series.count} --over {given.over})"
    kept = None if given.spool is None else Spool(given.spool, question=about, limit=round(limit))

    async def run(signals: Signals) -> bool:
        """Whether all lines were read as far as they were written."""
        from cutline.edge.watch.watcher import Watch

        stop = asyncio.Event()
        signals.end_by_setting(stop)
        async with open_agent() as agent:
            watching = Watch(agent, sources, asked, write=_write, room=given.queue, spool=kept, notify=_tell)

            def change(to: Mapping[str, Any]) -> None:
                limits = {"max_tokens": to["max-tokens"], "timeout": to["timeout"]}
                watching.question = msgspec.structs.replace(watching.question, **limits)

            signals.reread_by(Reload(context, CHANGES, change, tell=_tell))
            signals.ready()
            try:
                await watching.run(stop)
            finally:
                left = f", {len(kept)} in the spool" if kept is not None else ""
                told = [f"{watching.answered} answered", f"{watching.still} still"]
                told += [f"{watching.filtered} left out"] if scene is not None else []
                _tell(f"{', '.join(told)}, {watching.dropped} dropped{left}")
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


def _series(given: WatchOptions) -> Series | None:
    """How many frames are asked about at once; None for one. Raises InputError."""
    from cutline.edge.watch.series import Series

    if (given.frames == 1) != (given.over is None):
        raise InputError("several frames are asked about with --frames N and --over TIME; give both")
    if given.over is None:
        return None
    return Series(count=given.frames, seconds=amount("--over", given.over, SECONDS))


def _scene(given: WatchOptions) -> Scene | None:
    """What frames are to show; None where all are asked about. Raises InputError, BundleError."""
    from cutline.cli.setting import open_encoder
    from cutline.edge.watch.scene_filter import open_scene

    encoder = open_encoder(given.encoder, given.agent)
    if given.only_if is None or encoder is None:
        if given.only_if is not None or encoder is not None or given.above is not None:
            raise InputError("frames are filtered with --only-if TEXT and --encoder BUNDLE; give both")
        return None
    if given.above is not None and not -1.0 <= given.above <= 1.0:
        raise InputError(f"--above is {given.above:g}; give a score between -1 and 1")
    return open_scene(encoder, given.only_if, given.above)


def _write(line: bytes) -> None:
    """Past Python's own buffer, which a thread that hangs in a write would keep from being closed at the end."""
    import sys

    from cutline.core.storage.files import write_all
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
