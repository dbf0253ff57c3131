from __future__ import annotations

from pathlib import Path

import pytest

from cutline.cli.own_measure import open_measure
from cutline.core.agreement.measures import Wording
from cutline.errors import InputError

JUDGE = """
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar

def same(ours, theirs):
    return ours[0] == theirs[0]

def share(ours, theirs):
    return len(set(ours) & set(theirs)) / len(set(ours) | set(theirs))

def broken(ours, theirs):
    raise ValueError("cannot\\nsay")

def much(ours, theirs):
    return 7

limit = 3

@dataclass
class Told:
    words: ClassVar[int] = 2
"""


@pytest.fixture
def judge(tmp_path: Path) -> Path:
    file = tmp_path / "judge.py"
    file.write_text(JUDGE)
    return file


def test_a_function_of_ones_own_decides(judge: Path) -> None:
    same, share = open_measure(f"{judge}:same"), open_measure(f"{judge}:share")
    assert same.name == "judge.py:same"  # not where it lies
    assert same.agrees(Wording("apple"), Wording("avocado"))
    assert not same.agrees(Wording("apple"), Wording("pear"))
    assert share.score(Wording("ab"), Wording("bc")) == pytest.approx(1 / 3)
    assert share.agrees(Wording("ab"), Wording("abc"))
    assert not share.agrees(Wording("ab"), Wording("bc"))


def test_other_names_are_the_registrys() -> None:
    assert open_measure("anls").name == "anls:0.8"


@pytest.mark.parametrize(("function", "said"), [("broken", "ValueError: cannot say"), ("much", "gave '7'")])
def test_a_function_that_fails_is_told_in_a_line(judge: Path, function: str, said: str) -> None:
    measure = open_measure(f"{judge}:{function}")
    with pytest.raises(InputError, match=said) as raised:
        measure.agrees(Wording("one"), Wording("other"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [("judge.py:limit", "no function"), ("judge.py:same:more", "no function"), ("none.py:same", "FileNotFoundError")],
)
def test_a_function_that_is_not_there_is_told(judge: Path, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_measure(str(judge.with_name(name)))


def test_a_file_that_does_not_load_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def same(:\n")
    with pytest.raises(InputError, match=r"cannot load .*SyntaxError") as raised:
        open_measure(f"{tmp_path / 'bad.py'}:same")
    assert "\n" not in str(raised.value)
