"""What a service manager hears of a command that it runs: when it serves, and while it reads its settings again.

The protocol is systemd's sd_notify(3): datagrams to the socket that the variable NOTIFY_SOCKET names. Where there is no
such variable, nobody is told.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

VARIABLE = "NOTIFY_SOCKET"


class Service:
    """This process, as a service manager knows it."""

    def __init__(self) -> None:
        address = os.environ.pop(VARIABLE, "")  # no process that this one starts speaks for it
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._ready = False

    def ready(self) -> None:
        """It serves."""
        self._ready = True
        self._tell("READY=1")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """It reads its settings again. Of no effect before it serves."""
        if self._ready:
            self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            if self._ready:
                self._tell("READY=1")

    def stopping(self) -> None:
        """It ends, in order."""
        self._tell("STOPPING=1")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaking:  # it may be gone
            speaking.sendto("\n".join(lines).encode(), self._address)
