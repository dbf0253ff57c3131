"""Video files and cameras as sources of frames, with PyAV (the extra `cutline[camera]`)."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cutline.core.backoff import Backoff
from cutline.edge.video.display import as_jpeg, pixel_ratio
from cutline.edge.watch.change_detection import HEIGHT, WIDTH, Changes
from cutline.edge.watch.frames import Frame, Notify, Sifted, frame_id
from cutline.errors import InputError

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

OPEN_SECONDS, READ_SECONDS = 10.0, 10.0  # timeouts of a camera


class VideoFile(Sifted):
    """One frame for every `every` seconds of a video file, as fast as they are taken."""

    live = False

    def __init__(self, path: Path, *, name: str, every: float, changes: Changes | None) -> None:
        super().__init__(name=name, changes=changes)
        self._path = path
        self._every = every

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """The video's frames. Raises InputError if it cannot be read."""
        import av

        due, number = 0.0, 0
        try:
            stat = self._path.stat()
            with av.open(str(self._path)) as container:
                for index, frame in enumerate(_decoded(container, stop, live=False)):
                    at = _seconds(frame, index, container)
                    if at < due - 1e-6:  # the slack is for rounding: times are fractions
                        continue
                    due = at + self._every
                    number += 1
                    if _is_new(frame, self._changes):
                        known = frame_id(self._path.absolute(), stat.st_mtime_ns, stat.st_size, f"{at:.3f}")
                        image = as_jpeg(frame, pixel_ratio(container))
                        yield Frame(id=known, source=self.name, number=number, taken=time.time(), image=image, at=at)
        except (av.FFmpegError, OSError) as error:
            raise InputError(f"the video {self.name} does not read: {error.strerror or type(error).__name__}") from None


class Camera(Sifted):
    """One frame every `every` seconds of a camera, which is a device or an rtsp:// address. A failed one is retried.

    The time of a frame is when its data arrived. Frames that the decoder holds back when the camera stops are dropped.
    """

    live = True

    def __init__(
        self,
        address: str,
        *,
        name: str,
        every: float,
        changes: Changes | None,
        notify: Notify,
        driver: str | None = None,
    ) -> None:
        super().__init__(name=name, changes=changes)
        self._address = address
        self._every = every
        self._notify = notify
        self._driver = driver

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Frames until `stop` is set."""
        import av

        backoff, number, reported = Backoff(), 0, ""
        while not stop.is_set():
            try:
                for frame, arrived, ratio in self._watched(stop):
                    if reported:
                        self._notify(f"{self.name} is back")
                    number, reported = number + 1, ""
                    backoff.worked()
                    if _is_new(frame, self._changes):
                        known, image = secrets.token_hex(12), as_jpeg(frame, ratio)
                        yield Frame(id=known, source=self.name, number=number, taken=arrived, image=image, at=arrived)
                fault = "it ended"
            except (av.FFmpegError, OSError) as error:
                fault = error.strerror or type(error).__name__  # the rest of it may contain the address
            if not stop.is_set() and fault != reported:
                self._notify(f"{self.name}: {fault}; trying again")
                reported = fault
            backoff.failed()
            stop.wait(backoff.left)

    def _watched(self, stop: threading.Event) -> Iterator[tuple[VideoFrame, float, float]]:
        """Each frame that is due, the time it arrived, and its pixel ratio.

        All frames are decoded, as later ones depend on them, and buffers must not fill up.
        """
        import av

        options = {"use_wallclock_as_timestamps": "1"}  # set when data arrives; a parser may hold it until more does
        if not self._driver:
            options["rtsp_transport"] = "tcp"  # over UDP every lost packet damages the image
        due = time.monotonic()
        with av.open(
            self._address, format=self._driver, options=options, timeout=(OPEN_SECONDS, READ_SECONDS)
        ) as container:
            for index, frame in enumerate(_decoded(container, stop, live=True)):
                if frame.pts is None and index == 0:  # it arrived at an unknown time while the camera was opened
                    continue
                arrived = time.time() if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
                if (at := time.monotonic()) >= due:
                    due = at + self._every
                    yield frame, float(arrived), pixel_ratio(container)


def _decoded(container: InputContainer, stop: threading.Event, *, live: bool) -> Iterator[VideoFrame]:
    """The frames of the first video stream, without damaged ones.

    A decoder holds frames back to reorder them. The last ones follow at the end, except if it is `live`.
    """
    import av

    if not container.streams.video:
        raise av.InvalidDataError(0, "there is no video in it")
    stream: Any = container.streams.video[0]
    stream.thread_type = "NONE"  # decoder threads would take cores from the models
    for packet in container.demux(stream):
        if stop.is_set() or (live and not packet.size):
            return
        try:
            decoded = packet.decode()
        except av.InvalidDataError:
            continue
        yield from decoded


def _seconds(frame: VideoFrame, index: int, container: InputContainer) -> float:
    """The time of a frame in the video; computed from its number if the file has no times."""
    if frame.pts is not None and frame.time_base is not None:
        return float(frame.pts * frame.time_base)
    return float(index / (container.streams.video[0].average_rate or 25))


def _is_new(frame: VideoFrame, changes: Changes | None) -> bool:
    if changes is None:
        return True
    grey = frame.reformat(width=WIDTH, height=HEIGHT, format="gray", interpolation="AREA").to_ndarray()
    return changes.passes(grey.astype(np.uint8, copy=False))
