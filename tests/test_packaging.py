"""The package is whole: every room is shipped, linked and walled, and nothing heavy comes with a bare install."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKS = ROOT / ".dev" / "cutline"
NOT_SHIPPED = {"bench"}
FRONT = {"__init__.py", "py.typed"}  # what `import cutline` gives


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def rooms() -> set[str]:
    return {link.name for link in LINKS.iterdir()} - FRONT - {"__pycache__"}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower() for requirement in requirements}


@pytest.mark.parametrize("room", sorted(rooms()))
def test_a_room_is_a_relative_link_to_a_documented_package(room: str) -> None:
    assert (LINKS / room).readlink() == Path("../..") / room
    assert (ROOT / room / "__init__.py").read_text().startswith('"""'), f"{room}/__init__.py says what the room is for"


def test_every_top_level_package_is_a_room() -> None:
    assert {found.parent.name for found in ROOT.glob("*/__init__.py")} == rooms() | {"front"}
    assert {file.name for file in (ROOT / "front").iterdir() if file.is_file()} == FRONT
    assert {(LINKS / name).readlink() for name in FRONT} == {Path("../../front") / name for name in FRONT}


def test_every_room_is_shipped_and_walled() -> None:
    config = pyproject()["tool"]
    targets = config["hatch"]["build"]["targets"]
    shipped = rooms() - NOT_SHIPPED
    assert set(targets["sdist"]["only-include"]) == shipped | {"front"}
    assert set(targets["wheel"]["only-include"]) == shipped | {"front"}
    assert targets["wheel"]["sources"] == {room: f"cutline/{room}" for room in shipped} | {"front": "cutline"}
    layers = next(contract for contract in config["importlinter"]["contracts"] if contract["type"] == "layers")
    walled = {room for layer in layers["layers"] for room in re.findall(r"cutline\.(\w+)", layer)}
    assert walled == rooms()
    assert set(config["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]) >= rooms()


def test_a_bare_install_is_light() -> None:
    project = pyproject()["project"]
    assert not names(project["dependencies"]) & {"torch", "transformers", "onnx", "matplotlib", "scikit-learn", "scipy"}
    assert {"torch", "transformers"} <= names(project["optional-dependencies"]["cloud"])


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist, and the wheel built from that sdist alone."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_sdist_and_wheel_hold_every_file_of_the_rooms(distributions: Path) -> None:
    inside = (path for room in (rooms() - NOT_SHIPPED) | {"front"} for path in (ROOT / room).rglob("*"))
    wanted = {path.relative_to(ROOT).as_posix() for path in inside if path.is_file() and path.suffix != ".pyc"}
    assert {"demo/digits.npz", "protos/v1/worker.proto", "protos/v1/worker_pb2.py"} <= wanted
    with zipfile.ZipFile(next(distributions.glob("*.whl"))) as wheel:
        held = {name.removeprefix("cutline/") for name in wheel.namelist() if name.startswith("cutline/")}
    assert held == {path.removeprefix("front/") for path in wanted}
    with tarfile.open(next(distributions.glob("*.tar.gz"))) as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
    assert packed - wanted == {".gitignore", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    assert wanted <= packed
