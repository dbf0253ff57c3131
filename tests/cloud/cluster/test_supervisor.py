"""A worker that hangs leaves nothing behind, whoever ends first."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cutline.cloud.cluster.supervisor import Supervisor

PACKAGE = Path(__file__).resolve().parents[3] / ".dev"
SECONDS = 10.0

# Both in place of `cutline`: they say who they are, and wait.
TIED = """
import os, signal, sys
from cutline.cloud.cluster import tied
def waits(*_):
    print(os.getpid(), flush=True)
    signal.pause()
os.execv = waits
tied.main()
"""
PARENT = f"""
import os, subprocess, sys, signal
subprocess.Popen([sys.executable, "-c", {TIED!r}, str(os.getpid())])
signal.pause()
"""


def test_a_worker_that_hangs_ends_with_its_supervisor() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PACKAGE)},
    ) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        worker.suspend()
        parent.kill()
        try:
            worker.wait(SECONDS)
        finally:
            if worker.is_running():
                worker.kill()


def test_a_supervisor_kills_a_worker_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'worker listens at 127.0.0.1:1'\nexec sleep 60\n")
    fake.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(fake))

    async def kill() -> None:
        one = Supervisor((), threads=1, drain=0.0)
        await one.kill()  # of no effect where nothing is
        one = Supervisor((), threads=1, drain=0.0)
        before = set(psutil.Process().children())  # other tests' own may be among them
        assert await one.start() == "127.0.0.1:1"
        (worker,) = set(psutil.Process().children()) - before
        os.kill(worker.pid, signal.SIGSTOP)
        async with asyncio.timeout(SECONDS):
            await one.kill()
        assert not worker.is_running()

    asyncio.run(kill())
