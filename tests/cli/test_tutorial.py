"""What docs/tutorials/first-answer.md promises happens: the drafter's mistake, and the target's correction."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEP = re.compile(r"^```sh\ncutline (ask .+)\n```\n\n```text\n(.+\n)+?```$", re.MULTILINE)
LISTENS = "127.0.0.1:50051"  # where the page's worker does


def steps() -> list[tuple[list[str], str]]:
    """Each question of the page that is followed by what comes of it: its arguments, and the answer's line."""
    page = (ROOT / "docs/tutorials/first-answer.md").read_text()
    return [(shlex.split(step[1]), step[0].split("```text\n")[1].split("\n")[0]) for step in STEP.finditer(page)]


def test_the_answers_are_those_of_the_page(
    run: Callable[..., Any], worker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    alone, corrected, without_worker = steps()
    for arguments, answer in (alone, corrected):
        ran = run(*(worker if one == LISTENS else one for one in arguments))
        assert ran.out == f"{answer}\n", ran.err
    assert alone[1] == without_worker[1]
    changed = {tuple(pair) for pair in zip(alone[1].split(), corrected[1].split(), strict=True) if pair[0] != pair[1]}
    assert changed == {("9", "5")}  # as the page says, in one place
