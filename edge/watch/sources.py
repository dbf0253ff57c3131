"""Opens sources from arguments: folders, video files, cameras, and addresses, whose passwords are hidden."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from stat import S_ISCHR, S_ISDIR, S_ISREG

from cutline.edge.video.display import check_video
from cutline.edge.watch.change_detection import Changes
from cutline.edge.watch.frames import Folder, FrameSource, Notify
from cutline.edge.watch.series import Series, SeriesSource
from cutline.edge.watch.video import Camera, VideoFile
from cutline.errors import InputError
from cutline.errors.names import printable

# Some cameras take name and password in the path or the query.
_SECRET = re.compile(r"(?i)((?:pass(?:word|wd)?|pwd|user(?:name)?|login|token|auth|key)[^=/&]{0,8}=)[^/&]*")


def open_sources(
    given: Sequence[str],
    *,
    every: float,
    threshold: float | None,
    once: bool,
    series: Series | None = None,
    notify: Notify = lambda line: None,
) -> list[FrameSource]:
    """The `given` sources, with unique names. Raises InputError.

    A video gives one frame every `every` seconds, or a `series` of them. With a `threshold` frames need a change of so
    much.
    """
    names, sources = list[str](), list[FrameSource]()
    for argument in given:
        name = shown(argument)
        while name in names:
            name += " (again)"
        names.append(name)
        changes = None if threshold is None else Changes(threshold)
        if series is None:
            sources.append(_open(argument, name, every=every, changes=changes, once=once, notify=notify))
            continue
        if S_ISDIR(_mode(argument)):
            raise InputError(f"--frames is of cameras and videos; the images in {name} have no time between them")
        source = _open(argument, name, every=series.space, changes=None, once=once, notify=notify)
        sources.append(SeriesSource(source, series, every=every, changes=changes))
    return sources


def _open(given: str, name: str, *, every: float, changes: Changes | None, once: bool, notify: Notify) -> FrameSource:
    path, mode = Path(given), _mode(given)
    if given.lower().startswith(("rtsp://", "rtsps://")):
        check_video()
        return Camera(given, name=name, every=every, changes=changes, notify=notify)
    if S_ISDIR(mode):
        return Folder(path, name=name, changes=changes, once=once, notify=notify)
    if S_ISCHR(mode):
        check_video()
        return Camera(given, name=name, every=every, changes=changes, notify=notify, driver="v4l2")
    if S_ISREG(mode):
        check_video()
        return VideoFile(path, name=name, every=every, changes=changes)
    raise InputError(f"--source {name} is no folder, video file, camera such as /dev/video0, or rtsp:// address")


def _mode(given: str) -> int:
    """What kind of file is there, as `stat` says it; 0 for none, or none that can be looked at: a name too long."""
    try:
        return Path(given).stat().st_mode
    except (OSError, ValueError):
        return 0


def shown(given: str) -> str:
    """A source's printable name without secrets: without what is before the last @ of an address, and passwords."""
    if _mode(given):
        return printable(given)
    scheme, secret, rest = re.match(r"(?is)(rtsps?:/*|[a-z][\w+.-]*:/+)?(.*@)?(.*)", printable(given)).groups()  # type: ignore[union-attr]
    return (scheme or "") + ("…@" if secret else "") + _SECRET.sub(r"\1…", rest)
