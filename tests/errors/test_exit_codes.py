"""The tables of docs/reference/errors.md and of cutline.errors say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from cutline import errors
from cutline.edge.api.errors import STATUS
from cutline.errors import CutlineError
from cutline.protos.status import exception_of, status_of

PAGE = Path(__file__).parents[2] / "docs/reference/errors.md"
ROWS = re.findall(r"^\| (\d+) \| (.*?) \|(.*?)\|(.*?)\|$", PAGE.read_text(), re.MULTILINE)
OTHERS = {0, 1, 8, 130}  # done, a bug, what the doctor found, interrupted


def kinds(kind: type[CutlineError] = CutlineError) -> list[type[CutlineError]]:
    below = [one for one in kind.__subclasses__() if one.__module__ == errors.__name__]
    return [kind, *(deeper for one in below for deeper in kinds(one))]


def test_every_exit_code_has_its_row_and_no_other() -> None:
    assert sorted(int(code) for code, *_ in ROWS) == sorted({one.exit_code for one in kinds()} | OTHERS)


def test_the_rows_say_which_statuses_tell_of_them() -> None:
    for code, _, told, answered in ROWS:
        of = [one for one in kinds() if one.exit_code == int(code) and int(code) != 1]
        named = set(re.findall(r"`(\w+)`", told))
        assert named >= {status_of(one("")).name for one in of if one in STATUS and _crosses(one)}, code
        assert {int(status) for status in answered.split()} == {STATUS[one] for one in of if one in STATUS} or int(
            code
        ) in OTHERS, code


def test_the_tree_in_the_module_says_the_same_codes() -> None:
    tree = dict(re.findall(r"(\w+) +exit (\d+)", errors.__doc__ or ""))
    assert tree == {one.__name__: str(one.exit_code) for one in kinds() if "exit_code" in vars(one)}


def _crosses(kind: type[CutlineError]) -> bool:
    """Whether a worker can say it."""
    return type(exception_of(status_of(kind("")), "")) is kind
