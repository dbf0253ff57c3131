"""`cutline watch` with real sources, a real agent and, for the spool, a worker that comes late."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from cutline.cli.amounts import amount
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.errors import InputError

Run = Callable[..., Any]
Start = Callable[..., Any]

QUESTION = "Describe the card."
SECONDS = 60


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    """A folder of three cards."""
    folder = tmp_path / "cards"
    folder.mkdir()
    for index, request in enumerate(islice(requests(Split.EVALUATION, 3, seed=4), 0, None, 6)):
        (folder / f"{index}.png").write_bytes(request.image)
    return folder


def film(path: Path, cards: Path) -> Path:
    """Each card for a second, in a film without loss."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=4, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
        for file in sorted(cards.iterdir()):
            for _ in range(4):
                container.mux(stream.encode(av.VideoFrame.from_image(Image.open(file).convert("RGB"))))
        container.mux(stream.encode())
    return path


def lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_folder_and_a_film_in_mode_edge(run: Run, start: Start, cards: Path, tmp_path: Path) -> None:
    """The answers are those of `cutline ask`; the film's are of the same cards, once each, as the rest stands still."""
    asked = [run("ask", file, QUESTION, "--mode", "edge", "--json") for file in sorted(cards.iterdir())]
    expected = [json.loads(one.out)["text"] for one in asked]
    sources = ["--source", cards, "--source", film(tmp_path / "film.mkv", cards)]
    watch = start("watch", *sources, "--ask", QUESTION, "--mode", "edge", "--once", "--on-change", "--every", "250ms")
    ran = watch.finish()
    assert ran.code == 0, ran.err
    seen = lines(ran.out)
    of_folder, of_film = ([line for line in seen if line["source"].endswith(end)] for end in ("cards", "mkv"))
    assert [(line["file"], line["answer"]) for line in of_folder] == list(
        zip(["0.png", "1.png", "2.png"], expected, strict=True)
    )
    assert [line["frame"] for line in of_film] == [1, 5, 9]
    assert all(line["provenance"] == {"edge": 1.0} and line["error"] is None for line in seen)
    assert ran.err == "cutline: 6 answered, 9 still, 0 dropped\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_it_watches_until_it_is_stopped(start: Start, cards: Path, number: int) -> None:
    watch = start("watch", "--source", cards, "--ask", QUESTION, "--mode", "edge")
    for _ in range(3):
        assert json.loads(watch.line())["answer"]
    shutil.copyfile(cards / "0.png", cards / "late.png")
    assert json.loads(watch.line())["file"] == "late.png"
    watch.signal(number)
    ran = watch.finish()
    assert ran.code == 0
    assert "Traceback" not in ran.err
    assert ran.err.endswith("cutline: 4 answered, 0 still, 0 dropped\n")


def test_frames_wait_in_the_spool_until_a_worker_is_there(
    run: Run, start: Start, cards: Path, worker: str, tmp_path: Path
) -> None:
    """In another process each time, and once killed."""
    spool = ["--spool", tmp_path / "spool", "--ask", QUESTION, "--mode", "draft", "--source", cards]
    away = start("watch", *spool, "--worker", "127.0.0.1:1")
    end = time.monotonic() + SECONDS
    while len(list(tmp_path.glob("spool/frames/*.frame"))) < 3 and time.monotonic() < end:
        time.sleep(0.05)
    away.signal(signal.SIGKILL)
    assert away.finish().out == ""
    there = start("watch", *spool, "--worker", worker, "--once").finish()
    assert there.code == 0, there.err
    seen = lines(there.out)
    assert sorted(line["file"] for line in seen) == ["0.png", "1.png", "2.png"]
    assert all(line["spooled"] and line["answer"] for line in seen)
    assert all(sum(line["provenance"].values()) == pytest.approx(1, abs=1e-3) for line in seen)
    assert there.err == "cutline: 3 answered, 0 still, 0 dropped, 0 in the spool\n"
    assert start("watch", *spool, "--worker", worker, "--once").finish().out == ""
    assert lines((tmp_path / "spool/answers.jsonl").read_text()) == seen


def test_who_reads_may_leave(start: Start, cards: Path) -> None:
    watch = start("watch", "--source", cards, "--ask", QUESTION, "--mode", "edge")
    watch.line()
    watch.stop_reading()
    shutil.copyfile(cards / "0.png", cards / "late.png")
    ran = watch.finish()
    assert ran.code == 0
    assert "Traceback" not in ran.err
    assert "BrokenPipe" not in ran.err


@pytest.fixture
def paused(start: Start, cards: Path) -> Any:
    """A watch whose lines nobody reads: the pipe that it prints into is full."""
    for index in range(60):
        shutil.copyfile(cards / "0.png", cards / f"more{index}.png")
    watch = start("watch", "--source", cards, "--ask", QUESTION, "--mode", "edge")
    watch.fill(4096)
    return watch


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_who_stops_reading_holds_up_no_stop(paused: Any, number: int) -> None:
    paused.signal(number)
    assert paused.wait() == 130
    ran = paused.finish()
    assert "Traceback" not in ran.err
    assert ran.err.endswith(" dropped\ncutline: interrupted\n")
    assert all(json.loads(line)["answer"] for line in ran.out.splitlines()[:-1])  # the last one may be in part


def test_a_second_signal_ends_it_at_once(paused: Any) -> None:
    paused.signal(signal.SIGTERM)
    while paused.heeds(signal.SIGINT):  # it has heard the first, and will wait two seconds for who reads
        time.sleep(0.01)
    paused.signal(signal.SIGINT)
    assert paused.wait() == -signal.SIGINT
    assert paused.finish().err == "", "the first one ends with an account of what was dropped"


def test_a_password_is_in_no_message(run: Run, start: Start) -> None:
    secret = "rtsp://admin:hunter2@127.0.0.1:1/stream"
    assert "hunter2" not in run("watch", "--source", f"x{secret}", "--ask", "?").failed(2)
    watch = start("watch", "--source", secret, "--ask", "?", "--mode", "edge")
    assert watch.told() == "cutline: rtsp://…@127.0.0.1:1/stream: Connection refused; trying again\n"
    watch.signal(signal.SIGINT)
    ran = watch.finish()
    assert ran.code == 0
    assert "hunter2" not in ran.out + ran.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--source", "nowhere"], "is no folder, video file, camera"),
        (["--mode", "guess"], "there is no mode 'guess'"),
        (["--mode", "cloud"], "mode cloud needs a worker"),
        ([], "mode auto needs a worker"),
        (["--mode", "split"], "mode split needs a worker"),
        (["--every", "2"], "--every is 2; give a number and ms, s, m, h, such as 2s"),
        (["--every", "0s"], "--every is 0s"),
        (["--threshold", "0"], "--threshold is 0"),
        (["--queue", "0"], "--queue is 0"),
        (["--spool-limit", "1PB"], "--spool-limit is 1PB"),
        (["--timeout", "0"], "timeout is 0"),
        (["--link", "4g"], "planning needs all three"),
    ],
)
def test_options_that_do_not_fit(run: Run, cards: Path, arguments: list[str], said: str) -> None:
    assert said in run("watch", "--source", cards, "--ask", QUESTION, *arguments).failed(2)


def test_an_empty_question(run: Run, cards: Path) -> None:
    """Some models take one; the demo's says at the first frame that it does not."""
    ran = run("watch", "--source", cards, "--ask", " ", "--mode", "edge")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines()[-1].startswith("cutline: the question is empty")


@pytest.mark.parametrize(("given", "value"), [("2s", 2.0), ("500ms", 0.5), ("1.5 m", 90.0)])
def test_amounts(given: str, value: float) -> None:
    assert amount("--every", given, {"ms": 1e-3, "s": 1.0, "m": 60.0}) == pytest.approx(value)
    with pytest.raises(InputError, match="--every is -1s"):
        amount("--every", "-1s", {"s": 1.0, "m": 60.0})
