"""Whether heat or power hold the device back now, without ever making a request wait for a sensor."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

EVERY = 10.0  # seconds: some sensors are tools to start, which is work of its own


class Thermal:
    """Keeps what `read` said last: whether the clock is held back, None where nothing says so.

    `read` is called in a thread of its own, at most every `EVERY` seconds of `clock`, and only when someone asks: the
    device has work then, and an idle one's low clock would be taken for a throttled one.
    """

    def __init__(self, read: Callable[[], bool | None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._clock = clock
        self._said: bool | None = None
        self._asked = -EVERY
        self._reader: threading.Thread | None = None

    def throttled(self) -> bool:
        """What was said last."""
        now = self._clock()
        if now - self._asked >= EVERY and (self._reader is None or not self._reader.is_alive()):
            self._asked = now
            self._reader = threading.Thread(target=self._look, name="thermal", daemon=True)
            self._reader.start()
        return bool(self._said)

    def _look(self) -> None:
        self._said = self._read()
