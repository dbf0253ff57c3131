"""`python -m cutline.cloud.cluster.tied PID ARGUMENT…`: `cutline ARGUMENT…`, which ends when process PID does.

A worker whose supervisor was killed must not go on unseen, with a GPU that Ray believes to be free. It is killed, for
one that hangs heeds nothing less.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2); what it sets outlives an exec


def main() -> None:
    """Tie this process to its parent, then become `cutline`."""
    parent, *arguments = sys.argv[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        sys.exit(f"cutline: prctl failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):  # it died before
        sys.exit("cutline: the supervisor of this worker is gone")
    os.execv(sys.executable, [sys.executable, "-m", "cutline.cli", *arguments])  # noqa: S606 (no shell is wanted)


if __name__ == "__main__":
    main()
