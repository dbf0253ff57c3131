"""Ctrl-C and SIGTERM end every command at once, in order, and leave nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest

from cutline.cli.process.signals import Signals
from cutline.core.request import Mode, Request
from cutline.demo.bundles import DRAFTER
from cutline.edge.api.requests.schema import ChatRequest
from cutline.errors import WorkerUnavailable
from cutline.models.bundle import Bundle
from cutline.protos.client import WorkerClient
from cutline.protos.messages import Open, Opened

Start = Callable[..., Any]
Run = Callable[..., Any]

QUESTION = "Describe the card."
SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)


class BlackHole:
    """Takes connections and never says a word."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(60)
        self._taken: list[socket.socket] = []
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"

    def wait(self) -> None:
        """Until somebody has connected and said something."""
        connection, _ = self._listening.accept()
        self._taken.append(connection)
        connection.settimeout(60)
        assert connection.recv(1)

    def close(self) -> None:
        for one in (self._listening, *self._taken):
            one.close()


async def hold(address: str, opened: Callable[[WorkerClient], Awaitable[None]]) -> None:
    """A session that waits for a draft, which never comes; `opened` is called once it is open."""
    model = Bundle.open(DRAFTER).manifest.target
    assert model is not None
    opening = Open(model=model, tokens=(10, 11), prompt_length=2, max_tokens=50, effort=0.0)
    async with WorkerClient(address) as client, client.session(opening, [], timeout=60) as session:
        async for event in session.events():
            if isinstance(event, Opened):
                await opened(client)


@pytest.fixture
def black_hole() -> Iterator[BlackHole]:
    hole = BlackHole()
    yield hole
    hole.close()


@SIGNALS
@pytest.mark.parametrize("mode", ["cloud", "draft"])
def test_a_question_that_waits(start: Start, card: Path, black_hole: BlackHole, mode: str, number: int) -> None:
    ask = start("ask", card, QUESTION, "--mode", mode, "--worker", black_hole.address)
    black_hole.wait()
    ask.signal(number)
    assert ask.finish().failed(130) == "cutline: interrupted\n"


def test_a_question_that_waits_for_an_agent(start: Start, card: Path, black_hole: BlackHole) -> None:
    ask = start("ask", card, QUESTION, "--agent", f"http://{black_hole.address}")
    black_hole.wait()
    ask.signal(signal.SIGINT)
    assert ask.finish().failed(130) == "cutline: interrupted\n"


def test_what_grpc_logs_stays_out_of_an_error(start: Start, card: Path, black_hole: BlackHole) -> None:
    """In a process of its own, where gRPC writes to stderr past Python."""
    start("ask", card, QUESTION, "--mode", "cloud", "--worker", "127.0.0.1:1").finish().failed(4)
    start("ask", card, QUESTION, "--mode", "cloud", "--worker", "localhost:1").finish().failed(4)
    start("cloud", "--insecure", "--listen", black_hole.address).finish().failed(2)
    start("edge", "--insecure", "--listen", black_hole.address).finish().failed(2)


def test_a_worker_with_an_open_session(start: Start, run: Run, card: Path) -> None:
    worker = start("cloud", "--insecure", "--listen", "127.0.0.1:0", "--threads", "1", "--drain", "0.2")

    async def opened(client: WorkerClient) -> None:
        worker.signal(signal.SIGTERM)

    with pytest.raises(WorkerUnavailable, match="stopped"):
        asyncio.run(hold(worker.address(), opened))
    ran = worker.finish()
    assert ran.code == 0
    assert "Traceback" not in ran.err


@SIGNALS
def test_a_worker_that_starts(start: Start, number: int) -> None:
    """While torch is imported and the model loaded: at once, whatever the main thread is at."""
    worker = start("cloud", "--insecure", "--listen", "127.0.0.1:0", "--threads", "1")
    while not any("torch" in one.path for one in worker.mapped()):
        time.sleep(0.02)
    worker.signal(number)
    ran = worker.finish()
    assert (ran.code, ran.out, ran.err) == (130, "", "cutline: interrupted\n")


def test_a_second_signal_ends_a_worker_that_drains(start: Start) -> None:
    """Its session would have ten minutes; it hears that the worker is gone."""
    worker = start("cloud", "--insecure", "--listen", "127.0.0.1:0", "--threads", "1", "--drain", "600")

    async def opened(client: WorkerClient) -> None:
        worker.signal(signal.SIGTERM)
        while not (await client.describe()).draining:
            pass
        worker.signal(signal.SIGTERM)

    with pytest.raises(WorkerUnavailable):
        asyncio.run(hold(worker.address(), opened))
    ran = worker.finish()
    assert ran.code == -signal.SIGTERM
    assert "Traceback" not in ran.err


@SIGNALS
def test_an_agent_with_an_open_request(start: Start, card: Path, black_hole: BlackHole, number: int) -> None:
    agent = start("edge", "--insecure", "--listen", "127.0.0.1:0", "--worker", black_hole.address, "--threads", "1")
    url = f"http://{agent.address()}/v1/chat/completions"
    body = ChatRequest.asking(Request.about(card.read_bytes(), QUESTION, mode=Mode.CLOUD))

    def ask() -> None:
        try:
            httpx.post(url, content=msgspec.json.encode(body), timeout=60, trust_env=False)
        except httpx.TransportError:
            return

    asking = threading.Thread(target=ask)
    asking.start()
    black_hole.wait()
    agent.signal(number)
    ran = agent.finish()
    asking.join()
    assert ran.code == 0
    assert "Traceback" not in ran.err


@SIGNALS
def test_a_command_takes_the_processes_it_started_along(start: Start, bundle: Path, number: int) -> None:
    calibrate = start("calibrate", "--bundle", bundle, "--cards", "300", "--threads", "1")
    before = (bundle / "manifest.json").read_bytes()
    children: list[psutil.Process] = []
    while not children:  # the worker that it starts
        time.sleep(0.02)
        assert calibrate.running
        children = calibrate.children()
    calibrate.signal(number)
    ran = calibrate.finish()
    assert ran.code == 130
    assert ran.err.rstrip().endswith("cutline: interrupted")
    assert "Traceback" not in ran.err
    assert (bundle / "manifest.json").read_bytes() == before


def test_bad_agents_do_not_disturb_a_worker(run: Run, start: Start, card: Path, worker: str) -> None:
    """Agents that leave in the middle, speak nonsense or hang: the others are served."""
    host, _, port = worker.rpartition(":")
    with socket.create_connection((host, int(port))) as hanging, socket.create_connection((host, int(port))) as other:
        other.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(range(256)) * 100)
        hanging.sendall(b"PRI * HTTP/2.0\r\n\r\n")
        leaving = start("ask", card, QUESTION, "--mode", "draft", "--worker", worker)
        time.sleep(0.3)
        leaving.signal(signal.SIGKILL)
        leaving.finish()
        answers = [
            json.loads(run("ask", card, QUESTION, "--mode", mode, "--worker", worker, "--json").out)["text"]
            for mode in ("cloud", "draft", "cloud")
        ]
    assert len(set(answers)) == 1


def test_nothing_is_left_of_a_command_that_was_killed(start: Start, tmp_path: Path) -> None:
    """Its worker is a process of its own, and would otherwise go on with nobody to end it."""
    demo = start("demo", "--images", "1", "--report", tmp_path / "demo.html")
    try:
        (worker,) = wait_for_children(demo)
        demo.signal(signal.SIGKILL)
        demo.wait()
        worker.wait(60)
    finally:
        for child in demo.children() if demo.running else []:
            child.kill()


def wait_for_children(process: Any) -> list[psutil.Process]:
    """What it has started, once it has started something. The test's own limit ends the wait."""
    while not (found := process.children()):
        assert process.running
        time.sleep(0.05)
    return list(found)


def test_a_fault_in_reading_settings_again_leaves_the_end_to_be_heard(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> None:
        raise ZeroDivisionError

    reading, writing = os.pipe()
    signals = Signals()
    signals._reading = reading
    signals.reread_by(fails)
    os.write(writing, bytes([signal.SIGHUP, signal.SIGTERM]))
    assert signals._next() == signal.SIGTERM
    assert "SIGHUP changed nothing" in caplog.text
    os.close(reading)
    os.close(writing)
