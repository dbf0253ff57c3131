"""`cutline pull`, `list` and `rm`, by a small hub on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cutline.core import telemetry
from cutline.testing.hub import COMMIT, SmallHub

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
