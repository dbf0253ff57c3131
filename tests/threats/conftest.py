from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cutline.cli.process.children import worker_process
from cutline.core.conversation import question
from cutline.demo.bundles import TARGET
from cutline.demo.cards import Split
from cutline.demo.reference import Reference
from cutline.demo.requests import requests
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.prompt import PromptBuilder
from cutline.protos.channel.credentials import NO_KEYS, AgentKeys
from cutline.protos.client import WorkerClient
from cutline.protos.messages import Confirmed, Open, image_chunks

SECONDS = 30  # that any one session may take
MAX_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Honest:
    """A good question, as an agent asks it: its `opening` and `image`, and the `answer` of transformers' `generate`."""

    opening: Open
    image: bytes
    answer: tuple[int, ...]

    async def asked(self, client: WorkerClient) -> tuple[int, ...]:
        """What a worker answers."""
        tokens: list[int] = []
        async with client.session(self.opening, image_chunks(self.image), timeout=SECONDS) as session:
            async for event in session.events():
                tokens += event.tokens if isinstance(event, Confirmed) else ()
        return tuple(tokens)


@dataclass(frozen=True, slots=True)
class Victim:
    """A worker in a process of its own, who serves whoever asks."""

    address: str
    process: psutil.Process

    @property
    def peak(self) -> int:
        """The most bytes of memory that it ever had."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) << 10


Meanwhile = Callable[..., AbstractAsyncContextManager[None]]


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """The demo's target."""
    return Bundle.open(TARGET)


@pytest.fixture(scope="session")
def honest(bundle: Bundle) -> Honest:
    one = next(requests(Split.CALIBRATION, 1, seed=4))
    grid = bundle.manifest.family.preprocess(decode_image(one.image)).grid
    prompt = PromptBuilder.open(bundle).build([question(one.question.text)], [grid]).ids
    opening = Open(
        model=bundle.manifest.identity, tokens=prompt, prompt_length=len(prompt), max_tokens=MAX_TOKENS, images=1
    )
    return Honest(opening, one.image, Reference(bundle).answer(one.image, one.question.text, max_tokens=MAX_TOKENS))


@pytest.fixture(scope="session")
def victim() -> Iterator[Victim]:
    before = {child.pid for child in psutil.Process().children()}
    with worker_process(TARGET) as address:
        (process,) = (child for child in psutil.Process().children() if child.pid not in before)
        yield Victim(address, process)
        assert process.is_running()


@pytest.fixture(scope="session")
def meanwhile(honest: Honest) -> Meanwhile:
    """While the body runs, an honest agent asks the worker at an address again and again, and is answered rightly."""

    @contextlib.asynccontextmanager
    async def run(address: str, keys: AgentKeys = NO_KEYS) -> AsyncIterator[None]:
        over, answered = asyncio.Event(), asyncio.Event()

        async def ask() -> None:
            async with WorkerClient(address, keys) as client:
                while not over.is_set():
                    assert await honest.asked(client) == honest.answer
                    answered.set()

        asking = asyncio.create_task(ask())
        try:
            async with asyncio.timeout(2 * SECONDS):
                yield
                answered.clear()  # one that was begun in the attack's last moment counts, none from before
                await asyncio.wait([asking, asyncio.create_task(answered.wait())], return_when="FIRST_COMPLETED")
        finally:
            over.set()
            await asking

    return run
