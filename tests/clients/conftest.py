"""Agents that other people's programs ask, each with a worker, and what its target alone would have answered."""

from __future__ import annotations

import asyncio
import base64
import shutil
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import msgspec
import pytest

from cutline.cloud.worker import Worker
from cutline.core.request import Mode, Request
from cutline.core.sampling import Sampling
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.reference import Reference
from cutline.demo.requests import CardRequest, requests
from cutline.edge.agent import Agent
from cutline.edge.api.server import ServerOptions, serve
from cutline.edge.generation.events import Event
from cutline.edge.generation.result import Answer
from cutline.edge.offload.status import AgentState
from cutline.models.bundle import Bundle, replace_calibration

Shared = Callable[[str, Callable[[Path], object]], Path]

LONGEST = 200  # tokens of any answer here


class Listening:
    """An agent that keeps what it is asked."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.manifest = agent.manifest
        self.offline = False
        self.asked: list[Request] = []

    async def answer(self, question: Request) -> Answer:
        self.asked.append(question)
        return await self.agent.answer(question)

    async def stream(self, question: Request) -> AsyncGenerator[Event]:
        self.asked.append(question)
        async for event in self.agent.stream(question):
            yield event

    def state(self) -> AgentState:
        return self.agent.state()


class Served:
    """An agent over HTTP at `url`, in a thread; `asked` are its questions, in order."""

    def __init__(self, drafter: Bundle, target: Bundle, worker: str) -> None:
        self._drafter, self._target, self._worker = drafter, target, worker
        self._loop, self._ready = asyncio.new_event_loop(), threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        self._ready.wait(60)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
        assert not self._thread.is_alive(), f"it goes on: {asyncio.all_tasks(self._loop)}"
        self._loop.close()

    @property
    def asked(self) -> list[Request]:
        return self._listening.asked

    @property
    def model(self) -> str:
        return self._drafter.manifest.name

    def target_says(self) -> str:
        """What the target says to the last question: transformers' own unsplit one, where that takes the question."""
        asked = self.asked[-1]
        if asked.sampling == Sampling() and asked.tools is None:
            return self._reference.text(self._reference.converse(asked.messages, asked.images, max_tokens=LONGEST))
        alone = msgspec.structs.replace(asked, mode=Mode.CLOUD, request_id="")
        answer = asyncio.run_coroutine_threadsafe(self._listening.agent.answer(alone), self._loop).result(60)
        assert answer.exact
        return answer.text

    @cached_property
    def _reference(self) -> Reference:
        return Reference(self._target)

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        async with Agent(self._drafter, worker=self._worker, threads=1) as agent:
            self._listening = Listening(agent)
            await serve(self._listening, ServerOptions(listen="127.0.0.1:0"), announce=self._listens, stop=self._stop)

    def _listens(self, address: str) -> None:
        self.url = f"http://{address}"
        self._ready.set()


@contextmanager
def served(drafter: Bundle, target: Bundle) -> Iterator[Served]:
    with Worker(target) as worker:
        made = Served(drafter, target, worker.address)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(scope="package")  # its thread is none of other tests' business
def agent(shared: Shared) -> Iterator[Served]:
    """The demo's pair; its drafter is not calibrated, so every answer that is asked for as usual is the target's."""

    def fill(folder: Path) -> None:
        shutil.copytree(DRAFTER, folder / "drafter")
        plain = Bundle.open(folder / "drafter").manifest
        replace_calibration(folder / "drafter", msgspec.structs.replace(plain, calibration=None))

    with served(Bundle.open(shared("uncalibrated", fill) / "drafter"), Bundle.open(TARGET)) as made:
        yield made


@pytest.fixture(scope="package")
def tooled(tools_folder: Path) -> Iterator[Served]:
    """A pair whose template has tools; its weights are seeded, so it says nothing that means anything."""
    with served(Bundle.open(tools_folder / "drafter"), Bundle.open(tools_folder / "target")) as made:
        yield made


@pytest.fixture(scope="session")
def cards() -> tuple[CardRequest, CardRequest]:
    """Two pictures, each with a question."""
    one, *_, two = requests(Split.EVALUATION, 2, seed=5)
    return one, two


def data_url(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the person's own accounts, nor of their proxies, has a part in this."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OLLAMA_HOST", "LANGSMITH_TRACING", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
