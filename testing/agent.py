"""A scripted agent without a model, for tests and for measuring the overhead of HTTP."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence

import msgspec

from cutline.core.request import Mode, Request
from cutline.edge.generation.events import Event, Planned, Settled
from cutline.edge.generation.result import Answer, Likely, Provenance, Token
from cutline.edge.offload.status import AgentState
from cutline.models.bundle import Manifest

Step = Event | Exception | float  # a float waits for so many seconds


class ScriptedAgent:
    """Runs the next enqueued steps for each question, or `always` when none are left."""

    def __init__(self, manifest: Manifest, *, always: Sequence[Step] = ()) -> None:
        self.manifest = manifest
        self.always = always
        self.offline = False
        self.asked: list[Request] = []
        self.given_up = 0  # questions that were cancelled
        self.now = AgentState(
            ready=True, offline=False, modes=(Mode.EDGE, Mode.AUTO), drafter=manifest.name, target=None
        )
        self._changed = asyncio.Condition()
        self._scripts: deque[Sequence[Step]] = deque()

    def enqueue(self, *steps: Step) -> None:
        """Add the steps for one more question."""
        self._scripts.append(steps)

    async def answer(self, question: Request) -> Answer:
        events = self.stream(question)
        async for event in events:
            if isinstance(event, Answer):
                return event
        raise AssertionError("a script ends in an Answer or an exception")

    async def stream(self, question: Request) -> AsyncGenerator[Event]:
        self.asked.append(question)
        await self._tell()
        steps = self._scripts.popleft() if self._scripts else self.always
        over = False
        try:
            for step in steps:
                if isinstance(step, float):
                    await asyncio.sleep(step)
                    continue
                over = isinstance(step, Exception | Answer)
                if isinstance(step, Exception):
                    raise step
                yield step
        finally:
            self.given_up += not over
            await self._tell()

    def state(self) -> AgentState:
        return msgspec.structs.replace(self.now, offline=self.offline)

    async def reaches(self, *, asked: int = 0, given_up: int = 0) -> None:
        """Wait until so many questions were asked and cancelled."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.asked) >= asked and self.given_up >= given_up)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def spoken(
    *words: str, source: Provenance = Provenance.DRAFT, stop: int | None = None, logprob: float | None = None
) -> Answer:
    """An answer of these words, one token each, followed by the token `stop` if given."""
    likely = () if logprob is None else (Likely(7, "seven", logprob - 1.0),)
    tokens = [Token(100 + index, word, source, logprob, likely) for index, word in enumerate(words)]
    if stop is not None:
        tokens.append(Token(stop, "", source, logprob, likely))
    return Answer(
        text="".join(words).strip(),
        tokens=tokens,
        mode=Mode.DRAFT,
        latency_ms=12.5,
        ttft_ms=3.25,
        bytes_up=100,
        bytes_down=20,
        rounds=1,
        drafted=3,
        accepted=1,
        exact=True,
        worker="127.0.0.1:50051",
        cut="image",
        wire=None,
        confidence=None,
        complete=stop is not None,
        prompt_tokens=40,
        reused_tokens=8,
    )


def told(answer: Answer, *, each: int = 1) -> list[Event]:
    """The events of an answer, with `each` tokens in one event."""
    starts = range(0, len(answer.tokens), each)
    settled = [Settled(start, tuple(answer.tokens[start : start + each])) for start in starts]
    return [Planned(mode=answer.mode, cut="image", wire=None), *settled, answer]
