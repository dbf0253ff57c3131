"""Videos become frames, or one clear line: those that are as they should be, and those made to break a decoder."""

from __future__ import annotations

import asyncio
import io
import struct
import sys
import zlib
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw

from cutline.demo.bundles import DRAFTER
from cutline.edge.video import child, reader
from cutline.edge.video.reader import decoder_environment, part_of
from cutline.edge.video.sampled import DecodeOrder, SampledVideo
from cutline.errors import ImageError, InputError
from cutline.models.bundle import Bundle
from cutline.models.families import Family

FAMILY: Family = Bundle.open(DRAFTER).manifest.family
COUNT, SIZE = 40, (64, 48)


def drawn(index: int) -> Image.Image:
    """A bar whose left edge is at `index`."""
    image = Image.new("RGB", SIZE, "white")
    ImageDraw.Draw(image).rectangle((index, 10, index + 12, 40), fill="red")
    return image


def index_of(file: bytes) -> int:
    shown = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))[24, :, 1]
    return int((shown < 128).argmax())


def animation(kind: str, lasting: Sequence[int] | int = 100) -> bytes:
    out = io.BytesIO()
    frames = [drawn(index) for index in range(COUNT)]
    frames[0].save(out, kind, save_all=True, append_images=frames[1:], duration=lasting, lossless=True)
    return out.getvalue()


def film(
    container: str = "mp4", codec: str = "mpeg4", *, rate: int = 10, size: tuple[int, int] = SIZE, **options: Any
) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=container) as opened:
        stream: Any = opened.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for index in range(COUNT):
            opened.mux(stream.encode(av.VideoFrame.from_image(drawn(index).resize(size))))
        opened.mux(stream.encode(None))
    return out.getvalue()


def read_video(data: bytes, family: Family, *, most: int) -> SampledVideo:
    return asyncio.run(reader.read_video(data, family, most=most))


def refused(data: bytes) -> str:
    with pytest.raises(ImageError) as error:
        read_video(data, FAMILY, most=32)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_frames_of_animations_are_those_that_were_drawn(kind: str) -> None:
    video = read_video(animation(kind), FAMILY, most=32)
    assert video.total == COUNT
    assert video.seconds == pytest.approx(4.0)
    assert [index_of(file) for file in video.frames] == [0, 13, 26, 39]
    assert video.times == pytest.approx((0.0, 1.3, 2.6, 3.9))
    shown = Image.open(io.BytesIO(video.frames[1])).convert("RGB")
    assert np.array_equal(np.asarray(shown), np.asarray(drawn(13))), "lossless"
    part = part_of(video)
    assert (len(part.times), part.total) == (4, COUNT)


def test_frames_of_an_animation_last_as_long_as_they_say() -> None:
    video = read_video(animation("GIF", [0] * 10 + [1000] * 30), FAMILY, most=3)
    assert video.seconds == pytest.approx(31.0), "one that lasts no time is shown for a tenth of a second"
    assert video.times == pytest.approx((0.0, 11.0, 30.0))


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp4", "mpeg4"), ("mov", "libx264"), ("webm", "libvpx"), ("matroska", "mjpeg"), ("avi", "mpeg4")],
)
def test_frames_of_films_are_those_that_were_taken(container: str, codec: str) -> None:
    """Also where frames are stored in another order than they are shown in, and most need others before them."""
    video = read_video(film(container, codec), FAMILY, most=32)
    assert video.total == COUNT
    assert video.seconds == pytest.approx(4.0)
    assert [index_of(file) for file in video.frames] == pytest.approx([0, 13, 26, 39], abs=1)
    assert video.times == pytest.approx((0.0, 1.3, 2.6, 3.9), abs=0.002)


def test_no_more_frames_than_there_is_room_for() -> None:
    assert len(read_video(animation("GIF"), FAMILY, most=2).frames) == 2
    assert len(read_video(animation("GIF", 10_000), FAMILY, most=32).frames) == 8, "as images no more than these"


def test_what_a_header_says_of_rate_and_length_is_not_believed() -> None:
    data = bytearray(film())
    found = data.index(b"mvhd")
    data[found + 16 : found + 24] = struct.pack(">II", 1, 0xFFFFFFFF)  # four thousand million seconds
    found = data.index(b"mdhd")
    data[found + 20 : found + 24] = struct.pack(">I", 0)
    video = read_video(bytes(data), FAMILY, most=32)
    assert video.total == COUNT
    assert video.seconds == pytest.approx(4.0)


@pytest.mark.threat("bombs", "formats")
def test_videos_that_were_made_to_break_their_reader_are_one_clear_line() -> None:
    whole = film()
    chunk = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    head = struct.pack(">I", 13) + b"IHDR" + chunk + struct.pack(">I", zlib.crc32(b"IHDR" + chunk))
    assert "is no video that is taken" in refused(b"")
    assert "is no video that is taken" in refused(b"\xff\xd8\xff" + b"x" * 100)
    assert "is no video that is taken" in refused(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"), "a list of files"
    assert "is no video that is taken" in refused(b"ffconcat version 1.0\nfile /etc/passwd\n")
    assert "truncated or damaged" in refused(whole[: len(whole) // 3])
    assert "truncated or damaged" in refused(b"\x00\x00\x00\x18ftypisom" + b"\xff" * 4000)
    assert "truncated or damaged" in refused(b"GIF89a" + b"\xff" * 200)
    assert "truncated or damaged" in refused(b"\x89PNG\r\n\x1a\n" + head)
    for side in (5000, 60_000):
        large = bytearray(animation("GIF"))
        large[6:10] = struct.pack("<HH", side, side)
        assert "over 16 megapixels; make it smaller" in refused(bytes(large))
    assert "codec is not one" in refused(film("matroska", "ffv1"))
    thin = io.BytesIO()
    Image.new("RGB", (4000, 8)).save(thin, "GIF", save_all=True, append_images=[Image.new("RGB", (4000, 8), "red")])
    assert "one side over" in refused(thin.getvalue())


@pytest.mark.threat("bombs")
def test_a_video_without_end_or_a_decoder_that_breaks_ends_its_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_MODULE", "cutline.core.no_such_module")
    assert "breaks its decoder" in refused(animation("GIF"))

    with monkeypatch.context() as patch:
        patch.setattr(reader, "WALL_SECONDS", 0.0)
        assert "takes over" in refused(animation("GIF"))
    for said, why in (("os.kill(os.getpid(), 9)", "takes over"), ("print('x' * 9)", "breaks its decoder")):
        command = [sys.executable, "-c", f"import os; {said}"]
        monkeypatch.setattr(reader, "tied_command", lambda _, command=command: command)
        assert why in refused(animation("GIF"))
    monkeypatch.setattr(reader, "MAX_ANSWER", 100)
    monkeypatch.setattr(reader, "tied_command", lambda _: [sys.executable, "-c", "while True: print('x' * 99)"])
    assert "takes over" in refused(animation("GIF")), "one that says more than any answer has is ended"


def test_a_process_ends_when_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started = list[asyncio.subprocess.Process]()
    create = asyncio.create_subprocess_exec
    monkeypatch.setattr(reader, "tied_command", lambda _: [sys.executable, "-c", "import time; time.sleep(600)"])

    async def run() -> None:
        async def creating(*given: Any, **more: Any) -> asyncio.subprocess.Process:
            started.append(await create(*given, **more))
            begun.set()
            return started[0]

        begun = asyncio.Event()
        monkeypatch.setattr(asyncio, "create_subprocess_exec", creating)
        reading = asyncio.create_task(reader.read_video(animation("GIF"), FAMILY, most=4))
        await begun.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    asyncio.run(run())
    assert started[0].returncode is not None


def test_frames_that_are_more_than_a_request_may_have_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "MAX_IMAGE_BYTES", 10)
    with pytest.raises(ImageError, match="frames are over"):
        child._bounded(SampledVideo(frames=(b"123456",) * 2, times=(0.0, 1.0), seconds=2.0, total=2))


def test_a_video_of_too_many_frames_is_refused_before_any_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    fields: Any = {"kind": "smolvlm", "tile": 64, "patch": 8, "tile_tokens": 16, "longest_edge": 64, "split": False}
    order = DecodeOrder(family=fields, most=4)
    monkeypatch.setattr("cutline.edge.video.stream.MAX_FRAMES", COUNT - 1)
    monkeypatch.setattr("cutline.edge.video.animation.MAX_FRAMES", COUNT - 1)
    for data in (film(), animation("GIF")):
        with pytest.raises(ImageError, match="frames; send a shorter one"):
            child.decoded(data, order)


def test_without_the_extra_films_name_it_and_animations_need_none(monkeypatch: pytest.MonkeyPatch) -> None:
    fields: Any = {"kind": "smolvlm", "tile": 64, "patch": 8, "tile_tokens": 16, "longest_edge": 64, "split": False}
    order = DecodeOrder(family=fields, most=4)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"PyAV.*extra 'camera'"):
        child.decoded(film(), order)
    assert child.decoded(animation("GIF"), order).total == COUNT


def test_a_decoder_is_told_no_secret_of_its_agent() -> None:
    told = decoder_environment({"CUTLINE_TOKEN": "a", "HF_TOKEN": "b", "UPSTREAM_KEY": "c", "PATH": "/bin"})
    assert told["PATH"] == "/bin"
    assert not {"CUTLINE_TOKEN", "HF_TOKEN", "UPSTREAM_KEY"} & told.keys()
