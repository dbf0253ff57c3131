"""What signals do to a process whose main thread heeds none: it is in a library that does not come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / ".dev"

# A library holds the main thread again and again, as torch would; Python is there in between alone. Or it holds all of
# them: such a loop in C gives way to no other. Another library's thread was there first, to which a signal may come.
SCRIPT = """
import sys, threading, time, zlib
from collections import deque
from itertools import repeat
threading.Thread(target=lambda: time.sleep(3600), daemon=True).start()
from cutline.cli.process.signals import Signals
state = sys.argv[1]

def hold():
    deque(repeat(None), maxlen=0)

def first():
    print("first", flush=True)
    if state == "held":
        hold()

with Signals() as signals:
    if state != "starting":
        signals.end_by(first)
    print("there", flush=True)
    if state == "deaf":
        hold()
    while True:
        zlib.crc32(bytes(1 << 26))
"""
BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)


def begin(state: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, state], stdout=pipe, stderr=pipe, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    return process


@BOTH
def test_while_nothing_is_open_the_first_one_ends_it(number: int) -> None:
    with begin("starting") as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "cutline: interrupted\n")


@pytest.mark.parametrize("state", ["serving", "held"])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@BOTH
def test_the_second_one_ends_it_whatever_it_is_at(number: int, second: int, state: str) -> None:
    with begin(state) as process:
        process.send_signal(number)
        assert process.stdout is not None
        assert process.stdout.readline() == "first\n"
        process.send_signal(second)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (-second, "", "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="where the system itself counts to two")
@BOTH
def test_two_end_it_even_if_nobody_heard_the_first(number: int) -> None:
    with begin("deaf") as process:
        process.send_signal(number)
        while is_caught(process.pid, number):
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    # On a busy machine it may hear the first before it becomes deaf.
    assert (process.returncode, out.removeprefix("first\n"), err) == (-number, "", "")


def is_caught(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (caught,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return bool(caught >> (number - 1) & 1)


@BOTH
def test_whoever_leaves_in_order_finds_signals_as_they_were(number: int) -> None:
    script = """
import signal, sys
from cutline.cli.process.signals import Signals
number = int(sys.argv[1])
before = signal.getsignal(number)
with Signals():
    assert signal.getsignal(number) is not before
assert signal.getsignal(number) is before
assert signal.set_wakeup_fd(-1) == -1
heard = []
signal.signal(number, lambda *_: heard.append(1))
for _ in range(2):
    signal.raise_signal(number)
assert heard == [1, 1]
"""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    command = [sys.executable, "-c", script, str(int(number))]
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == 0
