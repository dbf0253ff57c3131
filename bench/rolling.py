"""A rolling restart with two versions: agents of both before workers of both; every answer must be the same.

    PYTHONPATH=.dev python -m cutline.bench.rolling --other v0.1.0

`--other` is any commit of this repository; its code runs from a temporary folder, on the same packages.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import httpx

from cutline.demo.cards import Split
from cutline.demo.requests import requests

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS, ANSWER_SECONDS, STOP_SECONDS = 300.0, 120.0, 60.0
HERE = "this"


@dataclass(frozen=True, slots=True)
class Version:
    """The code in the folder `root`, by name."""

    name: str
    root: Path

    def start(self, *arguments: str) -> Process:
        """`cutline ARGUMENT…` of this version."""
        env = os.environ | {"PYTHONPATH": str(self.root / ".dev"), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        popen = subprocess.Popen(
            [sys.executable, "-m", "cutline.cli", *arguments],
            cwd=self.root,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert popen.stdout is not None
        first = popen.stdout.readline()
        if " listens at " not in first:
            raise SystemExit(f"{self.name}: `cutline {arguments[0]}` did not start: {first!r}")
        return Process(popen, first.split()[-1])


@dataclass(frozen=True, slots=True)
class Process:
    """One that runs, at its `address`."""

    popen: subprocess.Popen[str]
    address: str

    def stop(self) -> None:
        """End it in order."""
        self.popen.send_signal(signal.SIGTERM)
        self.popen.wait(STOP_SECONDS)
        if self.popen.stdout is not None:
            self.popen.stdout.close()


@dataclass(slots=True)
class Trial:
    """The answer to each question, as whoever was first gave it; what differs is counted."""

    questions: int
    truths: dict[int, str] = field(default_factory=dict)
    asked: int = 0
    wrong: int = 0
    inexact: int = 0
    lost: int = 0

    def ask(self, url: str, modes: tuple[str, ...] = ("cloud", "draft")) -> None:
        """Ask the agent at `url` everything once, and compare."""
        with httpx.Client(base_url=url, trust_env=False, timeout=ANSWER_SECONDS) as client:
            for place, one in enumerate(islice(requests(Split.EVALUATION, self.questions, seed=21), self.questions)):
                picture = "data:image/png;base64," + base64.b64encode(one.image).decode()
                parts = [
                    {"type": "image_url", "image_url": {"url": picture}},
                    {"type": "text", "text": one.question.text},
                ]
                for mode in modes:
                    body = {"messages": [{"role": "user", "content": parts}], "cutline": {"mode": mode}}
                    self.take(place, mode, client.post("/v1/chat/completions", json=body))

    def take(self, place: int, mode: str, response: httpx.Response) -> None:
        """Count an answer."""
        self.asked += 1
        if response.status_code != 200:
            self.wrong += 1
            print(f"  question {place}, {mode}: {response.status_code} {response.text[:200]}")
            return
        answer: dict[str, Any] = response.json()["cutline"]
        truth = self.truths.setdefault(place, answer["text"])
        self.wrong += answer["text"] != truth
        self.inexact += answer["exact"] is not True
        self.lost += len(answer["lost"])


@contextmanager
def checked_out(commit: str) -> Iterator[Version]:
    """The code of a commit, in a temporary folder."""
    archive = subprocess.run(
        ["git", "archive", commit],  # noqa: S607 (the developer's own)
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="tar")
        yield Version(commit, Path(folder))


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


def stop(processes: Iterable[Process]) -> None:
    """End them all."""
    for one in processes:
        one.stop()


def roll(agents: Version, before: Version, after: Version, trial: Trial) -> None:
    """An agent before two workers, which go from one version to the other, one by one, while it asks."""
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    named = [option for address in addresses for option in ("--worker", address)]

    def worker(version: Version, address: str) -> Process:
        return version.start("cloud", "--listen", address, "--insecure", "--threads", "1", "--drain", "2")

    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        starts = [pool.submit(worker, before, address) for address in addresses]
        agent = agents.start("edge", "--listen", "127.0.0.1:0", "--insecure", "--threads", "1", *named)
        stack.callback(agent.stop)
        workers = [start.result() for start in starts]
        stack.callback(stop, workers)
        url = f"http://{agent.address}"
        trial.ask(url)
        for place, address in enumerate(addresses):
            workers[place].stop()
            replacement = pool.submit(worker, after, address)
            trial.ask(url)
            workers[place] = replacement.result()
            trial.ask(url)


def main() -> None:
    """Print a line for each agent and direction; exit code 1 if any answer was another or failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", required=True, metavar="COMMIT", help="the other version")
    parser.add_argument("--questions", type=int, default=2, help="asked in two modes at each of five steps")
    given = parser.parse_args()
    here, failed = Version(HERE, ROOT), False
    truths: dict[int, str] = {}
    with checked_out(given.other) as other:
        for agents in (other, here):
            for before, after in ((other, here), (here, other)):
                trial = Trial(given.questions, truths)
                roll(agents, before, after, trial)
                failed |= bool(trial.wrong)
                print(
                    f"agent {agents.name}, workers {before.name} to {after.name}: {trial.asked} answers, "
                    f"{trial.wrong} wrong or failed, {trial.inexact} not exact, {trial.lost} workers lost",
                    flush=True,
                )
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
