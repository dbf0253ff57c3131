from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from cutline.cli.main import main
from cutline.cloud.worker import Worker
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.models.bundle import Bundle

PACKAGE = Path(__file__).resolve().parents[2] / ".dev"
SECONDS = 100  # that a process may take for what should take a few


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    def failed(self, code: int) -> str:
        """Check that it failed as documented: one line, nothing printed. Returns the line."""
        assert self.out == ""
        assert self.err.startswith("cutline: ")
        assert self.err.count("\n") == 1, self.err
        assert self.err.endswith("\n")
        assert self.code == code, self.err
        return self.err


class Process:
    """A command as a process, at the head of a process group of its own."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self._popen = popen

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def address(self) -> str:
        """The address that a worker or an agent prints first."""
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        assert " listens at " in line, self._popen.stderr.read() if self._popen.stderr else line
        return line.split()[-1]

    def line(self) -> str:
        """The next line that it prints."""
        assert self._popen.stdout is not None
        return self._popen.stdout.readline()

    def told(self) -> str:
        """The next line on stderr."""
        assert self._popen.stderr is not None
        return self._popen.stderr.readline()

    def stop_reading(self) -> None:
        """Close the pipe that it prints into."""
        assert self._popen.stdout is not None
        self._popen.stdout.close()
        self._popen.stdout = None

    def fill(self, size: int) -> None:
        """Make the pipe that it prints into so small, and wait until it prints no more as nobody reads."""
        assert self._popen.stdout is not None
        pipe, held, before = self._popen.stdout.fileno(), 0, -1
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size)
        end = time.monotonic() + SECONDS
        while (held < size // 2 or held != before) and time.monotonic() < end:
            time.sleep(1.0)
            before, held = held, int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
        assert held >= size // 2

    def wait(self) -> int:
        """Its exit code, while nobody reads what it prints."""
        return self._popen.wait(SECONDS)

    def children(self) -> list[psutil.Process]:
        """The processes that it has started and that run."""
        return psutil.Process(self._popen.pid).children()

    def mapped(self) -> list[Any]:
        """The files that it has mapped into its memory, libraries among them."""
        return psutil.Process(self._popen.pid).memory_maps()

    def heeds(self, number: int) -> bool:
        """Whether it has something of its own to do at a signal, and not just what the system does."""
        status = Path(f"/proc/{self._popen.pid}/status").read_text()
        (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught, 16) >> (number - 1) & 1)

    def signal(self, number: int) -> None:
        """Send a signal to the process alone; its children do not get it, as they would from Ctrl-C."""
        self._popen.send_signal(number)

    def finish(self) -> Ran:
        """Wait for its end, and check that nothing it started is left."""
        out, err = self._popen.communicate(timeout=SECONDS)
        with pytest.raises(ProcessLookupError):
            os.killpg(self._popen.pid, 0)
        return Ran(self._popen.returncode, out, err)


@contextmanager
def started(*arguments: str | Path, errors: int = subprocess.PIPE) -> Iterator[Process]:
    environment = os.environ | {"PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "cutline.cli", *map(str, arguments)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=environment,
        start_new_session=True,
    ) as popen:
        try:
            yield Process(popen)
        finally:
            popen.kill()


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Starts commands as processes, which end with the test."""
    with ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(started(*arguments))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ran]]:
    """Runs commands in this process."""
    terminate = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["cutline", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Ran(int(ended.value.code or 0), captured.out, captured.err)

    yield run
    signal.signal(signal.SIGTERM, terminate)


@pytest.fixture(scope="module")  # its threads are none of other tests' business
def worker() -> Iterator[str]:
    """The address of a worker of the demo's target, in this process."""
    with Worker(Bundle.open(TARGET), max_sessions=8) as here:
        yield here.address


@pytest.fixture(scope="session")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card as a PNG file."""
    path = tmp_path_factory.mktemp("card") / "card.png"
    path.write_bytes(next(requests(Split.EVALUATION, 1, seed=2)).image)
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The demo's drafter in a folder that may change."""
    return Path(shutil.copytree(DRAFTER, tmp_path / "drafter"))
