"""How far a long command is, and how long it will still take."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

EVERY = 30.0  # seconds between two lines, where there is no terminal


class TimeLeft(Progress):
    """Bars with the time left of each; where nobody looks at a terminal, a line now and then instead."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            get_time=lambda: time.monotonic(),
        )
        self._told = self.get_time()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """One more is done, or so many."""
        super().advance(task_id, advance)
        if self.disable and (now := self.get_time()) - self._told >= EVERY:
            self._told = now
            (task,) = (one for one in self.tasks if one.id == task_id)
            left = "" if (seconds := task.time_remaining) is None else f", about {_clock(seconds)} left"
            said = f"{task.description}: {task.completed:.0f} of {task.total or 0:.0f}{left}"
            self.console.print(said, highlight=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
