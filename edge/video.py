"""Frames of video files and cameras, through PyAV: the extra `cutline[camera]`."""

from __future__ import annotations

import importlib.util
import secrets
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cutline.edge.backoff import Backoff
from cutline.edge.changes import HEIGHT, WIDTH, Changes
from cutline.edge.frames import Frame, Sifted, Tell, frame_id
from cutline.errors import InputError
from cutline.errors.extras import missing

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

QUALITY = 95  # of the JPEG that a frame becomes
OPEN_SECONDS, READ_SECONDS = 10.0, 10.0  # until a camera counts as gone


def check_video() -> None:
    """That videos can be read at all. Raises InputError."""
    if importlib.util.find_spec("av") is None:
        raise missing("videos and cameras need PyAV", "camera")


class VideoFile(Sifted):
    """One frame in `every` seconds of a video file, as fast as they are asked about."""

    live = False

    def __init__(self, path: Path, *, name: str, every: float, changes: Changes | None) -> None:
        super().__init__(name=name, changes=changes)
        self._path = path
        self._every = every

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """The video's frames. Raises InputError if it does not read."""
        import av

        due, number = 0.0, 0
        try:
            stat = self._path.stat()
            with av.open(str(self._path)) as container:
                for index, frame in enumerate(_decoded(container, stop)):
                    at = _seconds(frame, index, container)
                    if at < due - 1e-6:  # times are fractions, which floats round
                        continue
                    due = at + self._every
                    number += 1
                    if _is_new(frame, self._changes):
                        known = frame_id(self._path.absolute(), stat.st_mtime_ns, stat.st_size, f"{at:.3f}")
                        image = _encoded(frame)
                        yield Frame(id=known, source=self.name, number=number, taken=time.time(), image=image)
        except (av.FFmpegError, OSError) as error:
            raise InputError(f"the video {self.name} does not read: {error.strerror or type(error).__name__}") from None


class Camera(Sifted):
    """One frame in `every` seconds of a camera: a device, or an rtsp:// address. A camera that fails is tried again."""

    live = True

    def __init__(
        self, address: str, *, name: str, every: float, changes: Changes | None, tell: Tell, driver: str | None = None
    ) -> None:
        super().__init__(name=name, changes=changes)
        self._address = address
        self._every = every
        self._tell = tell
        self._driver = driver

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Frames until `stop` is set."""
        import av

        backoff, number, said = Backoff(), 0, ""
        while not stop.is_set():
            try:
                for frame in self._watched(stop):
                    if said:
                        self._tell(f"{self.name} is back")
                    number, said = number + 1, ""
                    backoff.worked()
                    if _is_new(frame, self._changes):
                        image = _encoded(frame)
                        yield Frame(
                            id=secrets.token_hex(12), source=self.name, number=number, taken=time.time(), image=image
                        )
                fault = "it ended"
            except (av.FFmpegError, OSError) as error:
                fault = error.strerror or type(error).__name__  # all else of it may repeat the address
            if not stop.is_set() and fault != said:
                self._tell(f"{self.name}: {fault}; trying again")
                said = fault
            backoff.failed()
            stop.wait(backoff.left)

    def _watched(self, stop: threading.Event) -> Iterator[VideoFrame]:
        """A frame whenever one is due. All are decoded: later ones build on them, and no buffer may fill."""
        import av

        options = {} if self._driver else {"rtsp_transport": "tcp"}  # over UDP every lost packet tears the picture
        due = time.monotonic()
        with av.open(
            self._address, format=self._driver, options=options, timeout=(OPEN_SECONDS, READ_SECONDS)
        ) as container:
            for frame in _decoded(container, stop):
                if (at := time.monotonic()) >= due:
                    due = at + self._every
                    yield frame


def _decoded(container: InputContainer, stop: threading.Event) -> Iterator[VideoFrame]:
    """The frames of the first video in it; a damaged one is left out."""
    import av

    if not container.streams.video:
        raise av.InvalidDataError(0, "there is no video in it")
    stream: Any = container.streams.video[0]
    stream.thread_type = "NONE"  # threads of its own would take the cores from the models
    for packet in container.demux(stream):
        if stop.is_set():
            return
        try:
            decoded = packet.decode()
        except av.InvalidDataError:
            continue
        yield from decoded


def _seconds(frame: VideoFrame, index: int, container: InputContainer) -> float:
    """When a frame is shown; where the file does not say, by its number."""
    if frame.pts is not None and frame.time_base is not None:
        return float(frame.pts * frame.time_base)
    return float(index / (container.streams.video[0].average_rate or 25))


def _is_new(frame: VideoFrame, changes: Changes | None) -> bool:
    if changes is None:
        return True
    grey = frame.reformat(width=WIDTH, height=HEIGHT, format="gray", interpolation="AREA").to_ndarray()
    return changes.passes(grey.astype(np.uint8, copy=False))


def _encoded(frame: VideoFrame) -> bytes:
    out = BytesIO()
    frame.to_image().save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
