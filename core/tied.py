"""Processes that are killed when their parent ends, however it ends.

`python -m cutline.core.tied PID MODULE ARGUMENT…` becomes `python -m MODULE ARGUMENT…`, tied to process PID. An
orphaned worker would hold memory or a GPU that others believe to be free. It gets SIGKILL: one that hangs ignores
SIGTERM.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2); the setting survives an exec


def tied_command(module: str, *arguments: str) -> list[str]:
    """The command of a process that runs `module`, and is killed when the thread that starts it ends."""
    return [sys.executable, "-m", __name__, str(os.getpid()), module, *arguments]


def tie() -> None:
    """Have this process killed when the thread that started it ends. Raises OSError if the system cannot do so."""
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is None or prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "a process cannot be tied to another on this system")


def main() -> None:
    """Tie this process to its parent, then become the module."""
    parent, *command = sys.argv[1:]
    try:
        tie()
    except OSError as error:
        sys.exit(f"cutline: {error.strerror}")
    if os.getppid() != int(parent):  # it ended before `tie`
        sys.exit("cutline: whoever started this process is gone")
    os.execv(sys.executable, [sys.executable, "-m", *command])  # noqa: S606 (no shell is wanted)


if __name__ == "__main__":
    main()
