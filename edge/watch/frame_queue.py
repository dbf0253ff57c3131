"""A bounded queue of frames for each source; a live source's keeps the newest."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable

from cutline.edge.watch.frames import Frame


class FrameQueue:
    """At most `room` frames of each source. Sources' threads put frames in, the event loop takes them out."""

    def __init__(self, names: Iterable[str], *, room: int) -> None:
        self.dropped = Counter[str]()  # dropped frames by source
        self._lines: dict[str, deque[Frame]] = {name: deque() for name in names}
        self._room = room
        self._closed = False
        self._changed = threading.Condition()
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    def put(self, frame: Frame, *, live: bool) -> bool:
        """Put a frame in; without room, drop the oldest if it is `live`, else wait. Returns False once closed."""
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
        self.wake()
        return True

    def take(self, may: Callable[[Frame], bool] = lambda frame: True) -> Frame | None:
        """Take the oldest frame of the next source whose oldest frame `may` be taken; None if there is none."""
        with self._changed:
            for name, line in self._lines.items():
                if line and may(line[0]):
                    # Moved to the end (round robin), so that a busy source does not starve the others.
                    self._lines[name] = self._lines.pop(name)
                    self._changed.notify_all()
                    return line.popleft()
        return None

    async def news(self) -> None:
        """Wait until a frame was put in, or `wake` was called, since the last wait."""
        await self._news.wait()
        self._news.clear()

    def wake(self) -> None:
        """End a wait for `news`, from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.set)

    def close(self) -> list[Frame]:
        """Accept no more frames; returns those that still wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            left = [frame for line in self._lines.values() for frame in line]
            for line in self._lines.values():
                line.clear()
        return left
