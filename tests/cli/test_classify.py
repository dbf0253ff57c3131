"""`cutline export --role encoder` and `cutline classify`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from cutline.edge.inference.encoder import Encoder
from cutline.models.encoders.bundle import EncoderBundle
from cutline.models.hub.library import bundle_path
from cutline.testing.models.encoders import OriginalEncoder

Run = Callable[..., Any]
Made = Callable[[str], tuple[Path, EncoderBundle]]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{angle}.png" for angle in (0, 90)]
    for path in paths:
        Image.linear_gradient("L").rotate(int(path.stem)).convert("RGB").save(path)
    return paths


def test_a_folder_becomes_a_bundle_that_classifies_as_transformers(
    run: Run, encoders: Made, pictures: list[Path], tmp_path: Path
) -> None:
    folder, known = encoders("siglip")
    made = run("export", str(folder), "--out", str(tmp_path / "bundle"), "--role", "encoder", "--name", "siglip")
    assert made.code == 0, made.err
    assert "encoder, fp32" in made.err
    assert EncoderBundle.open(tmp_path / "bundle").manifest.identity == known.manifest.identity
    texts = ["a photo of a cat", "a gate"]
    said = run(
        *("classify", str(pictures[0]), *texts, "--encoder", str(tmp_path / "bundle")),
        *("--image", str(pictures[1]), "--json", "--threads", "1"),
    )
    assert said.code == 0, said.err
    answer = json.loads(said.out)
    assert (answer["model"], answer["kind"]) == ("siglip", "sigmoid")
    expected = OriginalEncoder(folder).probabilities([Image.open(path) for path in pictures], texts)
    for path, row, found in zip(pictures, expected, answer["images"], strict=True):
        assert found["image"] == str(path)
        assert [one["text"] for one in found["scores"]] == texts
        assert [one["score"] for one in found["scores"]] == pytest.approx(row.tolist(), rel=1e-3)


def test_people_see_the_likeliest_text_first(run: Run, encoders: Made, pictures: list[Path]) -> None:
    _, bundle = encoders("clip")
    said = run("classify", str(pictures[0]), "cat", "dog", "--template", "a {}", "--encoder", str(bundle.path))
    assert said.code == 0, said.err
    scores = [float(line.split()[-2]) for line in said.out.splitlines() if str(pictures[0]) in line]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1.0, abs=1e-3)


def test_what_is_wrong_is_one_line(run: Run, encoders: Made, pictures: list[Path], tmp_path: Path) -> None:
    folder, bundle = encoders("clip")
    picture, encoder = str(pictures[0]), ("--encoder", str(bundle.path))
    assert "cannot read" in run("classify", "nowhere.png", "cat", *encoder).failed(2)
    assert "no single {}" in run("classify", picture, "cat", *encoder, "--template", "x").failed(2)
    assert "is empty" in run("classify", picture, " ", *encoder).failed(2)
    assert "no bundle at" in run("classify", picture, "cat", "--encoder", str(tmp_path / "none")).failed(3)
    assert "holds an encoder" in run("ask", picture, "What?", "--bundle", str(bundle.path)).failed(3)
    export = ("export", str(folder), "--out", str(tmp_path / "out"), "--role", "encoder")
    assert "int4" in run(*export, "--precision", "int4").failed(2)
    assert "no target" in run(*export, "--target", str(bundle.path)).failed(2)
    assert not (tmp_path / "out").exists()


def test_a_bundle_shows_what_is_in_it(run: Run, encoders: Made) -> None:
    _, bundle = encoders("siglip")
    seen = json.loads(run("bundle", "show", str(bundle.path), "--json").out)
    assert seen["identity"] == bundle.manifest.identity
    assert seen["boundary"] == [16, 48]
    assert seen["bytes"] == 16 * 48 * 4
    assert seen["cuts"] == ["vision.0", "vision.1", "vision.2", "head"]
    assert seen["files"] == {path.name: path.stat().st_size for path in bundle.path.iterdir()}
    told = run("bundle", "show", str(bundle.path)).out
    assert "siglip: encoder, fp32, family siglip, rows of 48 numbers" in told
    assert "image-to-end.onnx" in told


def test_an_agent_makes_rows(run: Run, start: Run, encoders: Made, tmp_path: Path) -> None:
    _, bundle = encoders("siglip")
    agent = start("edge", "--encoder", bundle.path, "--listen", "127.0.0.1:0", "--insecure", "--threads", "1")
    url = f"http://{agent.address()}/v1/embeddings"
    answer = httpx.post(url, json={"input": "a gate", "model": "siglip"}, timeout=60, trust_env=False).json()
    assert answer["data"][0]["embedding"] == pytest.approx(
        Encoder(bundle, threads=1).embed_texts(["a gate"])[0].tolist()
    )
    said = run("edge", "--encoder", tmp_path, "--listen", "127.0.0.1:0", "--insecure")
    assert "no bundle at" in said.failed(3)


def test_an_encoders_bundle_is_copied_and_given_by_name(
    run: Run, encoders: Made, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, bundle = encoders("clip")
    monkeypatch.setenv("CUTLINE_HOME", str(tmp_path / "home"))
    out = bundle_path("team/scenes", "encoder")
    ran = run("bundle", "copy", bundle.path, out)
    assert (ran.code, ran.out) == (0, "")
    assert f"identity {bundle.manifest.identity[:12]}" in ran.err
    assert EncoderBundle.open(out).manifest == bundle.manifest
    assert run("bundle", "show", "team/scenes").code == 0
    assert run("classify", str(pictures[0]), "cat", "dog", "--encoder", "team/scenes").code == 0
    assert "choose another folder" in run("bundle", "copy", "team/scenes", out).failed(2)
    (out / "tokenizer.json").write_bytes(b"{}")
    assert "hash differs" in run("bundle", "copy", "team/scenes", tmp_path / "copy").failed(3)
    assert not (tmp_path / "copy").exists()
