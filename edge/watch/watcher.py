"""Watches sources: asks the same question about every frame, and spools frames while no worker answers.

sources (a thread each) ──► FrameQueue ──► agent ──► a line of JSON
                                ▲            │ no worker
                                └─── Spool ◄─┘ until there is one again
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
from cutline.edge.watch.frame_queue import FrameQueue
from cutline.edge.watch.frames import Frame, FrameSource, Notify
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

STOP_SECONDS = 2.0  # for the current answer, and for writing it, after `stop` is set

T = TypeVar("T")


class Answerer(Protocol):
    """The part of `cutline.edge.agent.Agent` that a watch needs."""

    async def answer(self, question: Request) -> Answer:
        """Answer a question. Raises CutlineError."""


class FrameAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The printed answer about a frame: its `answer`, or the `error` if there is none.

    `time` is when the frame was taken, `frame` its number in the source. `provenance` has the share of tokens by
    origin; `gate` is the gate's result, None without a gate. `dropped` counts the source's frames that were never asked
    about so far, `still` those that showed no change, `filtered` those that did not show what they were to show;
    `spooled` says that the frame waited for a worker. It was asked about as the last of so many `frames`.
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
    filtered: int
    dropped: int
    frames: int = 1


class Watch:
    """Asks `question` about all frames of `sources`; each frame, or series, replaces the question's images.

    `write` gets each line, in a daemon thread; it may raise BrokenPipeError once nobody reads. At most `room` frames of
    each source wait. `notify` gets messages about faults and recoveries. Each `backoff` paces retries of a worker or a
    disk that failed. Create it on the event loop that runs it.
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
        notify: Notify = lambda line: None,
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        self.answered = 0
        self.unread = False  # whether a line was dropped because nobody read it
        self._agent = agent
        self._sources = {source.name: source for source in sources}
        self.question = question
        self._write = write
        self._spool = spool
        self._notify = notify
        self._worker, self._disk = backoff(), backoff()
        self._queue = FrameQueue(self._sources, room=room)
        self._halt = threading.Event()
        self._ended = set[str]()
        self._failure: Exception | None = None
        self._fresh_last = False  # whether the last frame was not from the spool
        self._tried_last: str | None = None  # the last frame from the spool that no worker answered

    @property
    def dropped(self) -> int:
        """The number of frames that were never asked about."""
        return self._queue.dropped.total() + sum(source.unreadable for source in self._sources.values())

    @property
    def still(self) -> int:
        """The number of frames that were skipped because they showed no change."""
        return sum(source.still for source in self._sources.values())

    @property
    def filtered(self) -> int:
        """The number of frames that were skipped because they did not show what they were to show."""
        return sum(source.filtered for source in self._sources.values())

    async def run(self, stop: asyncio.Event) -> None:
        """Run until all sources have ended or `stop` is set. Raises CutlineError."""
        sources = self._sources.values()
        feeders = [threading.Thread(target=self._feed, args=(source,), daemon=True) for source in sources]
        for feeder in feeders:
            feeder.start()
        stopping = asyncio.create_task(stop.wait())
        stopping.add_done_callback(lambda _: self._queue.wake())
        try:
            while not stop.is_set() and await self._step(stopping):
                pass
        finally:
            stopping.cancel()
            self._halt.set()
            for frame in self._queue.close():
                await self._spool_or_drop(frame)
            for feeder in feeders:
                await asyncio.to_thread(feeder.join, STOP_SECONDS)
        if self._failure is not None and not stop.is_set():
            raise self._failure

    def _feed(self, source: FrameSource) -> None:
        """Put a source's frames into the queue; runs in a thread."""
        try:
            for frame in source.frames(self._halt):
                if not self._queue.put(frame, live=source.live):
                    break
        except Exception as error:  # raised by `run` once the other sources have ended
            self._failure = error
            if len(self._ended) + 1 < len(self._sources):
                self._notify(str(error))
        finally:
            self._ended.add(source.name)
            self._queue.wake()

    async def _step(self, stopping: asyncio.Task[bool]) -> bool:
        """Ask about one frame, or wait for one. Returns False if there will be none."""
        ended = len(self._ended) == len(self._sources)  # before `take`, as their last frames may be in the queue
        stored = bool(self._spool) and self._worker.left == 0
        # Fresh and spooled frames take turns.
        fresh = None if stored and self._fresh_last else self._queue.take(self._may_take)
        self._fresh_last = fresh is not None
        if fresh is not None:
            await self._meet(fresh, stopping)
        elif stored:
            await self._forward(stopping)
        elif ended:
            return False
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._queue.news(), self._worker.left if self._spool else None)
        return True

    def _may_take(self, frame: Frame) -> bool:
        """Whether to take a frame from the queue: not if the spool is full, as a file can wait in its folder."""
        return self._spool is None or self._fits(frame)

    def _fits(self, frame: Frame) -> bool:
        """Whether the spool should take a frame; a live one also if others must be dropped for it."""
        live = frame.source in self._sources and self._sources[frame.source].live
        return self._spool is not None and (live or self._spool.has_room(frame))

    async def _meet(self, frame: Frame, stopping: asyncio.Task[bool]) -> None:
        """Ask about a new frame, or spool it until a worker is back."""
        if self._spool is not None and frame.id in self._spool:
            return
        alone = self.question.mode in (Mode.EDGE, Mode.AUTO)  # the device may answer alone
        hopeless = self._spool is not None and self._worker.left > 0 and not alone
        try:
            answer = None if hopeless else await self._ask(frame, stopping)
        except CutlineError:
            await self._spool_or_drop(frame)
            raise
        if answer is None:
            await self._spool_or_drop(frame, stopping)
        else:
            await self._report(frame, answer, stopping, spooled=False)

    async def _forward(self, stopping: asyncio.Task[bool]) -> None:
        """Ask about a frame of the spool: the one after a failed one, as the frame itself may be the cause."""
        assert self._spool is not None
        frame = await asyncio.to_thread(self._spool.oldest, self._tried_last)
        if frame is not None:
            answer = await self._ask(frame, stopping)
            self._tried_last = frame.id if answer is None else None
            if answer is not None:
                await self._report(frame, answer, stopping, spooled=True)

    async def _ask(self, frame: Frame, stopping: asyncio.Task[bool]) -> Answer | CutlineError | None:
        """The answer, or the error of this very frame; None if it should be asked about later.

        Raises CutlineError for an error that every frame would have.
        """
        try:
            asked = msgspec.structs.replace(self.question, images=frame.images)
        except InputError as error:  # a series may be too large together
            return error
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
            if isinstance(error, PromptError):  # depends on the image, which takes part of the context
                return error
            # A later InputError is not the frame's: for example a key file that cannot be read for a moment.
            if not self._worker.tried:
                self._notify(f"{error}" if self._spool is None else f"{error} Frames wait in the spool.")
            self._worker.failed()
            return None if self._spool is not None else error
        if answer.worker is not None:
            if self._worker.tried:
                self._notify(f"the worker at {answer.worker} is back")
            self._worker.worked()
        return answer

    async def _answer(self, asked: Request) -> Answer:
        """The answer. With a spool an unverified one raises WorkerUnavailable, as the frame can wait for a worker."""
        answer = await self._agent.answer(asked)
        if self._spool is not None and answer.tail is Tail.UNVERIFIED:
            raise WorkerUnavailable(answer.lost[-1].why if answer.lost else "no worker can be asked at the moment")
        return answer

    async def _report(
        self, frame: Frame, answer: Answer | CutlineError, stopping: asyncio.Task[bool], *, spooled: bool
    ) -> None:
        """Write the line of an answer; with a spool, only after it is in the journal."""
        failed = isinstance(answer, CutlineError)
        self._queue.dropped[frame.source] += isinstance(answer, CutlineError) and not _is_of_frame(answer)
        line = self._line(frame, answer, spooled=spooled)
        if self._spool is not None:
            try:
                await self._store(partial(self._spool.commit, frame.id, line), stopping)
            except OSError:
                if not spooled:
                    await self._spool_or_drop(frame)
                return
        self.answered += not failed
        writing = _begin(partial(self._write, line + b"\n"))
        if await _ends(writing, stopping):
            writing.result()
        else:
            self.unread = True

    def _line(self, frame: Frame, answer: Answer | CutlineError, *, spooled: bool) -> bytes:
        """The printed line of a frame."""
        source = self._sources.get(frame.source)  # None for a spooled frame of an earlier run's source
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
                filtered=source.filtered if source else 0,
                dropped=self._queue.dropped[frame.source] + (source.unreadable if source else 0),
                frames=len(frame.images),
            )
        )

    async def _spool_or_drop(self, frame: Frame, stopping: asyncio.Task[bool] | None = None) -> None:
        """Put an unanswered frame into the spool, or drop it if there is no spool or no room."""
        if self._spool is not None and frame.id in self._spool:
            return
        dropped = [frame.source]
        if self._spool is not None and self._fits(frame):
            with contextlib.suppress(OSError):
                dropped = await self._store(partial(self._spool.put, frame), stopping)
        self._queue.dropped.update(dropped)

    async def _store(self, write: Callable[[], T], stopping: asyncio.Task[bool] | None) -> T:
        """Write to the spool, and retry until its disk works, as no answer could be stored before.

        Raises OSError if that fails after `stopping` is done.
        """
        while True:
            try:
                written = await asyncio.to_thread(write)
            except OSError as error:
                if not self._disk.tried:
                    self._notify(f"the spool cannot be written: {error.strerror}; nothing is asked until it can")
                self._disk.failed()
                if stopping is None or stopping.done():
                    raise
                await asyncio.wait({stopping}, timeout=self._disk.left)
            else:
                if self._disk.tried:
                    self._notify("the spool can be written again")
                self._disk.worked()
                return written


def shares(answer: Answer) -> dict[Provenance, float]:
    """The share of an answer's tokens by origin."""
    counted = Counter(token.source for token in answer.tokens)
    return {origin: round(count / counted.total(), 4) for origin, count in counted.items()}


def _is_of_frame(error: CutlineError) -> bool:
    """Whether the error is due to this very frame, which thus counts as asked about."""
    return isinstance(error, ImageError | PromptError | WorkerFailed)


async def _ends(doing: asyncio.Future[Any], stopping: asyncio.Task[bool]) -> bool:
    """Wait for `doing`, after `stopping` for STOP_SECONDS at most, then cancel it; returns whether it ended."""
    await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
    done, _ = await asyncio.wait({doing}, timeout=STOP_SECONDS)
    if not done:
        doing.cancel()
    return bool(done)


def _begin(call: Callable[[], T]) -> asyncio.Future[T]:
    """Run a call in a daemon thread; returns a future of its result."""
    future = concurrent.futures.Future[T]()
    future.set_running_or_notify_cancel()  # the thread runs on even if nobody waits any more

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:  # raised by whoever awaits the future
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return asyncio.wrap_future(future)
