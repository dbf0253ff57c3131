"""A class name means one thing in the whole house, a folder can be looked over, and no function takes too much."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = (
    "cli",
    "cloud",
    "core",
    "demo",
    "devices",
    "edge",
    "errors",
    "evaluation",
    "learning",
    "models",
    "partitioner",
    "protos",
)
MOST_MODULES = 12  # in a folder; `__init__` says what they are and is none. Of commands there are as many as there are.
MOST_PARAMETERS = 8


def modules(*rooms: str) -> list[Path]:
    """All that is written by hand in `rooms`."""
    return [file for room in rooms for file in (ROOT / room).rglob("*.py") if "v1" not in file.parts]


def test_no_two_modules_have_a_public_class_of_one_name() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for file in modules(*ROOMS):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].add(str(file.relative_to(ROOT)))
    assert {name: files for name, files in found.items() if len(files) > 1} == {}


@pytest.mark.parametrize(
    "room",
    [
        "cloud",
        "core",
        "devices",
        "edge",
        "errors",
        "evaluation",
        "learning",
        "models",
        "partitioner",
        "protos",
        "testing",
    ],
)
def test_a_folder_can_be_looked_over(room: str) -> None:
    counts = {
        folder: sum(file.name != "__init__.py" for file in folder.glob("*.py"))
        for folder in (ROOT / room, *(ROOT / room).rglob("*"))
        if folder.is_dir()
    }
    assert {str(folder): count for folder, count in counts.items() if count > MOST_MODULES} == {}


def test_no_function_takes_more_than_one_can_keep_in_mind() -> None:
    found = set()
    for file in modules(*ROOMS, "bench", "front", "scripts", "testing"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = node.args
                every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
                if sum(one is not None and one.arg not in ("self", "cls") for one in every) > MOST_PARAMETERS:
                    found.add((str(file.relative_to(ROOT)), node.name))
    assert found == set()
