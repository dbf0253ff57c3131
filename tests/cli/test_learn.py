"""`cutline learn`: what it says of what it cannot learn from, with the code of each, and what it prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cutline.core.escalations.folder import LEAST_BYTES, EscalationJournal
from cutline.demo.bundles import DRAFTER
from cutline.errors import InputError, NotBetter
from cutline.learning.comparison import Comparison, Quality
from cutline.learning.learner import JournalSource, Learned, Learner

Run = Callable[..., Any]


def quality(foreseen: float) -> Quality:
    return Quality(questions=30, agreed=foreseen / 2, foreseen=foreseen, kept=0.0)


def test_what_cannot_be_learnt_from_is_said_in_one_line(run: Run, tmp_path: Path) -> None:
    EscalationJournal(tmp_path / "journal", limit=LEAST_BYTES).close()
    given = ["learn", "--drafter", str(tmp_path), "--out", str(tmp_path / "out"), "--cards", "1"]
    journal = ["--journal", str(tmp_path / "journal")]
    assert "is empty; `cutline edge --journal" in run(*given, *journal).failed(InputError.exit_code)
    assert "no journal at" in run(*given, "--journal", str(tmp_path / "none")).failed(InputError.exit_code)
    assert "--epochs and --cards" in run(*given, *journal, "--epochs", "0").failed(InputError.exit_code)
    assert "give its bundle as --target" in run(*given, *journal, "--bundle", str(DRAFTER)).failed(InputError.exit_code)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["journal"]


def test_what_came_of_it_is_told_in_words_and_as_json(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[tuple[JournalSource, Path]]()

    def learn(self: Learner, journal: JournalSource, out: Path) -> Learned:
        asked.append((journal, out))
        return Learned(
            bundle=str(out),
            identity="c" * 64,
            comparison=Comparison(before=quality(0.5), after=quality(0.75)),
            learnt=120,
            tenants=("", "camera1"),
            torn=3,
            others=0,
            unfit=1,
        )

    monkeypatch.setattr(Learner, "learn", learn)
    given = ["learn", "--drafter", str(tmp_path), "--journal", str(tmp_path), "--out", "new", "--cards", "1"]
    said = run(*given, "--tenant", "camera1")
    assert said.code == 0
    assert "learnt from 120 answers to (no name), camera1, 3 torn, 1 unfit for the drafter" in said.err
    assert "75.0% of tokens foreseen (before 50.0%), 37.5% of 30 answers whole (before 25.0%)" in said.err
    assert asked[0][0].tenant == "camera1"
    assert json.loads(run(*given, "--json").out)["comparison"]["after"]["foreseen"] == 0.75


def test_one_that_is_not_better_ends_with_a_code_of_its_own(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learn(self: Learner, journal: JournalSource, out: Path) -> Learned:
        raise NotBetter("the new drafter is not better: so")

    monkeypatch.setattr(Learner, "learn", learn)
    given = ["learn", "--drafter", str(tmp_path), "--journal", str(tmp_path), "--out", "new", "--cards", "1"]
    assert run(*given).failed(13) == "cutline: the new drafter is not better: so\n"
