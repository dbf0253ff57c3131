"""Sources as people name them: folders, video files, cameras, and addresses whose passwords stay unsaid."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cutline.edge.watch.change_detection import Changes
from cutline.edge.watch.frames import Folder, FrameSource, Tell
from cutline.edge.watch.video import Camera, VideoFile, check_video
from cutline.errors import InputError
from cutline.errors.names import printable

# Some cameras take name and password in the path, or behind a question mark.
_SECRET = re.compile(r"(?i)((?:pass(?:word|wd)?|pwd|user(?:name)?|login|token|auth|key)[^=/&]{0,8}=)[^/&]*")


def open_sources(
    given: Sequence[str], *, every: float, threshold: float | None, once: bool, tell: Tell = lambda line: None
) -> list[FrameSource]:
    """The sources that a person named; each with its own name. Raises InputError.

    Of a video one frame in `every` seconds is taken; with a `threshold`, of all sources what has changed by so much.
    """
    names, sources = list[str](), list[FrameSource]()
    for one in given:
        name = shown(one)
        while name in names:
            name += " (again)"
        names.append(name)
        changes = None if threshold is None else Changes(threshold)
        sources.append(_open(one, name, every=every, changes=changes, once=once, tell=tell))
    return sources


def _open(given: str, name: str, *, every: float, changes: Changes | None, once: bool, tell: Tell) -> FrameSource:
    path = Path(given)
    if given.lower().startswith(("rtsp://", "rtsps://")):
        check_video()
        return Camera(given, name=name, every=every, changes=changes, tell=tell)
    if path.is_dir():
        return Folder(path, name=name, changes=changes, once=once, tell=tell)
    if path.is_char_device():
        check_video()
        return Camera(given, name=name, every=every, changes=changes, tell=tell, driver="v4l2")
    if path.is_file():
        check_video()
        return VideoFile(path, name=name, every=every, changes=changes)
    raise InputError(f"--source {name} is no folder, video file, camera such as /dev/video0, or rtsp:// address")


def shown(given: str) -> str:
    """A source's name as text, without what is secret: of an address all before the last @, and what passwords say."""
    if Path(given).exists():
        return printable(given)
    scheme, secret, rest = re.match(r"(?is)(rtsps?:/*|[a-z][\w+.-]*:/+)?(.*@)?(.*)", printable(given)).groups()  # type: ignore[union-attr]
    return (scheme or "") + ("…@" if secret else "") + _SECRET.sub(r"\1…", rest)
