"""Write the table of threats in docs/explanation/security.md.

It has each attack of docs/explanation/threats.toml with the tests that try it. A test says so by
`@pytest.mark.threat("KEY", ...)`. With `--check`, only say whether the table is fresh.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = "docs/explanation/security.md"
THREATS = "docs/explanation/threats.toml"
BEGIN, END = "<!-- threats: written by `make docs` -->\n", "<!-- end of threats -->\n"


class Wrong(Exception):
    """Threats and tests that do not belong together; the message is for people."""


@dataclass(frozen=True, slots=True)
class Threat:
    """A class of attack: what it does, `where` it hit others, what `holds` against it here."""

    key: str
    attack: str
    where: str
    holds: str


@dataclass(frozen=True, slots=True)
class Trial:
    """A test that tries an attack: its `name` in `file`, a path from the root."""

    key: str
    file: str
    name: str


def read_threats(root: Path) -> tuple[Threat, ...]:
    """Those of the project at `root`. Raises Wrong for one that is told twice."""
    raw = tomllib.loads((root / THREATS).read_text(encoding="utf-8"))
    threats = tuple(Threat(**one) for one in raw["threat"])
    keys = [threat.key for threat in threats]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise Wrong(f"{THREATS} has {min(twice)} twice")
    return threats


def read_trials(root: Path) -> tuple[Trial, ...]:
    """What the tests of the project at `root` try; none of them is imported. Raises Wrong."""
    found = (trials(file.relative_to(root).as_posix(), file.read_text("utf-8")) for file in _tests(root))
    return tuple(itertools.chain.from_iterable(found))


def _tests(root: Path) -> list[Path]:
    return sorted((root / "tests").rglob("test_*.py"))


def trials(file: str, source: str) -> Iterator[Trial]:
    """What the tests in one file try. Raises Wrong for a mark that is not a test's own, or has no keys."""
    tree = ast.parse(source)
    marks = {id(node) for node in ast.walk(tree) if _is_mark(node)}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and _is_mark(mark.func):
                    marks.discard(id(mark.func))
                    yield from (Trial(key, file, node.name) for key in _keys(mark, file))
    if marks:
        raise Wrong(f"{file} marks something else than a test function as a threat's")


def _is_mark(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "threat" and ast.unparse(node.value) == "pytest.mark"


def _keys(mark: ast.Call, file: str) -> Iterator[str]:
    for key in mark.args:
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
            raise Wrong(f"{file}:{mark.lineno} names a threat otherwise than by a string")
        yield key.value
    if not mark.args or mark.keywords:
        raise Wrong(f"{file}:{mark.lineno} marks a threat without its key")


def render(threats: Sequence[Threat], found: Sequence[Trial]) -> str:
    """The table. Raises Wrong for a threat that no test tries, and for a test that tries one that is not told."""
    keys = {threat.key for threat in threats}
    for trial in found:
        if trial.key not in keys:
            raise Wrong(f"{trial.file}::{trial.name} tries {trial.key!r}, which is not in {THREATS}")
    if untried := [threat.key for threat in threats if threat.key not in {trial.key for trial in found}]:
        raise Wrong(f"no test tries {untried[0]!r}: mark one by @pytest.mark.threat({untried[0]!r})")
    rows = ["| attack, and where it happened | what holds here | tests that try it |\n|---|---|---|\n"]
    for threat in threats:
        tried = [f"`{trial.file}::{trial.name}`" for trial in found if trial.key == threat.key]
        attack = f"**{threat.attack}** {threat.where}"
        rows.append(f"| {_cell(attack)} | {_cell(threat.holds)} | {'<br>'.join(tried)} |\n")
    return "".join(rows)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def replaced(page: str, table: str) -> str:
    """The page with this table. Raises Wrong where it has no place for one."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise Wrong(f"{TABLE} has no place for the table: {BEGIN.strip()} and {END.strip()}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main() -> None:
    """Write the table, or check it and exit with 1 if it is stale."""
    parser = argparse.ArgumentParser(description=f"Write the table of threats in {TABLE}.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the table is stale")
    parser.add_argument("--root", type=Path, default=ROOT, help="of the project")
    given = parser.parse_args()
    page: Path = given.root / TABLE
    try:
        fresh = replaced(page.read_text("utf-8"), render(read_threats(given.root), read_trials(given.root)))
    except Wrong as wrong:
        sys.exit(str(wrong))
    if not given.check:
        page.write_text(fresh, encoding="utf-8")
    elif page.read_text("utf-8") != fresh:
        sys.exit(f"{TABLE} is stale; run `make docs`")


if __name__ == "__main__":
    main()
