"""Frames of video files and cameras, through PyAV: the extra `cutline[camera]`."""

from __future__ import annotations

import importlib.util
import secrets
import struct
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from cutline.core.backoff import Backoff
from cutline.edge.watch.change_detection import HEIGHT, WIDTH, Changes
from cutline.edge.watch.frames import Frame, Sifted, Tell, frame_id
from cutline.errors import InputError
from cutline.errors.extras import missing

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

QUALITY = 95  # of the JPEG that a frame becomes
MAX_RATIO = 8.0  # of a pixel's sides; television has 32:11 at most, and a header that says more is broken
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
                for index, frame in enumerate(_decoded(container, stop, live=False)):
                    at = _seconds(frame, index, container)
                    if at < due - 1e-6:  # times are fractions, which floats round
                        continue
                    due = at + self._every
                    number += 1
                    if _is_new(frame, self._changes):
                        known = frame_id(self._path.absolute(), stat.st_mtime_ns, stat.st_size, f"{at:.3f}")
                        image = _encoded(frame, _pixel_ratio(container))
                        yield Frame(id=known, source=self.name, number=number, taken=time.time(), image=image)
        except (av.FFmpegError, OSError) as error:
            raise InputError(f"the video {self.name} does not read: {error.strerror or type(error).__name__}") from None


class Camera(Sifted):
    """One frame in `every` seconds of a camera: a device, or an rtsp:// address. A camera that fails is tried again.

    A frame's time is when its data came. What a decoder still holds when the camera falls silent is left out.
    """

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
                for frame, came, ratio in self._watched(stop):
                    if said:
                        self._tell(f"{self.name} is back")
                    number, said = number + 1, ""
                    backoff.worked()
                    if _is_new(frame, self._changes):
                        known, image = secrets.token_hex(12), _encoded(frame, ratio)
                        yield Frame(id=known, source=self.name, number=number, taken=came, image=image)
                fault = "it ended"
            except (av.FFmpegError, OSError) as error:
                fault = error.strerror or type(error).__name__  # all else of it may repeat the address
            if not stop.is_set() and fault != said:
                self._tell(f"{self.name}: {fault}; trying again")
                said = fault
            backoff.failed()
            stop.wait(backoff.left)

    def _watched(self, stop: threading.Event) -> Iterator[tuple[VideoFrame, float, float]]:
        """A frame whenever one is due, when it came, and the ratio of its pixels.

        All are decoded: later ones build on them, and no buffer may fill.
        """
        import av

        options = {"use_wallclock_as_timestamps": "1"}  # taken as data comes, which a parser may hold until more does
        if not self._driver:
            options["rtsp_transport"] = "tcp"  # over UDP every lost packet tears the picture
        due = time.monotonic()
        with av.open(
            self._address, format=self._driver, options=options, timeout=(OPEN_SECONDS, READ_SECONDS)
        ) as container:
            for index, frame in enumerate(_decoded(container, stop, live=True)):
                if frame.pts is None and index == 0:  # it came at some time while the camera was opened
                    continue
                came = time.time() if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
                if (at := time.monotonic()) >= due:
                    due = at + self._every
                    yield frame, float(came), _pixel_ratio(container)


def _decoded(container: InputContainer, stop: threading.Event, *, live: bool) -> Iterator[VideoFrame]:
    """The frames of the first video in it; a damaged one is left out.

    A decoder holds frames back to put them in order. The last of these follow at the end, but not of what is `live`.
    """
    import av

    if not container.streams.video:
        raise av.InvalidDataError(0, "there is no video in it")
    stream: Any = container.streams.video[0]
    stream.thread_type = "NONE"  # threads of its own would take the cores from the models
    for packet in container.demux(stream):
        if stop.is_set() or (live and not packet.size):
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


def _pixel_ratio(container: InputContainer) -> float:
    """Width over height of one pixel as it is to be shown."""
    stream: Any = container.streams.video[0]
    ratio = float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)
    return ratio if 1 / MAX_RATIO <= ratio <= MAX_RATIO else 1.0


def _encoded(frame: VideoFrame, ratio: float) -> bytes:
    """A frame as a JPEG file, as it is to be shown: upright, its pixels square; nothing of it is made smaller."""
    picture = frame.to_image()
    if ratio != 1.0:
        width, height = picture.size
        stretched = (round(width * ratio), height) if ratio > 1.0 else (width, round(height / ratio))
        picture = picture.resize(stretched, Image.Resampling.BICUBIC)
    out = BytesIO()
    _turned(picture, frame).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _turned(picture: Image.Image, frame: VideoFrame) -> Image.Image:
    """A picture as the display matrix of its frame wants it, to the nearest quarter turn, mirrored or not."""
    found: Any = frame.side_data.get("DISPLAYMATRIX")
    if found is None:
        return picture
    across, down, leaning, sinking, *_ = struct.unpack("=ii4xii", bytes(found)[:20])
    # A pixel at (x, y) is shown at (across x + leaning y, down x + sinking y).
    if abs(down) + abs(leaning) > abs(across) + abs(sinking):
        picture, across, sinking = picture.transpose(Image.Transpose.TRANSPOSE), leaning, down
    if across < 0:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if sinking < 0 else picture
