"""Processes that end when the one does that started them, however that ends.

`python -m cutline.core.tied PID MODULE ARGUMENT…` becomes `python -m MODULE ARGUMENT…`, tied to process PID. A worker
must not go on unseen where nobody is left to end it, with memory or a GPU that others believe to be free. It is killed,
for one that hangs heeds nothing less.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2); what it sets outlives an exec


def tied_command(module: str, *arguments: str) -> list[str]:
    """The command of a process that runs `module` and ends when the thread does that starts it, or all of us."""
    return [sys.executable, "-m", __name__, str(os.getpid()), module, *arguments]


def tie() -> None:
    """Have this process killed when the thread that started it ends. Raises OSError where the system cannot."""
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
    if os.getppid() != int(parent):  # it died before
        sys.exit("cutline: whoever started this process is gone")
    os.execv(sys.executable, [sys.executable, "-m", *command])  # noqa: S606 (no shell is wanted)


if __name__ == "__main__":
    main()
