"""The pictures of the architecture: every room, every arrow, and nothing that the code does not do."""

from __future__ import annotations

import ast
import functools
import importlib.util
import itertools
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
HOUSE = ROOT / ".dev/cutline"
PICTURES = ROOT / "docs/explanation"
BOX = re.compile(r'<rect class="box" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"')


@functools.cache
def drawing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "scripts/architecture.py")
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # its dataclasses look for it there
    spec.loader.exec_module(module)
    return module


def arrows(picture: str) -> set[tuple[str, str]]:
    named = [names.split() for names in re.findall(r'data-arrow="([^"]+)"', picture)]
    return {pair for names in named for pair in zip(names[::2], names[1::2], strict=True)}


def rooms(picture: str) -> list[str]:
    return re.findall(r'data-room="([^"]+)"', picture)


def closed(pairs: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """With every way round: a → b and b → c make a → c."""
    found = set(pairs)
    while more := {(a, d) for a, b in found for c, d in found if b == c} - found:
        found |= more
    return {(a, b) for a, b in found if a != b}


def children(parent: Path) -> set[str]:
    """The rooms in a folder, as they are imported from `cutline`."""
    folders = {one.name for one in parent.iterdir() if one.is_dir() and list(one.glob("*.py"))}
    return folders | {one.stem for one in parent.glob("*.py")} - {"__init__"}


def written_imports(parent: Path) -> Iterator[tuple[str, str]]:
    """Who imports whom among the rooms of a folder, by what their files say."""
    prefix = ".".join(("cutline", *parent.relative_to(HOUSE).parts)) + "."
    known = children(parent)
    for name in known:
        files = sorted((parent / name).rglob("*.py")) if (parent / name).is_dir() else [parent / f"{name}.py"]
        for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
            wanted = []
            if isinstance(node, ast.Import):
                wanted = [one.name for one in node.names]
            elif isinstance(node, ast.ImportFrom):
                wanted = [f"{node.module}.{one.name}" for one in node.names]
            for one in wanted:
                other = one.removeprefix(prefix).partition(".")[0]
                if one.startswith(prefix) and other in known and other != name:
                    yield f"{prefix}{name}", f"{prefix}{other}"


DRAWN = {
    picture.stem: HOUSE / picture.stem.partition("-")[2]  # architecture-edge.svg shows edge/
    for picture in sorted(PICTURES.glob("architecture*.svg"))
}


@pytest.mark.parametrize("picture", DRAWN)
def test_a_picture_has_every_room_and_the_imports_that_are_written(picture: str) -> None:
    drawn = (PICTURES / f"{picture}.svg").read_text()
    parent = DRAWN[picture]
    prefix = ".".join(("cutline", *parent.relative_to(HOUSE).parts)) + "."
    assert sorted(rooms(drawn)) == sorted(prefix + name for name in children(parent))
    assert closed(arrows(drawn)) == closed(written_imports(parent))
    assert f"({picture}.svg)" in (PICTURES / "architecture.md").read_text()


def test_arrows_that_follow_from_others_are_left_out() -> None:
    drawn = drawing().draw(*house({(0, 1), (1, 2), (0, 2), (2, 3), (0, 3)}), "A house")
    assert arrows(drawn) == {("cutline.r0", "cutline.r1"), ("cutline.r1", "cutline.r2"), ("cutline.r2", "cutline.r3")}


def house(pairs: Collection[tuple[int, int]], *, count: int = 4) -> tuple[list[object], Mapping[str, frozenset[str]]]:
    names = [f"cutline.r{number}" for number in range(count)]
    imports = {names[a]: frozenset(names[d] for c, d in pairs if a == c != d) for a in range(count)}
    says = "What a room says of itself, which takes more than one line in a box that is narrow"
    return [drawing().Room(name, f"{name}/", says) for name in names], imports


@given(st.integers(2, 9).flatmap(lambda count: st.tuples(st.just(count), pairs_of(count))))
@settings(max_examples=60)
def test_any_house_can_be_drawn(count_and_pairs: tuple[int, set[tuple[int, int]]]) -> None:
    count, pairs = count_and_pairs
    given_rooms, imports = house(pairs, count=count)
    drawn = drawing().draw(given_rooms, imports, "A <house> & its rooms")
    assert sorted(rooms(drawn)) == sorted(imports)
    assert closed(arrows(drawn)) == closed((a, b) for a, near in imports.items() for b in near)
    across, high = (float(size) for size in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn)[0])
    boxes = [tuple(float(number) for number in box) for box in BOX.findall(drawn)]
    assert all(x >= 0 and y >= 0 and x + width <= across and y + height <= high for x, y, width, height in boxes)
    for (x, y, width, height), (u, v, wide, tall) in itertools.combinations(boxes, 2):
        assert x + width <= u or u + wide <= x or y + height <= v or v + tall <= y
    assert "A &lt;house&gt; &amp; its rooms" in drawn


def pairs_of(count: int) -> st.SearchStrategy[set[tuple[int, int]]]:
    number = st.integers(0, count - 1)
    return st.sets(st.tuples(number, number), max_size=20)
