"""How sessions come and go on a worker: how long they wait and last, and when a refused one may come again."""

from __future__ import annotations

from cutline.cloud.pace import DecayingMean, retry_seconds
from cutline.errors import WorkerBusy


class Turnover:
    """Of sessions that share `slots`. Times are monotonic."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._waits = DecayingMean()  # seconds from `open` to the first work
        self._lasting = DecayingMean()  # seconds of a session
        self._refused = 0  # sessions, since a slot was freed

    def waited(self, now: float) -> float:
        """How long sessions lately waited for their first work."""
        return self._waits.at(now)

    def begun(self, waited: float, now: float) -> None:
        """A session that `waited` so many seconds is run for the first time."""
        self._waits = self._waits.after(waited, now)

    def ended(self, lasted: float, now: float) -> None:
        """A session that `lasted` so many seconds has freed its slot."""
        self._lasting = self._lasting.after(lasted, now)
        self._refused = 0

    def refusal(self) -> WorkerBusy:
        """What one more session is told, for which there is no slot."""
        seconds = retry_seconds(self._lasting.seen, self._slots, self._refused)
        self._refused += 1
        return WorkerBusy(
            f"all {self._slots} sessions of this worker are taken; try again in {seconds:.1f} seconds",
            retry_seconds=seconds,
        )
