"""Who looks on at a worker: told what happens, where it happens, and never asked anything."""

from __future__ import annotations

from cutline.errors import CutlineError
from cutline.protos.messages import Confirmed, Finished, Opened


class Observer:
    """Looks away: one that counts overrides what it wants. Called by the engine's thread and the event loop."""

    def passed(self, rows: int, drafted: int, seconds: float) -> None:
        """A pass of so many `rows`, of which `drafted` were unconfirmed, took `seconds`."""

    def told(self, event: Opened | Confirmed | Finished) -> None:
        """An agent was told of its session."""

    def refused(self, error: CutlineError) -> None:
        """A session ended with `error`, or never began."""

    def carried(self, *, up: int = 0, down: int = 0) -> None:
        """Bytes of messages came `up` from an agent or went `down` to it."""


NOBODY = Observer()
