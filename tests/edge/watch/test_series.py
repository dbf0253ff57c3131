"""Several frames at once: which ones, when the first, and what a gap does."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import msgspec
import pytest
from PIL import Image

from cutline.core.conversation import Message, TextPart
from cutline.core.request import MAX_IMAGE_BYTES, Mode, Request
from cutline.edge.generation.result import Answer
from cutline.edge.watch.change_detection import Changes
from cutline.edge.watch.frames import Frame
from cutline.edge.watch.scene_filter import FilteredSource
from cutline.edge.watch.series import Series, SeriesSource
from cutline.edge.watch.sources import open_sources
from cutline.edge.watch.spool import Spool
from cutline.edge.watch.watcher import FrameAnswer, Watch
from cutline.errors import InputError
from cutline.testing.agent import spoken


def image(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (16, 16), shade).save(out, "PNG")
    return out.getvalue()


class Scripted:
    """A source whose frames come at `times`, each as bright as its number."""

    name, live, filtered, unreadable, still = "camera", True, 0, 0, 0

    def __init__(self, times: Sequence[float], shades: Sequence[int] | None = None) -> None:
        self.times = times
        self.shades = shades or range(len(times))

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        for number, (at, shade) in enumerate(zip(self.times, self.shades, strict=True), 1):
            yield Frame(id=str(number), source=self.name, number=number, taken=at, image=image(shade), at=at)


def shades(frame: Frame) -> list[int]:
    return [int(Image.open(io.BytesIO(one)).getpixel((0, 0))) for one in frame.images]  # type: ignore[arg-type]


def series(
    times: Sequence[float], *, count: int = 3, over: float = 2.0, every: float = 1.0, **more: Any
) -> list[Frame]:
    source = SeriesSource(Scripted(times), Series(count=count, seconds=over), every=every, changes=None, **more)
    return list(source.frames(threading.Event()))


def test_a_series_has_the_last_frames_and_the_first_waits_for_enough() -> None:
    found = series([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    assert [shades(one) for one in found] == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]
    assert [(one.number, one.id, one.taken) for one in found[:2]] == [(1, "3", 2.0), (2, "4", 3.0)]


def test_one_comes_as_often_as_is_asked_for() -> None:
    assert [shades(one) for one in series([float(at) for at in range(9)], every=3.0)] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8],
    ]


def test_no_series_goes_over_a_gap() -> None:
    """A camera that stalls, or comes back: what was before is left out, and there is none until there are enough."""
    times = [0.0, 1.0, 2.0, 9.0, 10.1, 11.0, 12.0]
    assert [shades(one) for one in series(times)] == [[0, 1, 2], [3, 4, 5], [4, 5, 6]]
    assert [shades(one) for one in series([5.0, 6.0, 0.0, 1.0, 2.0])] == [[2, 3, 4]], "a clock that was set back"
    assert series([0.0, 1.0, 9.0, 10.0, 19.0]) == []


def test_a_still_scene_is_left_out_by_its_last_frame() -> None:
    source = SeriesSource(
        Scripted([float(at) for at in range(6)], [0, 0, 0, 0, 0, 200]),
        Series(count=3, seconds=2.0),
        every=1.0,
        changes=Changes(),
    )
    found = list(source.frames(threading.Event()))
    assert [shades(one) for one in found] == [[0, 0, 0], [0, 0, 200]]
    assert source.still == 2


def test_what_it_is_to_show_is_looked_for_in_the_last_frame() -> None:
    class Bright:
        text = "light"

        def shows(self, shown: bytes) -> bool:
            return bool(Image.open(io.BytesIO(shown)).getpixel((0, 0)))

    inner = SeriesSource(
        Scripted([0.0, 1.0, 2.0, 3.0], [9, 9, 0, 9]), Series(count=2, seconds=1.0), every=1.0, changes=None
    )
    scene: Any = Bright()
    source = FilteredSource(inner, scene)
    assert [shades(one) for one in source.frames(threading.Event())] == [[9, 9], [0, 9]]
    assert source.filtered == 1


@pytest.mark.parametrize("count", [0, 1, 33])
def test_how_many_frames_there_may_be(count: int) -> None:
    with pytest.raises(InputError, match="--frames is"):
        Series(count=count, seconds=4.0)


def test_times_in_the_question_are_even() -> None:
    part = Series(count=4, seconds=4.0).part
    assert part.times == (0.0, 1.333, 2.667, 4.0)
    assert part.seconds == 4.0


def test_a_film_gives_series_of_its_own_time(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(60):
            picture = Image.new("RGB", (64, 48), (index * 4,) * 3)
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))
    (source,) = open_sources(
        [str(tmp_path / "a.mp4")], every=2.0, threshold=None, once=True, series=Series(count=3, seconds=1.0)
    )
    found = list(source.frames(threading.Event()))
    seen = [[round(shade / 4) for shade in map(_shade, one.images)] for one in found]
    assert seen == [pytest.approx(expected, abs=1) for expected in ([0, 5, 10], [20, 25, 30], [40, 45, 50])]


def _shade(file: bytes) -> float:
    return float(Image.open(io.BytesIO(file)).convert("L").getpixel((30, 20)))  # type: ignore[arg-type]


def test_images_of_a_folder_are_no_series(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no time between them"):
        open_sources([str(tmp_path)], every=2.0, threshold=None, once=True, series=Series(count=3, seconds=1.0))


def test_a_series_waits_in_the_spool_as_a_whole(tmp_path: Path) -> None:
    frame = Frame(id="a", source="s", number=1, taken=1.0, image=b"last", earlier=(b"first", b"", b"second"))
    for once in range(2):
        spool = Spool(tmp_path, question="?", limit=10_000)
        if once == 0:
            assert spool.put(frame) == []
        assert spool.oldest() == frame
        spool.close()
    (file,) = (tmp_path / "frames").iterdir()
    file.write_bytes(file.read_bytes().replace(b"[5,0,6]", b"[5,0,99]"))
    spool = Spool(tmp_path, question="?", limit=10_000)
    assert spool.oldest() is None, "sizes that do not fit are a damaged file"
    spool.close()


def test_a_series_is_asked_about_as_one_video() -> None:
    """One that is too large together has an error of its own, and the next goes on."""
    of = Series(count=3, seconds=2.0)
    source = SeriesSource(Scripted([0.0, 1.0, 2.0, 3.0, 4.0]), of, every=1.0, changes=None)
    asked, lines = list[Request](), list[FrameAnswer]()

    class Agent:
        async def answer(self, question: Request) -> Answer:
            asked.append(question)
            return spoken("Nothing.")

    question = Request(messages=(Message("user", (of.part, TextPart("?"))),), images=(b"",) * 3, mode=Mode.EDGE)

    class Larger(SeriesSource):
        def frames(self, stop: threading.Event) -> Iterator[Frame]:
            for frame in source.frames(stop):
                yield replace(frame, image=b"x" * (MAX_IMAGE_BYTES + 1)) if frame.number == 2 else frame

    async def run() -> None:
        def write(line: bytes) -> None:
            lines.append(msgspec.json.decode(line, type=FrameAnswer))

        larger = Larger(source, of, every=1.0, changes=None)
        await Watch(Agent(), [larger], question, write=write, room=4).run(asyncio.Event())

    asyncio.run(run())
    assert [one.images for one in asked] == [tuple(map(image, at)) for at in ((0, 1, 2), (2, 3, 4))]
    assert all(one.messages == question.messages for one in asked)
    assert [(line.frame, line.frames, line.error is None) for line in lines] == [
        (1, 3, True),
        (2, 3, False),
        (3, 3, True),
    ]
    assert "MiB together" in str(lines[1].error)
