"""`cutline ask` about a film."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import msgspec
import pytest
from PIL import Image

from cutline.edge.generation.result import Answer

Run = Callable[..., Any]


@pytest.fixture
def film(tmp_path: Path, card: Path) -> Path:
    """Three seconds of a card."""
    file = tmp_path / "card.mp4"
    picture = Image.open(card).convert("RGB").resize((64, 64))
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(30):
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))
    return file


def test_a_film_is_asked_about_by_its_frames(run: Run, film: Path) -> None:
    ran = run("ask", film, "Read the digits.", "--mode", "edge", "--max-tokens", "3", "--json")
    assert ran.code == 0, ran.err
    answer = msgspec.json.decode(ran.out, type=Answer)
    assert answer.video is not None
    assert (answer.video.frames, answer.video.total, answer.video.mode) == (3, 30, "images")


def test_what_is_no_film_and_what_another_agent_does_not_take_are_one_line(
    run: Run, film: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(film.read_bytes()[:200])
    assert "the video" in run("ask", broken, "What?", "--mode", "edge").failed(2)
    assert "video_url" in run("ask", film, "What?", "--agent", "http://127.0.0.1:1").failed(2)
