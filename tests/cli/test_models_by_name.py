"""Models by name at the command line: pulled from a small hub on loopback, exported, listed, run and removed."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cutline.core import telemetry
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.models.hub.library import bundle_path
from cutline.models.hub.pairs import ModelPair
from cutline.testing.hub import COMMIT, SmallHub
from cutline.testing.models.small_models import SMALL

Run = Callable[..., Any]
NAME = "maker/small-vlm"
FILES = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": bytes(10_000), "model.bin": b"pickle"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    made = SmallHub(NAME, FILES)
    monkeypatch.setenv("CUTLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(telemetry, "_GIVEN", "")
    with made.serving() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield made


def listed(run: Run) -> list[dict[str, Any]]:
    ran = run("list", "--json")
    assert (ran.code, ran.err) == (0, "")
    models: list[dict[str, Any]] = json.loads(ran.out)["models"]
    return models


def test_a_model_is_pulled_listed_and_removed(run: Run, hub: SmallHub, tmp_path: Path) -> None:
    assert "cutline pull OWNER/NAME" in run("list").out
    ran = run("pull", NAME)
    assert (ran.code, ran.err) == (0, f"{NAME} as of {COMMIT[:12]}: 3 files, 0.0 MB\n")
    folder = Path(ran.out.strip())
    assert folder.is_relative_to(tmp_path / "home")
    (shown,) = listed(run)
    assert (shown["name"], shown["kind"], shown["version"], shown["path"]) == (NAME, "weights", COMMIT, str(folder))
    assert shown["size"] == sum(file.stat().st_size for file in folder.iterdir())
    row = next(line for line in run("list").out.splitlines() if NAME in line)
    assert [cell.strip() for cell in row.strip("│").split("│")][:4] == [NAME, "weights", "", COMMIT[:12]]
    assert run("rm", NAME, "--kind", "bundle").failed(2).count("cutline list") == 1
    ran = run("rm", NAME)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"removed {folder}: weights, ")
    assert listed(run) == []


def test_what_was_pulled_as_json(run: Run, hub: SmallHub) -> None:
    told, again = (json.loads(run("pull", NAME, "--json").out) for _ in range(2))
    assert told == again, "also where it is here already"
    assert (told["name"], told["kind"], told["version"]) == (NAME, "weights", COMMIT)
    assert sorted(told["files"]) == ["config.json", "model.safetensors", "tokenizer.json"]
    (gone,) = json.loads(run("rm", NAME, "--json").out)["removed"]
    assert gone["path"] == told["path"]


def test_a_failure_is_one_line_with_its_code(run: Run, hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "has no model" in run("pull", "maker/none").failed(2)
    assert "names no model" in run("pull", "../x").failed(2)
    hub.faults.lies["config.json"] = b"[]"
    for token, code, why in ((None, 3, "hash differs"), ("hf_secret", 9, "hf auth login")):
        hub.token = token
        ran = run("pull", NAME)
        told, error = ran.err.splitlines()
        assert told.endswith(" 3 files, 0.0 MB")
        assert (ran.code, ran.out, error.startswith("cutline: "), why in error) == (code, "", True, True)
    monkeypatch.setattr(telemetry, "_GIVEN", "1")
    assert "HF_HUB_OFFLINE" in run("pull", NAME).failed(2)
    assert "cutline list" in run("rm", "maker/none").failed(2)


def test_a_process_of_its_own_asks_a_hub_unless_it_is_told_not_to(
    run: Run, start: Callable[..., Any], hub: SmallHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose environment is the user's, where that of this one says by now that no hub is asked."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")  # which huggingface_hub heeds as well
    assert "HF_HUB_OFFLINE is set" in start("pull", NAME).finish().failed(2)
    assert hub.paths == []
    monkeypatch.delenv("TRANSFORMERS_OFFLINE")
    hub.faults.stalls["model.safetensors"] = 4000
    interrupted = start("pull", NAME)
    end = time.monotonic() + 100
    while time.monotonic() < end and "model.safetensors" not in [one.file for one in hub.asked]:
        time.sleep(0.05)
    interrupted.signal(signal.SIGINT)
    assert interrupted.finish().code == 130
    assert [one["kind"] for one in listed(run)] == ["unfinished"]
    hub.faults.stalls.clear()
    ended = run("pull", NAME)
    assert ended.code == 0, ended.err
    assert Path(ended.out.strip(), "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert [one["kind"] for one in listed(run)] == ["weights"]


def test_a_name_to_keep_a_bundle_by_is_one(run: Run, tmp_path: Path, hub: SmallHub) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    assert "--name, or a folder with --out" in run("export", folder, "--role", "drafter").failed(2)
    assert "has no config.json" in run("export", folder, "--role", "drafter", "--name", "mine").failed(2)
    assert listed(run) == []


def test_both_models_of_a_pair_are_pulled(run: Run, hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = {"small": ModelPair(NAME, f"{NAME}"), "torn": ModelPair(NAME, "maker/none")}
    monkeypatch.setattr("cutline.models.hub.pairs.known_pairs", lambda: pairs)
    ran = run("pull", "torn")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines()[-1].startswith("cutline: ")
    ran = run("pull", "small")
    assert ran.code == 0
    assert ran.err.splitlines()[-2:] == [
        f"next: cutline export {NAME} --role target",
        f"then: cutline export {NAME} --role drafter --target {NAME}",
    ]
    assert [Path(line).is_dir() for line in ran.out.splitlines()] == [True, True]
    told = json.loads(run("pull", "small", "--json").out)
    assert (told["pair"], [one["name"] for one in told["pulled"]]) == ("small", [NAME, NAME])
    assert "did you mean small? Known are small, torn" in run("pull", "smal").failed(2)


def test_what_was_pulled_is_exported_by_name_and_answers(run: Run, hub: SmallHub, card: Path, tmp_path: Path) -> None:
    tower = {"depth": 1, "fullatt_block_indexes": [0]}
    smaller = SMALL["qwen2.5-vl"].smaller(rope={}, text_config={"num_hidden_layers": 1}, vision_config=tower)
    smaller.write(tmp_path / "hf")
    hub.files = {file.name: file.read_bytes() for file in (tmp_path / "hf").iterdir()}
    assert "`cutline pull maker/small-vlm` first" in run("export", NAME, "--role", "drafter").failed(2)
    assert "cutline pull" in run("edge", "--model", NAME, "--insecure").failed(3)
    assert run("pull", NAME).code == 0
    assert f"`cutline export {NAME} --role drafter` makes it" in run("ask", card, "x", "--model", NAME).failed(3)
    assert run("export", NAME, "--role", "drafter").code == 0
    assert [(one["name"], one["kind"], one.get("role")) for one in listed(run)] == [
        (NAME, "bundle", "drafter"),
        (NAME, "weights", None),
    ]
    manifest = json.loads(run("bundle", "show", NAME, "--json").out)["manifest"]
    origin = manifest["origin"]
    assert (manifest["name"], origin["name"], origin["revision"], origin["commit"]) == (
        *("small-vlm", NAME, "main"),
        COMMIT,
    )
    weights = hub.files["model.safetensors"]
    assert origin["files"]["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert f"weights of {NAME} on " in run("bundle", "show", NAME).out
    ran = run("ask", card, "What is this?", "--model", NAME, "--mode", "edge", "--max-tokens", "3", "--json")
    assert ran.code == 0, ran.err
    assert {one["source"] for one in json.loads(ran.out)["tokens"]} == {"edge"}
    assert "is of main, commit" in run("ask", card, "x", "--model", f"{NAME}@v9").failed(3)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's bundles under other names."""
    monkeypatch.setenv("CUTLINE_HOME", str(tmp_path / "home"))
    shutil.copytree(DRAFTER, bundle_path("team/digits", "drafter"))
    shutil.copytree(TARGET, bundle_path("cards", "target"))


@pytest.mark.usefixtures("pair")
def test_bundles_are_given_by_name(run: Run, card: Path, worker: str) -> None:
    given = ("--worker", worker, "--mode", "split", "--cut", "connector", "--max-tokens", "4", "--json")
    ran = run("ask", card, "Read the digits.", "--model", "team/digits", *given)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["text"], "its target, for the cut, was found by its identity"
    profiles = ("--edge", "raspberry-pi-5", "--cloud", "l4", "--link", "4g")
    assert run("plan", "--bundle", "team/digits", "--target", "cards", *profiles).code == 0
    assert "neither a bundle's folder or name" in run("plan", "--target", "none", *profiles).failed(2)
    assert "no bundle at none" in run("cloud", "--model", "none", "--insecure").failed(3)
    layers = ("--layers", "none:", "--listen", "127.0.0.1:0", "--insecure")
    assert "they may be image, vision.0" in run("cloud", "--model", "cards", *layers).failed(2), "it was opened"


def test_folders_are_given_where_nobody_has_a_home(
    run: Run, card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container; and a path that cannot be one is no name, either."""

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    for variable in ("CUTLINE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert run("ask", card, "Read the digits.", "--bundle", DRAFTER, "--mode", "edge").code == 0
    assert "set CUTLINE_HOME" in run("ask", card, "Read the digits.", "--model", "team/digits").failed(2)
    assert "set CUTLINE_HOME" in run("list").failed(2)
    assert "cannot be read" in run("ask", card, "Read the digits.", "--model", "x" * 5000).failed(3)
    assert "File name too long" in run("export", "x" * 5000, "--role", "drafter", "--out", tmp_path / "out").failed(2)


@pytest.mark.usefixtures("pair")
def test_a_name_of_two_bundles_is_not_enough_to_look_into_one(run: Run) -> None:
    shutil.copytree(TARGET, bundle_path("team/digits", "target"))
    assert "is drafter and target" in run("bundle", "show", "team/digits").failed(2)
    assert run("rm", "team/digits", "--role", "target").code == 0
    assert run("bundle", "show", "team/digits").code == 0


def test_weights_that_changed_are_not_exported(run: Run, hub: SmallHub) -> None:
    folder = Path(run("pull", NAME).out.strip())
    (folder / "config.json").write_bytes(b"[]")
    assert "config.json is not what was pulled" in run("export", NAME, "--role", "target").failed(3)
