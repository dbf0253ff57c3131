"""Noticing that a worker or the link to it has died, though neither says a word.

A worker that is silent may just be busy, and TCP keeps a dead link for minutes. So while a session is open the agent
has the worker answer a heartbeat, on the same connection, whenever nothing else was heard for a while. It is given up
when it owes one that it would long have answered.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import NoReturn

from cutline.errors import WorkerUnavailable
from cutline.protos.client import WorkerSession

NOTICE = 2.0  # seconds
SLOWEST_UPLINK = 4_000.0  # bytes a second
FIRST_UPLINK = 32_000.0  # bytes a second: what a link is taken for that was never measured
SLACK = 2.0  # a link is now and then so many times slower than it was
CONNECTING = 2.0  # a connection has its own round trips, before the first that is the session's

_STEPS = 16  # how often within `notice` it is looked at
_BEAT = 3 / 8  # of the notice, after which silence is broken by a heartbeat
_EARLY = 1 / 8  # of the notice: at its end it would be too late, as looks are steps apart, and late themselves
_STARTING = 5  # turns of the event loop after which a call that was begun has gone to gRPC


class WorkerSilent(WorkerUnavailable):
    """Nothing was heard of a worker for so long that it, or the link to it, must have died.

    `notice` is what that was measured by, in seconds; `answered` whether anything was heard of it before, and `ahead`
    the bytes that had gone before the heartbeat and may still have been on their way.
    """

    def __init__(self, message: str, *, notice: float, answered: bool, ahead: int = 0) -> None:
        super().__init__(message)
        self.notice = notice
        self.answered = answered
        self.ahead = ahead


def patience(notice: float, *, ahead: int, uplink: float, connected: bool) -> float:
    """Seconds of silence within which a worker that owes an answer to a heartbeat is given up.

    `ahead` are the bytes that went before the heartbeat and may still be on their way, at `uplink` bytes a second: what
    they take beyond a quarter of the notice is waited for. Where the connection was not yet `connected`, that takes its
    time, too.
    """
    under_way = SLACK * ahead / max(uplink, SLOWEST_UPLINK)
    return notice * (1.0 if connected else CONNECTING) + max(0.0, under_way - notice / 4)


@dataclass(slots=True, eq=False)
class Heartbeat:
    """The heartbeat of one session, which is given up within `notice` seconds of silence. Times are monotonic.

    `uplink` is what the link is taken for, in bytes a second, until the session shows that it carries more; `connected`
    whether there was a connection already.
    """

    session: WorkerSession
    notice: float
    uplink: float
    connected: bool
    _beat: asyncio.Task[bool] | None = None
    _ahead: int = 0  # bytes that went before it
    _last: float = field(default_factory=time.monotonic)  # when one was sent, or the session was opened
    _tried: float = 0.0  # when it was sent last, perhaps again since it had failed

    async def run(self) -> NoReturn:
        """Send heartbeats for ever. Raises WorkerUnavailable once the worker, or the link to it, has died."""
        step = self.notice / _STEPS
        try:
            while True:
                before = time.monotonic()
                await asyncio.sleep(step)
                now = time.monotonic()
                # What this process did not hear while it was itself held up, however shortly, is no silence of the
                # worker's: so that is counted in looks.
                self.session.heard += max(0.0, now - before - step)
                self._look(now)
        finally:
            if self._beat is not None:
                self._beat.cancel()

    async def before(self, size: int) -> None:
        """Send one before a message of `size` bytes that would hold it up for long."""
        under_way = self._beat is not None and not self._beat.done()
        if SLACK * (self.session.unproven + size) > self.uplink * self.notice / 2 and not under_way:
            self._send()
            for _ in range(_STARTING):
                await asyncio.sleep(0)

    @property
    def _owed(self) -> bool:
        """Whether one was sent that is not answered. One that failed is not, unless something else was heard."""
        if self._beat is None or not self._beat.done():
            return self._beat is not None
        failed = self._beat.cancelled() or self._beat.exception() is not None or not self._beat.result()
        return failed and self.session.heard <= self._last

    def _look(self, now: float) -> None:
        heard = self.session.heard
        if self._owed:
            connected = self.connected or self.session.answered
            uplink = max(self.uplink, self.session.carried)
            allowed = patience(self.notice, ahead=self._ahead, uplink=uplink, connected=connected)
            if now - max(heard, self._last - _BEAT * self.notice) > allowed - _EARLY * self.notice:
                raise WorkerSilent(
                    f"nothing was heard of the worker at {self.session.address} for {now - heard:.1f} seconds; is it "
                    "running, and the link up?",
                    notice=self.notice,
                    answered=self.session.answered,
                    ahead=self._ahead,
                )
            if self._beat is not None and self._beat.done() and now - self._tried >= self.notice / 4:
                self._try(now)
        elif now - (self._last if self.session.unproven else max(heard, self._last)) >= _BEAT * self.notice:
            self._send()

    def _send(self) -> None:
        self._last, self._ahead = time.monotonic(), self.session.unproven
        self._try(self._last)

    def _try(self, now: float) -> None:
        self._tried = now
        self._beat = asyncio.create_task(self.session.beat())
