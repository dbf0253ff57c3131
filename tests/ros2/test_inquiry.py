"""Which picture a question is about, and what becomes of those that are too many."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import cutline
from cutline.testing.agent import spoken
from cutline_ros.inquiry import WAITING, Frame, Inquiry, InquiryOptions, Outcome
from cutline_ros.pictures import RawPicture


def frame(shade: int, encoding: str = "mono8") -> Frame:
    """A picture all of one shade, taken at that second."""
    data = bytes([shade]) * 64
    picture = RawPicture(width=8, height=8, encoding=encoding, step=8, data=data)
    return Frame(picture=picture, stamp=(shade, 5), frame_id="camera")


class Desk:
    """An agent that answers when it is told to; what an inquiry tells arrives in `told`."""

    def __init__(self) -> None:
        self.asked: queue.Queue[cutline.Request] = queue.Queue()
        self.answers: queue.Queue[cutline.Answer | Exception] = queue.Queue()
        self.told: queue.Queue[Outcome] = queue.Queue()

    def answer(self, request: cutline.Request) -> cutline.Answer:
        self.asked.put(request)
        answer = self.answers.get(timeout=30)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def next(self, answer: cutline.Answer | Exception | None = None) -> Outcome:
        """What is told once the question that is being asked got this answer."""
        self.asked.get(timeout=30)
        self.answers.put(answer or spoken("7", stop=2))
        return self.told.get(timeout=30)


Asking = tuple[Desk, Inquiry]


@contextmanager
def inquiry(**options: Any) -> Iterator[Asking]:
    desk = Desk()
    with Inquiry(desk.answer, desk.told.put, InquiryOptions(**options)) as one:
        yield desk, one


def of(outcome: Outcome) -> tuple[str, int | None, int]:
    return outcome.question, None if outcome.frame is None else outcome.frame.stamp[0], outcome.missed


def test_a_question_is_about_the_newest_picture() -> None:
    with inquiry() as (desk, one):
        for shade in (1, 2, 3):
            one.see(frame(shade))
        one.ask("What?")
        assert of(desk.next()) == ("What?", 3, 2)
        one.ask("And?")
        assert of(desk.next()) == ("And?", 3, 0), "there is no newer one"


def test_a_question_waits_for_the_first_picture() -> None:
    with inquiry() as (desk, one):
        one.ask("What?")
        assert desk.asked.empty()
        one.see(frame(4))
        assert of(desk.next()) == ("What?", 4, 0)


def test_a_standing_question_is_asked_of_each_newest_picture_once_and_gives_way() -> None:
    with inquiry(standing="Who?", max_tokens=9, mode="edge") as (desk, one):
        one.see(frame(1))
        request = desk.asked.get(timeout=30)
        assert (request.text, request.max_tokens, request.mode) == ("Who?", 9, cutline.Mode.EDGE)
        for shade in (2, 3, 4):
            one.see(frame(shade))  # while it is answered
        one.ask("What?")
        desk.answers.put(spoken("7", stop=2))
        assert of(desk.told.get(timeout=30)) == ("Who?", 1, 0)
        assert of(desk.next()) == ("What?", 4, 2)
        one.see(frame(5))
        assert of(desk.next()) == ("Who?", 5, 0)


def test_too_many_questions_are_told_of_at_once() -> None:
    with inquiry() as (desk, one):
        for number in range(WAITING + 1):
            one.ask(str(number))
        refused = desk.told.get(timeout=30)
        assert of(refused) == (str(WAITING), None, 0)
        assert "wait already" in json.loads(refused.report)["error"]
        one.see(frame(1))
        assert [of(desk.next())[0] for _ in range(WAITING)] == [str(number) for number in range(WAITING)]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda desk: desk.next(cutline.WorkerUnavailable("no worker answers")), "no worker answers"),
        (lambda desk: desk.told.get(timeout=30), "'bayer_rggb8' are not taken"),
    ],
)
def test_what_goes_wrong_is_told_and_the_next_goes_on(make: Callable[[Desk], Outcome], said: str) -> None:
    with inquiry() as (desk, one):
        one.see(frame(1, "bayer_rggb8" if "taken" in said else "mono8"))
        one.ask("What?")
        told = json.loads(make(desk).report)
        assert said in told["error"]
        assert "text" not in told
        one.see(frame(2))
        one.ask("And?")
        assert of(desk.next()) == ("And?", 2, 0)


def test_a_report_tells_where_an_answer_came_from() -> None:
    with inquiry() as (desk, one):
        one.see(frame(6))
        one.ask("What?")
        report = desk.next(spoken("A", " card", stop=2)).report
    told = json.loads(report)
    assert "\n" not in report
    assert (told["text"], told["exact"], told["tokens"]) == ("A card", True, {"draft": 3})
    assert (told["stamp"], told["frame_id"]) == ({"sec": 6, "nanosec": 5}, "camera")


def test_closing_finishes_what_is_being_answered_and_asks_no_more() -> None:
    with inquiry() as (desk, one):
        one.see(frame(1))
        one.ask("What?")
        one.ask("And?")
        desk.asked.get(timeout=30)
        threading.Timer(0.05, desk.answers.put, [spoken("7", stop=2)]).start()
    assert of(desk.told.get_nowait()) == ("What?", 1, 0)
    assert desk.told.empty()
    assert desk.asked.empty()
