"""Long commands keep what they have, and say how long they will still take."""

from __future__ import annotations

import asyncio
import io
import time
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from cutline.cli.calibration.answers import KeptAnswers
from cutline.cli.terminal import time_left
from cutline.cli.terminal.time_left import TimeLeft
from cutline.core.request import Mode, Request
from cutline.core.storage.journal import Journal, open_journal
from cutline.edge.generation.result import Answer
from cutline.errors import WorkerUnavailable
from cutline.testing.agent import spoken

QUESTIONS = [Request.about(b"\xff\x00picture", text, mode=Mode.CLOUD) for text in ("a", "b", "ü")]


class Worker:
    """Answers with what it was asked; after `lasts` answers it is gone."""

    def __init__(self, *, lasts: int = 100, alone_from: int | None = None) -> None:
        self.heard: list[Request] = []
        self._lasts = lasts
        self._alone_from = alone_from

    async def ask(self, question: Request) -> Answer:
        if len(self.heard) == self._lasts:
            raise WorkerUnavailable("it is gone")
        self.heard.append(question)
        return msgspec.structs.replace(spoken(question.text), mode=question.mode, alone_from=self._alone_from)


def ask_all(worker: Worker, journal: Journal, *, part: str = "gate", timeout: float = 600.0) -> list[Answer]:
    answers = KeptAnswers(worker.ask, journal, part=part, timeout=timeout)

    async def run() -> list[Answer]:
        return [await answers.answer(question) for question in QUESTIONS]

    return asyncio.run(run())


def test_an_attempt_goes_on_with_the_answers_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    whole = asyncio.run(Worker().ask(QUESTIONS[0]))
    with open_journal(path, inputs="a") as journal, pytest.raises(WorkerUnavailable):
        ask_all(Worker(lasts=2), journal)
    with open_journal(path, inputs="a") as journal:
        worker = Worker()
        found = ask_all(worker, journal)
    assert found[0] == whole
    assert [answer.text for answer in found] == ["a", "b", "ü"]
    assert [question.text for question in worker.heard] == ["ü"], "nothing is asked twice"
    with open_journal(path, inputs="another model") as journal:
        ask_all(worker := Worker(), journal)
    assert len(worker.heard) == 3


def test_parts_of_the_work_keep_their_own_answers(tmp_path: Path) -> None:
    """The first upload of a picture costs more than the next ones."""
    with open_journal(tmp_path / "journal", inputs="a") as journal:
        ask_all(Worker(), journal, part="gate")
        ask_all(worker := Worker(), journal, part="prices")
        assert len(worker.heard) == 3


def test_each_question_has_the_time_that_the_command_was_given(tmp_path: Path) -> None:
    with open_journal(tmp_path / "journal", inputs="a") as journal:
        ask_all(worker := Worker(), journal, timeout=432.0)
        assert {question.timeout for question in worker.heard} == {432.0}
        ask_all(again := Worker(), journal, timeout=600.0)
        assert again.heard == [], "an answer is none the worse for having had less time"


def test_an_answer_for_which_the_worker_was_lost_is_asked_for_again(tmp_path: Path) -> None:
    with open_journal(tmp_path / "journal", inputs="a") as journal:
        assert ask_all(Worker(alone_from=0), journal)[0].alone_from == 0
        ask_all(worker := Worker(), journal)
        assert len(worker.heard) == 3


def test_what_another_version_kept_is_asked_again(tmp_path: Path) -> None:
    with open_journal(tmp_path / "journal", inputs="a") as journal:
        ask_all(Worker(), journal)
        for key in journal.names:
            journal.put(key, msgspec.Raw(b'{"text": 3}'))
        ask_all(worker := Worker(), journal)
        assert len(worker.heard) == 3


def test_without_a_terminal_a_line_now_and_then_tells_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    said = io.StringIO()
    with TimeLeft(Console(file=said, width=40)) as progress:
        track = progress.add_task("asking", total=500)
        for _ in range(80):
            now[0] += 1.0
            progress.advance(track)
    lines = said.getvalue().splitlines()
    assert lines == ["asking: 30 of 500, about 7:50 left", "asking: 60 of 500, about 7:20 left"]


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7322, "2:02:02")])
def test_time_is_told_as_clocks_do(seconds: float, words: str) -> None:
    assert time_left._clock(seconds) == words
