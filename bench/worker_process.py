"""A worker as a process that can be killed, frozen, drained and started again, and is watched from outside."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Self

import httpx
import psutil

from cutline.cloud.telemetry.scrape import Figures, figures, read_counts
from cutline.core.tied import tied_command
from cutline.errors import WorkerUnavailable
from cutline.protos.channel.credentials import NO_KEYS, AgentKeys
from cutline.protos.client import WorkerClient

START_SECONDS = 250.0  # on a machine that does much else
STOP_SECONDS = 15.0
_LAST = 40  # lines


class WorkerProcess:
    """`cutline cloud` with a bundle and more `options`, as an async context manager; agents know it by `keys`."""

    def __init__(self, bundle: Path, *options: str, keys: AgentKeys = NO_KEYS) -> None:
        self.address = ""
        self.starts = 0
        self._options = ("--bundle", str(bundle), *options)
        self._keys = keys
        self._metrics = ""
        self._process: subprocess.Popen[str] | None = None
        self._spoken = tempfile.TemporaryFile()  # noqa: SIM115  # its stderr, until it is left
        self._ending = False

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except WorkerUnavailable:
            self._spoken.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill()
        await self._ended()
        self._spoken.close()

    async def start(self) -> None:
        """Start it, at a port of its own; it must not run. Raises WorkerUnavailable."""
        self._process, self._ending = self._begun(), False
        out = self._process.stdout
        assert out is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                lines = [await asyncio.to_thread(out.readline) for _ in range(2)]
        except TimeoutError:
            lines = ["", ""]
        if " listens at " not in lines[0]:
            self.kill()
            await self._ended()
            raise WorkerUnavailable(f"`cutline cloud` did not start: {self.last_words}")
        self.address, self._metrics = lines[0].split()[-1], lines[1].split()[-1].removeprefix("http://")
        self.starts += 1

    @property
    def fell(self) -> bool:
        """Whether it ended, though nobody told it to."""
        return self._process is not None and self._process.poll() is not None and not self._ending

    @property
    def last_words(self) -> str:
        """The end of what it wrote to stderr."""
        self._spoken.seek(0)
        lines = self._spoken.read().decode(errors="replace").strip().splitlines()
        return "\n".join(lines[-_LAST:]) or "it said nothing"

    def kill(self) -> None:
        """End it without a word."""
        self._ending = True
        self._signal(signal.SIGKILL)

    def freeze(self) -> None:
        """Stop it where it is."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Have it go on."""
        self._signal(signal.SIGCONT)

    def drain(self) -> None:
        """Tell it to end in order."""
        self._ending = True
        self._signal(signal.SIGTERM)

    async def restart(self) -> None:
        """Wait for its end, and start it anew."""
        await self._ended()
        await self.start()

    async def sessions(self) -> int:
        """How many are open. Raises WorkerUnavailable."""
        async with WorkerClient(self.address, self._keys) as client:
            return (await client.describe()).sessions

    async def figures(self) -> Figures:
        """What it counts."""
        async with httpx.AsyncClient(trust_env=False, timeout=10.0) as client:
            return figures(read_counts((await client.get(f"http://{self._metrics}/metrics")).text))

    @property
    def usage(self) -> psutil.Process:
        """The process, for who wants to know what it takes."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def _begun(self) -> subprocess.Popen[str]:
        listen = ("--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--threads", "1", "--insecure")
        return subprocess.Popen(
            tied_command("cutline.cli", "cloud", *listen, *self._options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._spoken,
            text=True,
            # Processes that share cores must not wait busily.
            env=os.environ | {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"},
        )

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    async def _ended(self) -> None:
        if self._process is None:
            return
        try:
            await asyncio.to_thread(self._process.wait, STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.thaw()
            self.kill()
            await asyncio.to_thread(self._process.wait)
        if self._process.stdout is not None:
            self._process.stdout.close()
