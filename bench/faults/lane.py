"""An agent, its workers behind faulty links, and one case after another: each ends with all of it well again."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Self

from cutline.bench.faults.cases import ENDS_PROCESS, SILENT, Case, Fault, Point, Setup
from cutline.bench.faults.checking import Checker, Found, Heard, Tokens, hear
from cutline.bench.faults.link import FaultyLink, Way
from cutline.bench.worker_process import WorkerProcess
from cutline.core.request import Mode, Request
from cutline.core.sampling import Sampling
from cutline.demo.requests import CardRequest
from cutline.edge.agent import Agent
from cutline.edge.offload.heartbeat import patience
from cutline.errors import CutlineError

MOST_SECONDS = 30.0  # for an answer, whatever happens
WELL_SECONDS = 40.0  # until a worker is asked again

_UPLOADS = {"image": 9_000, "vision.1": 32_500, "connector": 32_500, "decoder.0": 32_000, "decoder.2": 35_000}
_OPENINGS = 400  # bytes of an opening without an upload
_DRAFTS = 200  # bytes in which the next draft begins


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a case ended. `struck`: the fault came before the answer was there. Seconds where it says no other.

    `notice` is from the fault to the word that the worker is lost, `limit` what that may take; `recovery` is from the
    fault to the next settled token.
    """

    case: Case
    struck: bool
    took: float
    found: Found
    losses: int = 0
    alone: bool = False
    refused: bool = False
    notice: float | None = None
    limit: float | None = None
    recovery: float | None = None


@dataclass(frozen=True, slots=True)
class Asker:
    """Questions, and their right answers: `truths` are the unsplit target's greedy ones, `drawn` came unbroken."""

    requests: Sequence[CardRequest]
    truths: Sequence[Tokens]
    checker: Checker
    drawn: dict[tuple[int, Sampling], Tokens] = field(default_factory=dict)

    def question(self, index: int, **options: Any) -> Request:
        """A question about an image file that no worker has seen."""
        request = self.requests[index]
        # What follows a PNG's end is no part of the picture, but of the file, by which images are known.
        return Request.about(request.image + os.urandom(12), request.question.text, **options)

    async def truth(self, agent: Agent, index: int, sampling: Sampling) -> Tokens:
        """The unbroken answer."""
        if sampling == Sampling():
            return self.truths[index]
        if (index, sampling) not in self.drawn:
            answer = await agent.answer(self.question(index, mode=Mode.CLOUD, sampling=sampling))
            self.drawn[index, sampling] = tuple(token.id for token in answer.tokens)
        return self.drawn[index, sampling]


class Lane:
    """An `agent` that asks the worker behind `links[0]`, and the one at the address `spare` if that fails.

    Where there is a second link, the first worker goes on over that to the next. The links fail, and so do `workers`,
    the processes behind them, where they are known. Use as an async context manager.
    """

    def __init__(
        self,
        setup: Setup,
        asker: Asker,
        agent: Agent,
        *,
        links: Sequence[FaultyLink],
        workers: Sequence[WorkerProcess],
        spare: str | None,
        notice: float,
    ) -> None:
        self.setup = setup
        self.notice = notice
        self._asker = asker
        self._links = links
        self._workers = workers
        self._spare = spare
        self.agent = agent
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.agent)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def processes(self) -> bool:
        """Whether what befalls processes may befall its own."""
        return bool(self._workers)

    @property
    def questions(self) -> int:
        """How many there are."""
        return len(self._asker.requests)

    async def run(self, case: Case) -> Outcome:
        """Have a case happen, and mend what it broke. Raises CutlineError if that cannot be mended."""
        options = case.options
        question = self._asker.question(case.question, **options)
        truth = await self._asker.truth(self.agent, case.question, question.sampling)
        if case.kept and (await hear(self.agent, question)).lost:
            await self._well()  # a machine that was held up: the agent thinks ill of a worker that was well
        strike = _Strike(case, self._links[case.second], self._worker(case), self.notice)
        limit = self._limit(case, question)
        if case.point is Point.BEFORE:
            strike.now()
        elif case.point is Point.UPLOAD:
            size = _OPENINGS if case.kept else _UPLOADS["decoder.0" if case.second else question.cut]
            strike.link.fuse(Way.UP, 1 + int(case.at * size), strike.now)
        at = 1 + int(case.at * (len(truth) - 2))

        def during(settled: int) -> None:
            if case.point is Point.SETTLED and settled >= at:
                strike.now()
            elif case.point is Point.DRAFT and not strike.armed:
                strike.armed = True
                strike.link.fuse(Way.UP, 1 + int(case.at * _DRAFTS), strike.now)

        try:
            async with asyncio.timeout(MOST_SECONDS):
                heard = await hear(self.agent, question, during)
        except TimeoutError:
            found = Found(wrong=("it hung",))
            outcome = Outcome(case, strike.at is not None, MOST_SECONDS, found)
        else:
            outcome = await self._judged(case, question, heard, truth, strike.at, limit)
        await strike.mend()
        await self._well()
        return outcome

    def _worker(self, case: Case) -> WorkerProcess | None:
        return self._workers[case.second] if self._workers else None

    def _limit(self, case: Case, question: Request) -> float:
        """Seconds within which a silent worker of this case must be given up, by the bytes that may be on their way."""
        (state, *_), uplink = self.agent.workers.states, self.agent.workers.uplink(self._links[0].address)
        early = case.point in (Point.BEFORE, Point.UPLOAD)
        ahead = _UPLOADS[question.cut] + _OPENINGS if early or question.cut == "decoder.2" else 2 * _OPENINGS
        return patience(self.notice, ahead=ahead, uplink=uplink, connected=state.connected)

    async def _judged(
        self, case: Case, question: Request, heard: Heard, truth: Tokens, struck: float | None, limit: float
    ) -> Outcome:
        first, spared = self._links[0].address, self._spare is not None
        find = self._asker.checker.find
        found = await asyncio.to_thread(find, question, heard, truth, first=first, spared=spared)
        notice = recovery = None
        hit = struck is not None and struck < heard.ended
        if hit and struck is not None and heard.lost:
            at, lost = heard.lost[0]
            notice = at - max(struck, heard.began)
            if not spared:  # it is told once it is clear who goes on, for which a lone worker is waited for a moment
                notice = min(notice, lost.silent_ms / 1e3)
            after = heard.settled_after(heard.lost[-1][0])
            recovery = None if after is None else after - max(struck, heard.began)
        silent = case.fault in SILENT and not case.second
        return Outcome(
            case,
            hit,
            heard.ended - heard.began,
            found,
            losses=len(heard.lost),
            alone=heard.answer is not None and heard.answer.alone_from is not None,
            refused=heard.answer is None and found.right,
            notice=notice if silent else None,
            limit=limit if silent else None,
            recovery=recovery,
        )

    async def _well(self) -> None:
        """Wait until the first worker is asked again, and answers. Raises CutlineError if it never does."""
        end, failure = time.monotonic() + WELL_SECONDS, CutlineError("nobody answers any more")
        while time.monotonic() < end:
            await asyncio.sleep(min(1.0, self.agent.workers.wait(but=[self._spare] if self._spare else []) or 0.01))
            try:
                answer = await self.agent.answer(self._asker.question(0, mode=Mode.CLOUD, max_tokens=2))
            except CutlineError as error:
                failure = error
                continue
            if answer.worker == self._links[0].address and answer.alone_from is None:
                return
        raise CutlineError(f"the first worker of {self.setup} is not asked again: {failure}")


class _Strike:
    """The fault of one case, and how it is mended."""

    def __init__(self, case: Case, link: FaultyLink, worker: WorkerProcess | None, notice: float) -> None:
        self.link = link
        self.at: float | None = None  # when it struck
        self.armed = False
        self._case = case
        self._worker = worker
        self._notice = notice
        self._mending: asyncio.Task[None] | None = None

    def now(self) -> None:
        """Strike, once."""
        if self.at is not None:
            return
        self.at = time.monotonic()
        self._break()
        if self._case.fault is Fault.RESTART:
            self._mending = asyncio.create_task(self._restart())
        elif self._case.lasts is not None and self._case.fault not in ENDS_PROCESS:
            self._mending = asyncio.create_task(self._over(self._case.lasts * self._notice))

    async def mend(self) -> None:
        """Have all well again, but for what the agent thinks of it."""
        if self._mending is not None:
            await self._mending
        if self.at is None:
            self.link.heal()
        elif self._case.fault in ENDS_PROCESS and self._case.fault is not Fault.RESTART:
            await self._restart()
        elif self._mending is None:
            await self._heal()

    def _break(self) -> None:
        link, strength = self.link, self._case.strength
        match self._case.fault:
            case Fault.RESET:
                link.reset()
            case Fault.REFUSE:
                link.refuse()
            case Fault.BLACKHOLE:
                link.hold()
            case Fault.HALF_OPEN:
                link.hold(Way.UP if strength < 0.5 else Way.DOWN)
            case Fault.SPIKE:
                link.lag(self._notice * (0.2 + 2.8 * strength))
            case Fault.SLOW:
                link.slow(8.0 * 16.0**strength)
            case Fault.TRUNCATE:
                link.truncate()
            case Fault.FLIP:
                link.flip(1 + int(3 * strength))
            case Fault.KILL | Fault.RESTART:
                self._process.kill()
            case Fault.FREEZE:
                self._process.freeze()
            case Fault.DRAIN:
                self._process.drain()

    @property
    def _process(self) -> WorkerProcess:
        assert self._worker is not None
        return self._worker

    async def _over(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._heal()

    async def _heal(self) -> None:
        if self._case.fault is Fault.FREEZE:
            self._process.thaw()
        if self._case.forgotten:
            self.link.forget()
        await self.link.restore()

    async def _restart(self) -> None:
        await self._process.restart()
        self.link.target = self._process.address
