"""Draw the rooms and who imports whom, from the imports themselves: docs/explanation/architecture.md and its pictures.

A box is a room: a folder, or a module that lies in none of its own. Its line of text is the first sentence of its
docstring. An arrow is one import or more; one that follows from others (a imports b, b imports c, so a → c) is left
out of the picture, not of the table below it. With `--check`, only say whether all of it is fresh.
"""

from __future__ import annotations

import argparse
import ast
import html
import itertools
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
PAGE = "docs/explanation/architecture.md"
BEGIN, END = "<!-- rooms: written by `make docs` -->\n", "<!-- end of rooms -->\n"
PACKAGE = "cutline"
DETAILED = ("cutline.edge", "cutline.cloud")  # drawn on their own, too, once they have rooms within
FEW = 3  # folders within, from which on a picture of them says something

Imports = Mapping[str, frozenset[str]]  # of every room drawn: the rooms drawn that it imports, itself or by a way round


@dataclass(frozen=True, slots=True)
class Room:
    """A box: its dotted `name`, its `title`, and the line that `says` what it is."""

    name: str
    title: str
    says: str


def read_imports(graph: grimp.ImportGraph, parent: str) -> Imports:
    """Who imports whom among the children of `parent`, all modules below a child taken together."""
    room = {below: child for child in graph.find_children(parent) for below in {child} | graph.find_descendants(child)}
    found: dict[str, set[str]] = {child: set() for child in graph.find_children(parent)}
    for module, child in room.items():
        imported = (room[one] for one in graph.find_modules_directly_imported_by(module) if one in room)
        found[child].update(one for one in imported if one != child)
    return {child: frozenset(imported) for child, imported in sorted(found.items())}


def read_room(root: Path, name: str) -> Room:
    """What `name` is, in its own words. Raises SystemExit where it has none."""
    path = root.joinpath(*name.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    words = ast.get_docstring(ast.parse(file.read_text("utf-8")))
    if not words:
        raise SystemExit(f"{file.relative_to(root)} has no docstring: its first sentence says what the room is")
    paragraph = " ".join(words.split("\n\n")[0].split())
    return Room(name, f"{path.name}/" if path.is_dir() else file.name, paragraph.split(". ")[0].removesuffix("."))


def reached(imports: Imports) -> Imports:
    """Every room that can be come to from a room, along any number of arrows."""
    found = {room: set(imported) for room, imported in imports.items()}
    for way in found:
        for room in found:
            if way in found[room]:
                found[room] |= found[way]
    return {room: frozenset(far) for room, far in found.items()}


def reduced(imports: Imports) -> Imports:
    """The arrows that do not follow from others. Those of a circle are all kept: none of them follows."""
    far = reached(imports)

    def follows(room: str, imported: str) -> bool:
        between = (one for one in far[room] if imported in far[one])
        return any(room not in far[one] and one not in far[imported] for one in between)

    return {
        room: frozenset(one for one in near if room in far[one] or not follows(room, one))
        for room, near in imports.items()
    }


def depths(imports: Imports) -> dict[str, int]:
    """How far down each room lies: below all that import it, or, where none does, right above what it imports.

    Rooms of one circle lie level.
    """
    far = reached(imports)
    found: dict[str, int] = {}

    def depth(room: str) -> int:
        if room not in found:
            found[room] = max((depth(one) + 1 for one in far if room in far[one] and one not in far[room]), default=0)
        return found[room]

    for room in imports:
        depth(room)
    imported = frozenset[str]().union(*imports.values())
    tops = [room for room, near in imports.items() if near and room not in imported]
    return found | {room: min(found[one] for one in imports[room]) - 1 for room in tops}


# The drawing. All lengths are in the SVG's own units; at 480 across, its text can still be read on a phone.
ACROSS, NARROWEST, MARGIN, APART, LANE, BETWEEN = 480.0, 120.0, 12.0, 18.0, 16.0, 40.0
PADDING, TITLE, LINE, LETTER = 10.0, 21.0, 15.5, 6.5  # within a box; LETTER is the mean width of one
SWEEPS = 12


@dataclass(slots=True)
class Box:
    """A place in a layer: a room's, or a lane that an arrow goes through on its way down (`room` is None)."""

    key: tuple[str, ...]
    layer: int
    room: Room | None
    below: list[Box] = field(default_factory=list)
    above: list[Box] = field(default_factory=list)
    x: float = 0.0
    y: float = 0.0
    width: float = LANE
    height: float = 0.0
    lines: list[str] = field(default_factory=list)

    @property
    def middle(self) -> float:
        """Where it is across the picture."""
        return self.x + self.width / 2


def arranged(rooms: Sequence[Room], imports: Imports) -> list[list[Box]]:
    """Layers of boxes, the highest first, joined through lanes, in an order that crosses few arrows."""
    depth = depths(imports)
    boxes = {room.name: Box((room.name,), depth[room.name], room) for room in rooms}
    layers: list[list[Box]] = [[] for _ in range(max(depth.values(), default=0) + 1)]
    for box in boxes.values():
        layers[box.layer].append(box)
    for start, ends in sorted(reduced(imports).items()):
        for end in sorted(ends):
            last = boxes[start]
            for layer in range(last.layer + 1, boxes[end].layer):
                lane = Box((start, end, str(layer)), layer, None)
                layers[layer].append(lane)
                _join(last, lane)
                last = lane
            if last.layer < boxes[end].layer:
                _join(last, boxes[end])
    return _with_few_crossings(layers)


def _join(upper: Box, lower: Box) -> None:
    upper.below.append(lower)
    lower.above.append(upper)


def _with_few_crossings(layers: list[list[Box]]) -> list[list[Box]]:
    best = [list(layer) for layer in layers]
    for sweep in range(SWEEPS):
        for layer in layers if sweep % 2 else reversed(layers):
            place = {box.key: index / len(row) for row in layers for index, box in enumerate(row)}
            near = {box.key: [place[one.key] for one in (box.above if sweep % 2 else box.below)] for box in layer}
            layer.sort(key=lambda box: sum(near[box.key]) / len(near[box.key]) if near[box.key] else place[box.key])
        if _crossings(layers) < _crossings(best):
            best = [list(layer) for layer in layers]
    return best


def _crossings(layers: Sequence[Sequence[Box]]) -> int:
    count = 0
    for layer, lower in itertools.pairwise(layers):
        place = {box.key: index for index, box in enumerate(lower)}
        arrows = [(index, place[one.key]) for index, box in enumerate(layer) for one in box.below]
        count += sum((a - c) * (b - d) < 0 for (a, b), (c, d) in itertools.combinations(arrows, 2))
    return count


def place(layers: Sequence[Sequence[Box]]) -> tuple[float, float]:
    """Give every box its size and place; returns the width and height of the picture."""
    taken = [sum(APART + (NARROWEST if box.room else LANE) for box in layer) for layer in layers]
    across = max(ACROSS, 2 * MARGIN - APART + max(taken))
    y = MARGIN
    for layer in layers:
        lanes = sum(box.room is None for box in layer)
        left = across - 2 * MARGIN - APART * (len(layer) - 1) - LANE * lanes
        for box in layer:
            if box.room:
                box.width = left / (len(layer) - lanes)
                box.lines = textwrap.wrap(box.room.says.replace("`", ""), int((box.width - 2 * PADDING) / LETTER))
        height = max(2 * PADDING + TITLE + LINE * len(box.lines) for box in layer)
        x = MARGIN
        for box in layer:
            box.x, box.y, box.height = x, y, height
            x += box.width + APART
        y += height + BETWEEN
    return across, y - BETWEEN + MARGIN


def _ports(box: Box, others: Iterable[Box]) -> dict[tuple[str, ...], float]:
    """Where arrows to or from each of `others` leave the box: near where the other is, and not upon each other."""
    wanted = sorted(others, key=lambda one: (one.middle, one.key))
    if box.room is None:
        return {one.key: box.middle for one in wanted}
    step = min(22.0, (box.width - 2 * PADDING) / max(len(wanted), 1))
    low, high = box.x + PADDING + step / 2, box.x + box.width - PADDING - step / 2
    at: list[float] = []
    for one in wanted:
        overlap = (max(box.x, one.x) + min(box.x + box.width, one.x + one.width)) / 2
        at.append(max(min(overlap, high), low, at[-1] + step if at else low))
    for index in range(len(at) - 1, -1, -1):
        at[index] = min(at[index], high - step * (len(at) - 1 - index))
    return {one.key: x for one, x in zip(wanted, at, strict=True)}


STYLE = """
    :root { --paper: #fff; --box: #f4f5f8; --line: #c3c9d4; --title: #1c2433; --text: #465063; --arrow: #7b8698; }
    .edge { --box: #e8f5f1; --line: #6db9a3; } .cloud { --box: #ecefff; --line: #93a1e8; }
    @media (prefers-color-scheme: dark) {
      :root { --paper: #161a22; --box: #222834; --line: #434d5f; --title: #eef1f6; --text: #b4bdcc; --arrow: #8f9bb0; }
      .edge { --box: #17322b; --line: #3f8a75; } .cloud { --box: #232a4c; --line: #5868bd; }
    }
    text { font-family: Inter, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; font-size: 12.5px; }
    .paper { fill: var(--paper); } .box { fill: var(--box); stroke: var(--line); stroke-width: 1.2; }
    .title { font-size: 15px; font-weight: 600; fill: var(--title); } .says { fill: var(--text); }
    .arrow { fill: none; stroke: var(--arrow); stroke-width: 1.5; } .head { fill: var(--arrow); }
"""


def draw(rooms: Sequence[Room], imports: Imports, title: str) -> str:
    """The picture of some rooms, as SVG. An arrow says in `data-arrow` which two it joins."""
    layers = arranged(rooms, imports)
    across, height = place(layers)
    boxes = [box for layer in layers for box in layer]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across:.0f} {height:.0f}" width="{across:.0f}" '
        f'height="{height:.0f}" role="img" aria-labelledby="title">',
        f'  <title id="title">{html.escape(title)}</title>\n  <style>{STYLE}  </style>',
        '  <defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'markerUnits="userSpaceOnUse" orient="auto-start-reverse">',
        '    <path class="head" d="M0 0.5 L8 4 L0 7.5 z"/></marker></defs>',
        f'  <rect class="paper" width="{across:.0f}" height="{height:.0f}" rx="10"/>',
        *_arrows(boxes),
        *_level_arrows(boxes, imports),
        *(line for box in boxes if box.room for line in _box(box, box.room)),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _box(box: Box, room: Room) -> Iterator[str]:
    side = next((side.rpartition(".")[2] for side in DETAILED if f"{room.name}.".startswith(f"{side}.")), "")
    yield f'  <g class="{side}" data-room="{room.name}">' if side else f'  <g data-room="{room.name}">'
    size = f'width="{box.width:.1f}" height="{box.height:.1f}"'
    yield f'    <rect class="box" x="{box.x:.1f}" y="{box.y:.1f}" {size} rx="7"/>'
    x, y = box.x + PADDING, box.y + PADDING + 13
    yield f'    <text class="title" x="{x:.1f}" y="{y:.1f}">{html.escape(room.title)}</text>'
    for index, line in enumerate(box.lines):
        yield f'    <text class="says" x="{x:.1f}" y="{y + TITLE + LINE * index - 1:.1f}">{html.escape(line)}</text>'
    yield "  </g>"


def _arrows(boxes: Sequence[Box]) -> Iterator[str]:
    out = {box.key: _ports(box, box.below) for box in boxes}
    into = {box.key: _ports(box, box.above) for box in boxes}
    for start in boxes:
        for first in start.below if start.room else ():
            upper, lower = start, first
            steps = [f"M{out[upper.key][lower.key]:.1f} {upper.y + upper.height:.1f}"]
            while True:
                x, to, y = out[upper.key][lower.key], into[lower.key][upper.key], upper.y + upper.height
                half = (lower.y - y) / 2
                steps.append(f"C{x:.1f} {y + half:.1f} {to:.1f} {lower.y - half:.1f} {to:.1f} {lower.y - 1:.1f}")
                if lower.room:
                    break
                steps.append(f"V{lower.y + lower.height:.1f}")
                upper, lower = lower, lower.below[0]
            assert start.room
            yield _arrow(start.room.name, lower.room.name, " ".join(steps))


def _level_arrows(boxes: Sequence[Box], imports: Imports) -> Iterator[str]:
    """Those within a circle, which lie level: from side to side, or over the boxes between."""
    for left, right in itertools.combinations([box for box in boxes if box.room], 2):
        if left.layer == right.layer and left.room and right.room:
            y = left.y + left.height / 2
            path = f"M{left.x + left.width + 1:.1f} {y:.1f} H{right.x - 1:.1f}"
            if right.x - left.x - left.width > APART + 1:
                path = f"M{left.middle:.1f} {left.y:.1f} Q{(left.middle + right.middle) / 2:.1f} {left.y - 40:.1f} "
                path += f"{right.middle:.1f} {right.y:.1f}"
            there = right.room.name in imports[left.room.name]
            back = left.room.name in imports[right.room.name]
            if there:
                yield _arrow(left.room.name, right.room.name, path, both=back)
            elif back:
                yield _arrow(right.room.name, left.room.name, path, turned=True)


def _arrow(start: str, end: str, path: str, *, both: bool = False, turned: bool = False) -> str:
    heads = ('marker-start="url(#head)" ' if both or turned else "") + ("" if turned else 'marker-end="url(#head)" ')
    pairs = f"{start} {end}" + (f" {end} {start}" if both else "")
    return f'  <path class="arrow" {heads}data-arrow="{pairs}" d="{path}"/>'


def table(rooms: Sequence[Room], imports: Imports) -> str:
    """The same in words: a line a room, the highest first."""
    title = {room.name: f"`{room.title}`" for room in rooms}
    depth = depths(imports)
    lines = ["| room | what it is | imports |\n|---|---|---|\n"]
    for room in sorted(rooms, key=lambda one: (depth[one.name], one.name)):
        imported = ", ".join(title[one] for one in sorted(imports[room.name]))
        lines.append(f"| {title[room.name]} | {room.says} | {imported} |\n")
    return "".join(lines)


def render(root: Path) -> dict[str, str]:
    """Every file that this script writes, by its path from `root`."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    files: dict[str, str] = {}
    parts = []
    for parent in (PACKAGE, *DETAILED):
        imports = read_imports(graph, parent)
        if parent != PACKAGE and sum(bool(graph.find_children(child)) for child in imports) < FEW:
            continue
        rooms = [read_room(root, name) for name in imports]
        name = parent.rpartition(".")[2]
        title = "The rooms, and what each imports" if parent == PACKAGE else f"The rooms within {name}/"
        picture = "architecture.svg" if parent == PACKAGE else f"architecture-{name}.svg"
        files[str(Path(PAGE).with_name(picture))] = draw(rooms, imports, title)
        heading = "" if parent == PACKAGE else f"## Within `{name}/`\n\n"
        parts.append(f"{heading}![{title}]({picture})\n\n{table(rooms, imports)}")
    before, _, rest = (root / PAGE).read_text("utf-8").partition(BEGIN)
    files[PAGE] = before + BEGIN + "\n" + "\n".join(parts) + "\n" + END + rest.partition(END)[2]
    return files


def main() -> None:
    """Write page and pictures, or check them and exit with 1 if one is stale."""
    parser = argparse.ArgumentParser(description=f"Draw the architecture: {PAGE} and its pictures.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something is stale")
    check = parser.parse_args().check
    for path, text in render(ROOT).items():
        file = ROOT / path
        if not check:
            file.write_text(text, encoding="utf-8")
        elif not file.is_file() or file.read_text(encoding="utf-8") != text:
            sys.exit(f"{path} is stale; run `make docs`")


if __name__ == "__main__":
    main()
