"""Answers that a long command has been given: none is asked for twice, also by a next attempt."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

import msgspec

from cutline.core.json_errors import UNREADABLE
from cutline.core.request import MAX_TIMEOUT, Request
from cutline.core.storage.journal import Journal
from cutline.edge.generation.result import Answer
from cutline.errors import InputError


def check_timeout(seconds: float) -> None:
    """That an answer may take so long. Raises InputError."""
    if not 0.0 < seconds <= MAX_TIMEOUT:
        raise InputError(f"--timeout is {seconds:g}; give more than 0 and at most {MAX_TIMEOUT:.0f} seconds")


class Respondent(Protocol):
    """Whoever answers questions: an agent, or the answers of one as they are kept."""

    async def answer(self, question: Request) -> Answer:
        """The answer. Raises CutlineError."""


class KeptAnswers:
    """The answers that `ask` gives, kept in a journal under the `part` of the work that they are for.

    Each question may take `timeout` seconds, whatever it says itself.
    """

    def __init__(
        self, ask: Callable[[Request], Awaitable[Answer]], journal: Journal, *, part: str, timeout: float
    ) -> None:
        self._ask = ask
        self._journal = journal
        self._part = part
        self._timeout = timeout

    async def answer(self, question: Request) -> Answer:
        """The answer that is kept, or else a new one, which is kept if no worker was lost. Raises CutlineError."""
        key = f"{self._part} {hashlib.sha256(msgspec.json.encode(question)).hexdigest()}"
        with suppress(*UNREADABLE):  # what another version kept is asked again
            if (kept := self._journal.get(key)) is not None:
                return msgspec.json.decode(kept, type=Answer)
        answer = await self._ask(msgspec.structs.replace(question, timeout=self._timeout))
        if answer.alone_from is None:
            self._journal.put(key, answer)
        return answer
