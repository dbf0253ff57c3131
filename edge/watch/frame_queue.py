"""Frames that wait to be asked about: few of each source, and of a live one always the newest."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable

from cutline.edge.watch.frames import Frame


class Waiting:
    """At most `room` frames of each source. Sources put frames in from threads; the event loop takes them out."""

    def __init__(self, names: Iterable[str], *, room: int) -> None:
        self.dropped = Counter[str]()  # frames of each source that were never asked about
        self._lines: dict[str, deque[Frame]] = {name: deque() for name in names}
        self._room = room
        self._closed = False
        self._changed = threading.Condition()
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    def put(self, frame: Frame, *, live: bool) -> bool:
        """Put a frame in; where there is no room, drop the oldest if it is `live`, else wait. False once closed."""
        with self._changed:
            line = self._lines[frame.source]
            while len(line) >= self._room and not live and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            if len(line) >= self._room:
                line.popleft()
                self.dropped[frame.source] += 1
            line.append(frame)
        self.tell()
        return True

    def take(self, may: Callable[[Frame], bool] = lambda frame: True) -> Frame | None:
        """The oldest frame of the source whose turn it is, if it `may` be taken; None if there is none."""
        with self._changed:
            for name, line in self._lines.items():
                if line and may(line[0]):
                    # It goes to the end of the row, so that a busy source does not hide the others.
                    self._lines[name] = self._lines.pop(name)
                    self._changed.notify_all()
                    return line.popleft()
        return None

    async def news(self) -> None:
        """Until something was put in, or `tell` was called, since the last time."""
        await self._news.wait()
        self._news.clear()

    def tell(self) -> None:
        """End a wait for news, from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.set)

    def close(self) -> list[Frame]:
        """Take no more, and give back what still waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            left = [frame for line in self._lines.values() for frame in line]
            for line in self._lines.values():
                line.clear()
        return left
