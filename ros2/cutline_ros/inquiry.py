"""What is asked of which picture, and what is told of it: the newest one, a question at a time, nothing piled up."""

from __future__ import annotations

import json
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import cutline
from cutline_ros.pictures import RawPicture

WAITING = 8  # questions that may wait for their turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A picture, when it was taken, in seconds and nanoseconds, and in which frame of coordinates."""

    picture: RawPicture
    stamp: tuple[int, int] = (0, 0)
    frame_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """An answer to a question, or why there is none; `missed` pictures came and went since the one before."""

    question: str
    frame: Frame | None
    answer: cutline.Answer | None = None
    error: str = ""
    missed: int = 0

    @property
    def report(self) -> str:
        """All that is told of it, as JSON on one line."""
        told: dict[str, Any] = {"question": self.question, "missed": self.missed}
        if self.frame is not None:
            seconds, nanoseconds = self.frame.stamp
            told |= {"stamp": {"sec": seconds, "nanosec": nanoseconds}, "frame_id": self.frame.frame_id}
        if (answer := self.answer) is None:
            return json.dumps(told | {"error": self.error}, ensure_ascii=False)
        gate = answer.gate
        return json.dumps(
            told
            | {
                "text": answer.text,
                "exact": answer.exact,
                "complete": answer.complete,
                "mode": answer.mode,
                "worker": answer.worker,
                "tokens": Counter(token.source.value for token in answer.tokens),
                "gate": None
                if gate is None
                else {"decision": gate.decision, "promised": gate.promised, "agree": gate.agree},
                "alone_from": answer.alone_from,
                "latency_ms": round(answer.latency_ms, 3),
                "bytes_up": answer.bytes_up,
                "bytes_down": answer.bytes_down,
                "request_id": answer.request_id,
            },
            ensure_ascii=False,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class InquiryOptions:
    """`standing` is asked of each newest picture as long as no other question waits; the rest is of every request."""

    standing: str = ""
    mode: str = "auto"
    max_tokens: int | None = None
    timeout: float = 60.0
    quality: int = 90


class Inquiry:
    """Asks by `answer`, in a thread of its own, and tells `tell` of each outcome. Use as a context manager.

    A question goes to the newest picture there is, or the first that comes. One that finds `WAITING` before it is
    told of as an error at once.
    """

    def __init__(
        self,
        answer: Callable[[cutline.Request], cutline.Answer],
        tell: Callable[[Outcome], None],
        options: InquiryOptions = InquiryOptions(),
    ) -> None:
        self._answer, self._tell, self._options = answer, tell, options
        self._changed = threading.Condition()
        self._questions = deque[str]()
        self._newest: Frame | None = None
        self._fresh = False  # nobody asked about the newest picture yet
        self._missed = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="inquiry", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """What is being answered is told of; what waits is not asked any more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def see(self, frame: Frame) -> None:
        """A picture came; it takes the place of the one before."""
        with self._changed:
            self._missed += self._fresh
            self._newest, self._fresh = frame, True
            self._changed.notify()

    def ask(self, question: str) -> None:
        """A question came."""
        with self._changed:
            full = len(self._questions) >= WAITING
            if not full:
                self._questions.append(question)
                self._changed.notify()
        if full:
            self._tell(Outcome(question=question, frame=None, error=f"{WAITING} questions wait already; ask later"))

    def _run(self) -> None:
        while (found := self._next()) is not None:
            question, frame, missed = found
            answer, error = self._answered(question, frame.picture)
            self._tell(Outcome(question=question, frame=frame, answer=answer, error=error, missed=missed))

    def _next(self) -> tuple[str, Frame, int] | None:
        """The next question, its picture, and how many were missed; None once it is closed."""
        with self._changed:
            while not self._closed:
                question = self._questions[0] if self._questions else self._options.standing if self._fresh else ""
                if question and self._newest is not None:
                    if self._questions:
                        self._questions.popleft()
                    missed, self._missed, self._fresh = self._missed, 0, False
                    return question, self._newest, missed
                self._changed.wait()
        return None

    def _answered(self, question: str, picture: RawPicture) -> tuple[cutline.Answer | None, str]:
        """The answer, or what was wrong."""
        given = self._options
        try:
            request = cutline.Request.about(
                picture.file(given.quality),
                question,
                mode=given.mode,
                max_tokens=given.max_tokens,
                timeout=given.timeout,
            )
            return self._answer(request), ""
        except cutline.CutlineError as error:
            return None, str(error)
