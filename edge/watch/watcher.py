"""Watching sources: the same question about every frame, and a spool for those that no worker answers.

sources (a thread each) ──► Waiting ──► agent ──► a line of JSON
                              ▲           │ no worker
                              └── Spool ◄─┘ until there is one again
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec

from cutline.core.backoff import Backoff
from cutline.core.request import Mode, Request
from cutline.edge.generation.result import Answer, Gated, Provenance, Tail
from cutline.edge.watch.frame_queue import Waiting
from cutline.edge.watch.frames import Frame, FrameSource, Tell
from cutline.edge.watch.spool import Spool
from cutline.errors import (
    CutlineError,
    ImageError,
    InputError,
    PromptError,
    WorkerBusy,
    WorkerFailed,
    WorkerUnavailable,
)

STOP_SECONDS = 2.0  # that an answer, and who reads it, may still take once it was told to stop

T = TypeVar("T")


class Answerer(Protocol):
    """Who answers: `cutline.edge.agent.Agent`."""

    async def answer(self, question: Request) -> Answer:
        """Answer a question. Raises CutlineError."""


class FrameAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What was answered about a frame, as it is printed: `answer`, or the `error` where there is none.

    `time` is when the frame was taken, `frame` its number in the source. `provenance` has the share of tokens by where
    they came from; `gate` is what the gate says of the answer, None where there is none. `dropped` counts the source's
    frames that were never asked about so far, `still` those left out as they showed nothing new; `spooled` says that
    the frame waited for a worker.
    """

    id: str
    source: str
    time: datetime
    frame: int
    file: str | None
    answer: str | None
    error: str | None
    provenance: dict[Provenance, float]
    gate: Gated | None
    latency_ms: float | None
    spooled: bool
    still: int
    dropped: int


class Watch:
    """Asks `question`, whose image each frame takes the place of, about all frames of `sources`.

    `write` gets each line, in a thread that nobody waits for at the end of the process; it may raise BrokenPipeError
    where nobody reads any more. `room` frames of each source wait at most. `tell` hears of what goes wrong and right
    again. A worker, or a disk, that failed is tried again by a `backoff`. Make it on the event loop that runs it, once.
    """

    def __init__(
        self,
        agent: Answerer,
        sources: Sequence[FrameSource],
        question: Request,
        *,
        write: Callable[[bytes], object],
        room: int,
        spool: Spool | None = None,
        tell: Tell = lambda line: None,
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        self.answered = 0
        self.unread = False  # a line was given up that nobody read
        self._agent = agent
        self._sources = {source.name: source for source in sources}
        self.question = question
        self._write = write
        self._spool = spool
        self._tell = tell
        self._worker, self._disk = backoff(), backoff()
        self._waiting = Waiting(self._sources, room=room)
        self._halt = threading.Event()
        self._ended = set[str]()
        self._failure: Exception | None = None
        self._fresh_last = False  # whether the last frame was not from the spool
        self._tried_last: str | None = None  # the frame of the spool that no worker answered

    @property
    def dropped(self) -> int:
        """Frames that were never asked about."""
        return self._waiting.dropped.total() + sum(source.unreadable for source in self._sources.values())

    @property
    def still(self) -> int:
        """Frames left out since they showed nothing new."""
        return sum(source.still for source in self._sources.values())

    async def run(self, stop: asyncio.Event) -> None:
        """Until all sources have ended or `stop` is set. Raises CutlineError."""
        feeders = [threading.Thread(target=self._feed, args=(one,), daemon=True) for one in self._sources.values()]
        for feeder in feeders:
            feeder.start()
        stopping = asyncio.create_task(stop.wait())
        stopping.add_done_callback(lambda _: self._waiting.tell())
        try:
            while not stop.is_set() and await self._step(stopping):
                pass
        finally:
            stopping.cancel()
            self._halt.set()
            for frame in self._waiting.close():
                await self._keep(frame)
            for feeder in feeders:
                await asyncio.to_thread(feeder.join, STOP_SECONDS)
        if self._failure is not None and not stop.is_set():
            raise self._failure

    def _feed(self, source: FrameSource) -> None:
        """In a thread: put a source's frames where they wait."""
        try:
            for frame in source.frames(self._halt):
                if not self._waiting.put(frame, live=source.live):
                    break
        except Exception as error:  # whatever it is, the others are still watched; then it is raised
            self._failure = error
            if len(self._ended) + 1 < len(self._sources):
                self._tell(str(error))
        finally:
            self._ended.add(source.name)
            self._waiting.tell()

    async def _step(self, stopping: asyncio.Task[bool]) -> bool:
        """Ask about one frame, or wait for one. False when there will be none."""
        ended = len(self._ended) == len(self._sources)  # before looking for what they may have put in last
        stored = bool(self._spool) and self._worker.left == 0
        fresh = (
            None if stored and self._fresh_last else self._waiting.take(self._may_take)
        )  # in turn, while both are there
        self._fresh_last = fresh is not None
        if fresh is not None:
            await self._meet(fresh, stopping)
        elif stored:
            await self._forward(stopping)
        elif ended:
            return False
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._waiting.news(), self._worker.left if self._spool else None)
        return True

    def _may_take(self, frame: Frame) -> bool:
        """Not where the spool is full, as the worker may be gone: a file can wait where it is."""
        return self._spool is None or self._fits(frame)

    def _fits(self, frame: Frame) -> bool:
        """Whether the spool should take a frame: a live one also where others must go for it."""
        live = frame.source in self._sources and self._sources[frame.source].live
        return self._spool is not None and (live or self._spool.has_room(frame))

    async def _meet(self, frame: Frame, stopping: asyncio.Task[bool]) -> None:
        """Ask about a frame that has just come, or keep it until a worker is back."""
        if self._spool is not None and frame.id in self._spool:
            return
        alone = self.question.mode in (Mode.EDGE, Mode.AUTO)  # it may need no worker
        hopeless = self._spool is not None and self._worker.left > 0 and not alone
        try:
            answer = None if hopeless else await self._ask(frame, stopping)
        except CutlineError:
            await self._keep(frame)
            raise
        if answer is None:
            await self._keep(frame, stopping)
        else:
            await self._say(frame, answer, stopping, spooled=False)

    async def _forward(self, stopping: asyncio.Task[bool]) -> None:
        """Ask about a frame of the spool; after one that failed, the next: the frame itself may be why."""
        assert self._spool is not None
        frame = await asyncio.to_thread(self._spool.oldest, self._tried_last)
        if frame is not None:
            answer = await self._ask(frame, stopping)
            self._tried_last = frame.id if answer is None else None
            if answer is not None:
                await self._say(frame, answer, stopping, spooled=True)

    async def _ask(self, frame: Frame, stopping: asyncio.Task[bool]) -> Answer | CutlineError | None:
        """The answer, or what is wrong with this frame; None where it may be asked about later.

        Raises CutlineError for what no other frame would change.
        """
        asked = msgspec.structs.replace(self.question, images=(frame.image,))
        asking = asyncio.create_task(self._answer(asked))
        if not await _ends(asking, stopping):
            await asyncio.gather(asking, return_exceptions=True)
            return None
        try:
            answer = asking.result()
        except (ImageError, WorkerFailed) as error:
            return error
        except (WorkerUnavailable, WorkerBusy, InputError) as error:
            if isinstance(error, InputError) and self.answered == 0:
                raise
            if isinstance(error, PromptError):  # another picture takes another part of the context
                return error
            # An InputError that was none before is not the frame's: a file of a key does not read for a moment.
            if not self._worker.tried:
                self._tell(f"{error}" if self._spool is None else f"{error} Frames wait in the spool.")
            self._worker.failed()
            return None if self._spool is not None else error
        if answer.worker is not None:
            if self._worker.tried:
                self._tell(f"the worker at {answer.worker} is back")
            self._worker.worked()
        return answer

    async def _answer(self, asked: Request) -> Answer:
        """The answer; with a spool one that no worker verified counts for none, as the frame can wait for one."""
        answer = await self._agent.answer(asked)
        if self._spool is not None and answer.tail is Tail.UNVERIFIED:
            raise WorkerUnavailable(answer.lost[-1].why if answer.lost else "no worker can be asked at the moment")
        return answer

    async def _say(
        self, frame: Frame, answer: Answer | CutlineError, stopping: asyncio.Task[bool], *, spooled: bool
    ) -> None:
        """Write the line of an answer; with a spool it is in the journal first, or it is not written."""
        failed = isinstance(answer, CutlineError)
        self._waiting.dropped[frame.source] += isinstance(answer, CutlineError) and not _is_of_frame(answer)
        line = self._line(frame, answer, spooled=spooled)
        if self._spool is not None:
            try:
                await self._store(partial(self._spool.commit, frame.id, line), stopping)
            except OSError:
                if not spooled:
                    await self._keep(frame)
                return
        self.answered += not failed
        writing = _begin(partial(self._write, line + b"\n"))
        if await _ends(writing, stopping):
            writing.result()
        else:
            self.unread = True

    def _line(self, frame: Frame, answer: Answer | CutlineError, *, spooled: bool) -> bytes:
        """What is printed about a frame."""
        source = self._sources.get(frame.source)  # of a frame from the spool it may be gone
        return msgspec.json.encode(
            FrameAnswer(
                id=frame.id,
                source=frame.source,
                time=datetime.fromtimestamp(frame.taken, UTC),
                frame=frame.number,
                file=frame.file,
                answer=None if isinstance(answer, CutlineError) else answer.text,
                error=str(answer) if isinstance(answer, CutlineError) else None,
                provenance={} if isinstance(answer, CutlineError) else shares(answer),
                gate=None if isinstance(answer, CutlineError) else answer.gate,
                latency_ms=None if isinstance(answer, CutlineError) else answer.latency_ms,
                spooled=spooled,
                still=source.still if source else 0,
                dropped=self._waiting.dropped[frame.source] + (source.unreadable if source else 0),
            )
        )

    async def _keep(self, frame: Frame, stopping: asyncio.Task[bool] | None = None) -> None:
        """Put a frame that was not answered into the spool; without one, or without room, it is dropped."""
        dropped = [frame.source]
        if self._spool is not None and self._fits(frame):
            with contextlib.suppress(OSError):
                dropped = await self._store(partial(self._spool.put, frame), stopping)
        self._waiting.dropped.update(dropped)

    async def _store(self, write: Callable[[], T], stopping: asyncio.Task[bool] | None) -> T:
        """Write to the spool; where its disk takes nothing, try until it does, as no answer could be kept before.

        Raises OSError once it was told to stop.
        """
        while True:
            try:
                written = await asyncio.to_thread(write)
            except OSError as error:
                if not self._disk.tried:
                    self._tell(f"the spool cannot be written: {error.strerror}; nothing is asked until it can")
                self._disk.failed()
                if stopping is None or stopping.done():
                    raise
                await asyncio.wait({stopping}, timeout=self._disk.left)
            else:
                if self._disk.tried:
                    self._tell("the spool can be written again")
                self._disk.worked()
                return written


def shares(answer: Answer) -> dict[Provenance, float]:
    """The share of an answer's tokens by where they came from."""
    counted = Counter(token.source for token in answer.tokens)
    return {origin: round(count / counted.total(), 4) for origin, count in counted.items()}


def _is_of_frame(error: CutlineError) -> bool:
    """Whether another frame would have been answered: then this one was asked about."""
    return isinstance(error, ImageError | PromptError | WorkerFailed)


async def _ends(doing: asyncio.Future[Any], stopping: asyncio.Task[bool]) -> bool:
    """Whether something ends, for which little time is left once it was told to stop; else it is given up."""
    await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
    done, _ = await asyncio.wait({doing}, timeout=STOP_SECONDS)
    if not done:
        doing.cancel()
    return bool(done)


def _begin(call: Callable[[], T]) -> asyncio.Future[T]:
    """What a call gives in a thread that the process does not wait for at its end."""
    given = concurrent.futures.Future[T]()
    given.set_running_or_notify_cancel()  # the thread goes on, whether or not somebody still waits

    def run() -> None:
        try:
            given.set_result(call())
        except Exception as error:  # raised where it is waited for
            given.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return asyncio.wrap_future(given)
