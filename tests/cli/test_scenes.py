"""`cutline calibrate --encoder`, and what it is for: `cutline watch --only-if`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cutline.edge.inference.encoder import Encoder
from cutline.edge.watch.scene_filter import Scene, thresholds_of
from cutline.models.encoders.bundle import EncoderBundle

Run = Callable[..., Any]
Made = Callable[[str], tuple[Path, EncoderBundle]]

TEXT = "a person at the gate"


@pytest.fixture
def encoder(encoders: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(encoders("siglip")[1].path, tmp_path / "encoder"))


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(60):
        Image.linear_gradient("L").rotate(6 * index).convert("RGB").resize((64, 64)).save(folder / f"{index:02}.png")
    return folder


def test_frames_are_left_out_as_the_calibration_says(
    run: Run, start: Run, encoder: Path, frames: Path, tmp_path: Path
) -> None:
    """Labelled so that the scores tell them apart, but for one: it is the share that may be missed."""
    scene = Scene(Encoder(encoder, threads=1), TEXT, above=0.0)
    scores = {path.name: scene.score(path.read_bytes()) for path in frames.iterdir()}
    ordered = sorted(scores, key=scores.__getitem__)
    shows = set(ordered[10:])
    data = tmp_path / "frames.jsonl"
    data.write_text("".join(json.dumps({"image": f"frames/{n}", "shows": n in shows}) + "\n" for n in scores))
    words = ["--encoder", encoder, "--only-if", TEXT, "--threads", "1"]
    said = run("calibrate", *words, "--data", data, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert (found["text"], found["shown"], found["others"], found["left_out"]) == (TEXT, 50, 10, 10)
    assert found["threshold"] == pytest.approx(scores[ordered[10]])
    assert thresholds_of(EncoderBundle.open(encoder).manifest)[TEXT].threshold == found["threshold"]
    told = run("calibrate", *words, "--data", data)
    assert "10 of 10 others" in " ".join(told.err.split())

    for name in ordered[:8] + ordered[12:56]:
        (frames / name).unlink()
    asked = ["watch", "--source", frames, "--ask", "Describe it.", "--mode", "edge", "--once", *words]
    ran = start(*asked).finish()
    assert ran.code == 0, ran.err
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert {line["file"] for line in lines} == set(ordered[10:12] + ordered[56:])
    assert all(line["answer"] for line in lines)
    assert max(line["filtered"] for line in lines) <= 2
    assert "1 frame left out so far that did not show" in ran.err
    assert ran.err.endswith("6 answered, 0 still, 2 left out, 0 dropped\n")
    least = (scores[ordered[57]] + scores[ordered[58]]) / 2
    assert [json.loads(line)["file"] for line in start(*asked, "--above", least).finish().out.splitlines()] == sorted(
        ordered[58:]
    )


def test_what_is_wrong_is_one_line(run: Run, encoder: Path, frames: Path, tmp_path: Path) -> None:
    data = tmp_path / "frames.jsonl"
    data.write_text('{"image": "frames/00.png", "shows": true}\n')
    words = ["--encoder", encoder, "--only-if", TEXT]
    calibrate = ["calibrate", *words, "--data", data]
    assert "1 of the frames show it, too few to promise" in run(*calibrate).failed(2)
    assert "takes --only-if, --data" in run(*calibrate, "--samples", "7").failed(2)
    assert "all three of" in run("calibrate", *words).failed(2)
    assert "all three of" in run("calibrate", "--only-if", TEXT).failed(2)
    assert "shares between 0 and 1" in run(*calibrate, "--risk", "2").failed(2)
    for line, said in {
        '{"image": "frames/00.png"}': "line 1 is not",
        '{"image": "frames/none.png", "shows": true}': "line 1: there is no file",
        '{"image": "x\\u0000y", "shows": true}': "line 1: there is no file",
        '{"image": "frames.jsonl", "shows": true}': "line 1: this is not a readable image",
    }.items():
        data.write_text(line + "\n")
        assert said in run(*calibrate).failed(2)
    watch = ["watch", "--source", frames, "--ask", "What?", "--mode", "edge", "--once"]
    assert "not calibrated for" in run(*watch, *words).failed(2)
    assert "--only-if TEXT and --encoder BUNDLE" in run(*watch, "--only-if", TEXT).failed(2)
    assert "--only-if TEXT and --encoder BUNDLE" in run(*watch, "--above", "0.3").failed(2)
    assert "between -1 and 1" in run(*watch, *words, "--above", "3").failed(2)
    assert "is empty" in run(*watch, "--encoder", encoder, "--only-if", " ", "--above", "0.3").failed(2)
