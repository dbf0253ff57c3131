"""Answers that a long command has been given: none is asked for twice, also by a next attempt."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import Protocol

import msgspec

from cutline.core.journal import Journal
from cutline.edge.answer import Answer
from cutline.edge.question import Question
from cutline.models.unreadable import UNREADABLE


class Answering(Protocol):
    """Whoever answers questions: an agent, or its answers as they are kept."""

    async def answer(self, question: Question) -> Answer:
        """The answer. Raises CutlineError."""


class KeptAnswers:
    """An agent whose answers are kept in a journal, under the `part` of the work that they are for.

    Each question may take `timeout` seconds, whatever it says itself.
    """

    def __init__(self, agent: Answering, journal: Journal, *, part: str, timeout: float) -> None:
        self._agent = agent
        self._journal = journal
        self._part = part
        self._timeout = timeout

    async def answer(self, question: Question) -> Answer:
        """The answer that is kept, or else the agent's, which is kept if it is whole. Raises CutlineError."""
        key = f"{self._part} {hashlib.sha256(msgspec.json.encode(question)).hexdigest()}"
        with suppress(*UNREADABLE):  # what another version kept is asked again
            if (kept := self._journal.get(key)) is not None:
                return msgspec.json.decode(kept, type=Answer)
        answer = await self._agent.answer(msgspec.structs.replace(question, timeout=self._timeout))
        if answer.alone_from is None:  # else the worker was lost, and this is not what was asked for
            self._journal.put(key, answer)
        return answer
