"""The engine: a thread of its own that turns session requests into passes of the target.

Its loop is three verbs: schedule (which rows of which sessions), run (one pass), deliver (what it confirmed).
Other threads only put commands into its queue; events go out through each session's `deliver`, called here.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from cutline.cloud.pace import PassCost
from cutline.cloud.session import Event, Request, Rows, Session
from cutline.cloud.target import Target
from cutline.errors import WorkerBusy, WorkerFailed, WorkerUnavailable
from cutline.models.sampling import choose
from cutline.protos.messages import Draft, Opened

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _OpenSession:
    name: str
    request: Request
    drafts: tuple[Draft, ...]
    deliver: Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class _OfferDraft:
    name: str
    draft: Draft


@dataclass(frozen=True, slots=True)
class _CloseSession:
    name: str


class _Stop:
    pass


_Command = _OpenSession | _OfferDraft | _CloseSession | _Stop


class Engine:
    """Runs sessions on a target. `open`, `offer` and `close` may be called from any thread."""

    def __init__(self, target: Target, stop_tokens: Sequence[int]) -> None:
        self._target = target
        self._stop_tokens = frozenset(stop_tokens)
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._sessions: dict[str, Session] = {}
        self._free = list(range(target.slots))
        self._cost = PassCost()
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    @property
    def sessions(self) -> int:
        """How many sessions are open."""
        return len(self._sessions)

    @property
    def max_sessions(self) -> int:
        """How many there is room for."""
        return self._target.slots

    def boundary_shape(self, cut: str) -> tuple[int, int]:
        """Rows a tile and width of the boundary at a cut after `image`."""
        return self._target.boundary_shape(cut)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the pass it is in; sessions that are still open get WorkerUnavailable."""
        self._commands.put(_Stop())
        self._thread.join()

    def open(self, request: Request, drafts: Sequence[Draft], deliver: Callable[[Event], None]) -> str:
        """Open a session and return its random name; `drafts` came for it already.

        `deliver` gets Opened or WorkerBusy, then what is confirmed.
        """
        name = secrets.token_hex(8)
        self._commands.put(_OpenSession(name, request, tuple(drafts), deliver))
        return name

    def offer(self, name: str, draft: Draft) -> None:
        """Offer a draft to a session; of no effect if it has ended or the draft is late."""
        self._commands.put(_OfferDraft(name, draft))

    def close(self, name: str) -> None:
        """End a session and free its slot; of no effect if it has ended."""
        self._commands.put(_CloseSession(name))

    def _loop(self) -> None:
        busy = False
        while self._take_commands(wait=not busy):
            batch = self._schedule()
            busy = bool(batch)
            if batch:
                self._run(batch)

    def _take_commands(self, *, wait: bool) -> bool:
        """Carry out what is in the queue, if `wait` at least one command. False once told to stop."""
        while wait or not self._commands.empty():
            wait = False
            match self._commands.get():
                case _OpenSession() as command:
                    self._admit(command)
                case _OfferDraft(name, draft):
                    if name in self._sessions:
                        self._sessions[name].offer(draft.position, draft.tokens)
                case _CloseSession(name):
                    self._release(name)
                case _Stop():
                    for session in self._sessions.values():
                        session.deliver(WorkerUnavailable("the worker was stopped; ask another one"))
                    return False
        return True

    def _admit(self, command: _OpenSession) -> None:
        if not self._free:
            command.deliver(WorkerBusy(f"all {self._target.slots} sessions of this worker are taken; try again later"))
            return
        request = command.request
        limit = min(request.prompt_length + request.max_tokens, self._target.context)
        session = Session(command.name, request, self._free.pop(), command.deliver, limit)
        for draft in command.drafts:
            session.offer(draft.position, draft.tokens)
        self._sessions[command.name] = session
        command.deliver(Opened(command.name))

    def _release(self, name: str) -> None:
        session = self._sessions.pop(name, None)
        if session is not None:
            self._free.append(session.slot)

    def _schedule(self) -> list[Rows]:
        """The rows of the next pass: of every session that does not wait for a draft."""
        share = self._cost.row_share
        return [rows for session in self._sessions.values() if (rows := session.rows_to_run(share)) is not None]

    def _run(self, batch: list[Rows]) -> None:
        """One pass of `batch`. A session that breaks it is found by running each alone, and ends alone."""
        began = time.perf_counter()
        try:
            logits = self._target.run(batch, [self._image_rows(rows) for rows in batch])
        except Exception as error:
            if len(batch) > 1:
                for rows in batch:
                    self._run([rows])
                return
            log.exception("session %s broke a pass", batch[0].session.name)
            self._release(batch[0].session.name)
            failure = WorkerFailed("the worker failed on this session; its log says more")
            failure.__cause__ = error
            batch[0].session.deliver(failure)
            return
        seconds = time.perf_counter() - began
        count = sum(len(rows.tokens) for rows in batch)
        if all(rows.start > 0 for rows in batch):
            self._cost = self._cost.after(count, seconds)
        for rows, of in zip(batch, logits, strict=True):
            self._deliver(rows, of, seconds * len(rows.tokens) / count)

    def _image_rows(self, rows: Rows) -> torch.Tensor | None:
        request = rows.session.request
        if rows.start > 0:
            return None
        return None if request.boundary is None else self._target.encode(request.boundary, request.cut)

    def _deliver(self, rows: Rows, logits: torch.Tensor, seconds: float) -> None:
        session = rows.session
        session.passes += 1
        session.seconds += seconds
        after = rows.start + len(rows.tokens) - rows.drafted
        sampling = session.request.sampling
        chosen = [choose(row, sampling, after + index, xp=torch) for index, row in enumerate(logits)]
        reason = session.confirm(chosen, rows.drafted, self._stop_tokens)
        if reason is not None:
            self._release(session.name)
            session.deliver(session.finished(reason))
