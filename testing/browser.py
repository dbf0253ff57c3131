"""The agent's page in a headless browser, with a real agent and worker and an emulated link between them."""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import uvicorn
from selenium import webdriver

from cutline.cli.process.children import worker_process
from cutline.core.request import Request
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.devices.emulator import LinkEmulator
from cutline.devices.link import LinkProfile
from cutline.edge.agent import Agent
from cutline.edge.api.app import application
from cutline.edge.generation.events import Event, Planned
from cutline.models.bundle import Bundle
from cutline.protos.channel.address import parse_address

WIDE = (1280, 900)
START_SECONDS = 60


def browser(*flags: str) -> webdriver.Chrome:
    """A headless Chromium with a fake camera, and further `flags`, given without their dashes."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    # Its sandbox needs rights that a container lacks, and /dev/shm may be small there. A page that was left must not
    # live on in a cache, where it would still be listening to an answer.
    usual = ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-features=BackForwardCache", "lang=en")
    camera = ("use-fake-device-for-media-stream", "use-fake-ui-for-media-stream")
    for flag in (*usual, *camera, "hide-scrollbars", "disable-background-networking", *flags):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def resize(driver: webdriver.Chrome, size: tuple[int, int], **media: str) -> None:
    """Emulate a screen of this size; `media` are features such as prefers_color_scheme."""
    width, height = size
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


class TimedAgent(Agent):
    """An agent that notes how long after each question its first words came, guesses included.

    `heed` sees every event just before it is told.
    """

    def __init__(self, worker: str) -> None:
        super().__init__(Bundle.open(DRAFTER), worker=worker, threads=1)
        self.first_seconds: list[float] = []
        self.heed: Callable[[Event], object] = lambda event: None

    async def stream(self, question: Request) -> AsyncGenerator[Event]:
        began, waiting = perf_counter(), True
        async for event in super().stream(question):
            if waiting and not isinstance(event, Planned):
                self.first_seconds.append(perf_counter() - began)
                waiting = False
            self.heed(event)
            yield event


@dataclass(slots=True)
class Served:
    """An agent of the demo's drafter behind its page at `address`, and the link to its worker."""

    address: str
    agent: TimedAgent
    link: LinkEmulator
    loop: asyncio.AbstractEventLoop

    def cut(self) -> None:
        """Take the link down."""
        self.loop.call_soon_threadsafe(self.link.cut)

    def restore(self) -> None:
        """Bring the link up again."""
        self.loop.call_soon_threadsafe(self.link.restore)


@dataclass(slots=True)
class _Serving:
    """A thread that serves until it is stopped."""

    profile: LinkProfile
    worker: str
    ready: threading.Event = field(default_factory=threading.Event)
    served: Served | None = None
    server: uvicorn.Server | None = None

    async def run(self) -> None:
        host, port = parse_address(self.worker)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
            async with LinkEmulator(self.profile, target=(host, port)) as link:
                agent = TimedAgent(link.address)
                config = uvicorn.Config(
                    application(agent), log_level="warning", lifespan="off", timeout_graceful_shutdown=1
                )
                self.server = uvicorn.Server(config)
                self.served = Served(address, agent, link, asyncio.get_running_loop())
                async with agent:
                    self.ready.set()
                    await self.server.serve([listening])
                    await asyncio.sleep(0.05)  # for connections to be closed that were told to


@contextmanager
def served(profile: LinkProfile) -> Iterator[Served]:
    """An agent in a thread of this process, a worker in another process, and this link between them."""
    with worker_process(TARGET) as worker:
        serving = _Serving(profile, worker)
        thread = threading.Thread(target=lambda: asyncio.run(serving.run()))
        thread.start()
        try:
            assert serving.ready.wait(START_SECONDS)
            assert serving.served is not None
            yield serving.served
        finally:
            if serving.server is not None:
                serving.server.should_exit = True
            thread.join()
