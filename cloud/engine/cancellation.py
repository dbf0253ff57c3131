"""Whether anybody still waits for what an engine is at: asked in the middle of it, told by any thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from cutline.cloud.engine.sequence import Session


class Interest:
    """In sessions: all have it until they are closed, are out of time, or the engine is to stop."""

    def __init__(self) -> None:
        self._closed = set[str]()
        self._over = threading.Event()

    def close(self, name: str) -> None:
        """Nobody listens to a session any more."""
        self._closed.add(name)

    def forget(self, name: str) -> None:
        """A session has ended."""
        self._closed.discard(name)

    def end(self) -> None:
        """In no session any more."""
        self._over.set()

    def none_in(self, sessions: Iterable[Session]) -> bool:
        """Whether nobody waits for any of `sessions`."""
        if self._over.is_set():
            return True
        now = time.monotonic()
        return all(
            one.name in self._closed or (one.request.deadline is not None and one.request.deadline <= now)
            for one in sessions
        )
