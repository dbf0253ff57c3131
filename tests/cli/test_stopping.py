"""What signals do to a process whose main thread heeds none: it is in a library that does not come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / ".dev"

# A library holds the main thread again and again, as torch would; Python is there in between alone. Another has a
# thread that is older than the hearing, as NumPy's: the system may give it any signal that it does not block.
SCRIPT = """
import sys, threading, zlib
from cutline.cli.signals import Signals
threading.Thread(target=threading.Event().wait, daemon=True).start()
with Signals() as signals:
    if sys.argv[1] == "serving":
        signals.end_by(lambda: print("first", flush=True), lambda: print("second", flush=True))
    print("there", flush=True)
    while True:
        zlib.crc32(bytes(1 << 26))
"""


def begin(state: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, state], stdout=pipe, stderr=pipe, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_while_nothing_is_open_the_first_one_ends_it(number: int) -> None:
    with begin("starting") as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "cutline: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_the_second_one_ends_it_whatever_it_is_at(number: int) -> None:
    with begin("serving") as process:
        process.send_signal(number)
        assert process.stdout is not None
        assert process.stdout.readline() == "first\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "second\n")
    assert err == "cutline: ended at once, with what was open\n"


def test_whoever_leaves_in_order_finds_signals_as_they_were() -> None:
    script = """
import signal
from cutline.cli.signals import NUMBERS, Signals
before = [signal.getsignal(number) for number in NUMBERS]
with Signals():
    pass
assert [signal.getsignal(number) for number in NUMBERS] == before
assert signal.set_wakeup_fd(-1) == -1
assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(NUMBERS)
"""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    assert subprocess.run([sys.executable, "-c", script], env=environment, timeout=60, check=False).returncode == 0
