"""Who listens to each session: the one place from which events go out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from cutline.cloud.engine.sessions.session import Event, Session
from cutline.errors import CutlineError
from cutline.protos.messages import Finished


class Listeners:
    """By the names of sessions. Each hears the events of its session, of which Finished or an error is the last.

    Any thread may call. A listener must neither block nor raise.
    """

    def __init__(self) -> None:
        self._listeners: dict[str, Callable[[Event], None]] = {}
        self._lock = threading.RLock()  # one that hears something may open a session, or close its own
        self.ended: CutlineError | None = None  # what all have heard, and whoever comes hears

    def add(self, name: str, listener: Callable[[Event], None]) -> None:
        """Have the events of a session go to `listener`."""
        with self._lock:
            self._listeners[name] = listener
            if self.ended is not None:
                self.emit(name, self.ended)

    def drop(self, name: str) -> None:
        """Nobody listens to a session any more: it hears nothing from here on."""
        with self._lock:
            self._listeners.pop(name, None)

    def emit(self, name: str, event: Event) -> None:
        """Have the listener of a session hear `event`, unless it has heard the last, or listens no more."""
        last = isinstance(event, Finished | CutlineError)
        with self._lock:
            listener = self._listeners.pop(name, None) if last else self._listeners.get(name)
            if listener is not None:
                listener(event)

    def end(self, why: CutlineError) -> None:
        """Have all hear `why`, and whoever still comes; of no effect if they ended before."""
        with self._lock:
            if self.ended is None:
                self.ended = why
                for name in tuple(self._listeners):
                    self.emit(name, why)

    def hears(self, name: str) -> bool:
        """Whether anybody listens to a session."""
        return name in self._listeners

    def awaits(self, sessions: Iterable[Session]) -> bool:
        """Whether anybody waits for one of `sessions` that is not out of time: asked in the middle of its work."""
        now = time.monotonic()
        return any(one.name in self._listeners and not one.late(now) for one in sessions)
