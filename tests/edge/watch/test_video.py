"""Video files made here, and cameras that come and go."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from cutline.core.backoff import Backoff
from cutline.edge.watch.change_detection import Changes
from cutline.edge.watch.frames import Frame
from cutline.edge.watch.video import Camera, VideoFile
from cutline.errors import InputError

RATE = 10  # frames a second

Matrix = tuple[int, int, int, int]


def video(path: Path, levels: list[int]) -> Path:
    """A film of one grey level a frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def taken(path: Path, *, every: float, changes: Changes | None = None) -> list[Frame]:
    return list(VideoFile(path, name="film", every=every, changes=changes).frames(threading.Event()))


def level(frame: Frame) -> float:
    picture = Image.open(BytesIO(frame.image))
    assert (picture.format, picture.size) == ("JPEG", (64, 48))
    return float(np.asarray(picture).mean())


@pytest.mark.parametrize(
    ("every", "which"), [(0.1, range(20)), (0.5, [0, 5, 10, 15]), (0.25, [0, 3, 6, 9, 12, 15, 18])]
)
def test_one_frame_in_so_many_seconds(tmp_path: Path, every: float, which: list[int]) -> None:
    levels = [10 * index + 20 for index in range(20)]
    frames = taken(video(tmp_path / "film.mp4", levels), every=every)
    assert [round((level(frame) - 20) / 10) for frame in frames] == list(which)
    assert [frame.number for frame in frames] == list(range(1, len(frames) + 1))
    assert len({frame.id for frame in frames}) == len(frames)


def test_a_film_read_again_has_the_same_ids(tmp_path: Path) -> None:
    path = video(tmp_path / "film.mp4", [50, 100, 150])
    assert [one.id for one in taken(path, every=0.1)] == [one.id for one in taken(path, every=0.1)]
    assert {one.id for one in taken(path, every=0.2)} < {one.id for one in taken(path, every=0.1)}


def test_a_still_scene_is_left_out(tmp_path: Path) -> None:
    changes = Changes()
    path = video(tmp_path / "film.mp4", [60] * 10 + [160] * 10 + [60] * 5)
    frames = taken(path, every=0.1, changes=changes)
    assert [frame.number for frame in frames] == [1, 11, 21]
    assert changes.still == 22


def test_a_film_ends_when_it_is_told_to(tmp_path: Path) -> None:
    stop = threading.Event()
    frames = VideoFile(video(tmp_path / "film.mp4", [60] * 30), name="film", every=0.1, changes=None).frames(stop)
    next(frames)
    stop.set()
    assert len(list(frames)) <= 2


@pytest.mark.parametrize("content", [b"", b"no film at all" * 100])
def test_what_is_no_film(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    with pytest.raises(InputError, match="the video film does not read: "):
        taken(path, every=1.0)


def test_a_film_without_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(InputError, match="there is no video in it"):
        taken(path, every=1.0)


@pytest.fixture
def told() -> list[str]:
    return []


def watched(camera: Camera, stop: threading.Event) -> Iterator[Frame]:
    yield from camera.frames(stop)


def test_a_camera_that_is_away_is_tried_again_and_never_names_its_password(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    monkeypatch.setattr("cutline.edge.watch.video.Backoff", partial(Backoff, first=0.01))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # nobody listens there from now on
    address = f"rtsp://admin:hunter2@127.0.0.1:{port}/1"
    camera = Camera(address, name="rtsp://…@cam/1", every=0.1, changes=None, notify=told.append)
    stop = threading.Event()
    thread = threading.Thread(target=lambda: list(camera.frames(stop)))
    thread.start()
    end = time.monotonic() + 60
    while not told and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.2)  # for more tries, of which it says nothing
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    assert told == ["rtsp://…@cam/1: Connection refused; trying again"]


def test_a_camera_that_breaks_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]) -> None:
    """A film stands in for the camera: it breaks off at its end, and is there again at the next try."""
    monkeypatch.setattr("cutline.edge.watch.video.Backoff", partial(Backoff, first=0.01))
    path = video(tmp_path / "film.mp4", [100] * 3)
    camera = Camera(str(path), name="cam", every=0.0, changes=None, notify=told.append)
    stop = threading.Event()
    frames = camera.frames(stop)
    some = [next(frames) for _ in range(7)]
    stop.set()
    assert list(frames) == []
    assert [frame.number for frame in some] == list(range(1, 8))
    assert len({frame.id for frame in some}) == 7
    assert told[:2] == ["cam: it ended; trying again", "cam is back"]


def h264(
    path: Path, pictures: list[np.ndarray], *, ratio: Fraction | None = None, matrix: Matrix | None = None
) -> Path:
    """A film as phones and recorders write them: with frames that refer to later ones, and a display matrix."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.options = "yuv444p", {"crf": "1", "x264-params": "bframes=2:b-adapt=0:scenecut=0"}
        if ratio is not None:
            stream.codec_context.sample_aspect_ratio = ratio
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    if matrix is not None:  # into the header of its track (ISO 14496-12): a, b, u, c, d, v, x, y, w
        across, down, leaning, sinking = (one << 16 for one in matrix)
        data, at = bytearray(path.read_bytes()), path.read_bytes().index(b"tkhd") + 44
        data[at : at + 36] = struct.pack(">9i", across, down, 0, leaning, sinking, 0, 0, 0, 1 << 30)
        path.write_bytes(data)
    return path


def quarters() -> np.ndarray:
    """A picture (48, 64, 3) whose four quarters are unlike."""
    levels = np.array([[(240, 20, 20), (20, 240, 20)], [(20, 20, 240), (220, 220, 220)]], np.uint8)
    return levels.repeat(24, 0).repeat(32, 1)


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        pytest.param((1, 0, 0, 1), lambda one: one, id="as stored"),
        pytest.param((0, 1, -1, 0), lambda one: np.rot90(one, -1), id="a quarter clockwise"),
        pytest.param((-1, 0, 0, -1), lambda one: np.rot90(one, 2), id="upside down"),
        pytest.param((0, -1, 1, 0), lambda one: np.rot90(one), id="a quarter counter-clockwise"),
        pytest.param((-1, 0, 0, 1), np.fliplr, id="mirrored"),
        pytest.param((1, 0, 0, -1), np.flipud, id="mirrored upside down"),
        pytest.param((0, 1, 1, 0), lambda one: one.transpose(1, 0, 2), id="mirrored on its diagonal"),
        pytest.param((0, -1, -1, 0), lambda one: np.rot90(one, 2).transpose(1, 0, 2), id="on the other one"),
    ],
)
def test_a_film_is_asked_about_as_it_is_shown(tmp_path: Path, matrix: Matrix, shown: Any) -> None:
    (frame,) = taken(h264(tmp_path / "film.mp4", [quarters()], matrix=matrix), every=1.0)
    picture = np.asarray(Image.open(BytesIO(frame.image)))
    expected = shown(quarters())
    assert picture.shape == expected.shape
    assert np.abs(picture.astype(int) - expected).mean() < 10


@pytest.mark.parametrize(
    ("ratio", "size"),
    [
        (Fraction(24, 11), (140, 48)),  # as of 352x576 at 4:3
        (Fraction(8, 9), (64, 54)),
        (Fraction(1, 1), (64, 48)),
        (Fraction(200, 1), (64, 48)),  # no film is: the header is broken
    ],
)
def test_pixels_that_are_not_square_are_stretched(tmp_path: Path, ratio: Fraction, size: tuple[int, int]) -> None:
    (frame,) = taken(h264(tmp_path / "film.mp4", [quarters()], ratio=ratio), every=1.0)
    assert Image.open(BytesIO(frame.image)).size == size


def test_no_frame_of_a_camera_that_fell_silent_has_a_later_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    """Demuxer, parser and decoder hold frames back, and give them when more comes or the time for it is over."""
    for wait in ("OPEN_SECONDS", "READ_SECONDS"):
        monkeypatch.setattr(f"cutline.edge.watch.video.{wait}", 4.0)
    film = h264(tmp_path / "film.ts", [np.full((48, 64, 3), 20 * index + 20, np.uint8) for index in range(10)])
    stop = threading.Event()

    def tell(line: str) -> None:
        told.append(line)
        stop.set()

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        camera = Camera(address, name="cam", every=0.0, changes=None, notify=tell)
        found = list[Frame]()
        thread = threading.Thread(target=lambda: found.extend(camera.frames(stop)))
        thread.start()
        with server.accept()[0] as connection:
            began = time.time()
            connection.sendall(film.read_bytes())
            silent = time.time()
            thread.join(60)
    assert told == ["cam: Immediate exit requested; trying again"]
    assert len(found) > 5
    assert began - 2 < min(frame.taken for frame in found)
    assert max(frame.taken for frame in found) < silent + 2  # half of what a stale one would be late by
