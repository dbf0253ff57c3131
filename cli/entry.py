"""Where `cutline` begins: importing what the commands are made of takes a third of a second, and may be interrupted."""

from __future__ import annotations

import os
import signal
from types import FrameType

INTERRUPTED = 130  # as shells expect after Ctrl-C


def main() -> None:
    """The entry point. An interrupt before the commands are there ends the process at once: nothing was begun."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    from cutline.cli.main import main as run

    run()


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"cutline: interrupted\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
