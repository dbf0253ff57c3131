from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvicorn
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from cutline.core.request import Mode, Request
from cutline.demo.bundles import DRAFTER
from cutline.edge.api.app import application
from cutline.edge.generation.events import Event
from cutline.edge.generation.result import Answer, Energy, Provenance, Token
from cutline.edge.offload.status import AgentState, Breaker, WorkerState
from cutline.errors import CutlineError
from cutline.models.bundle import Bundle
from cutline.testing.browser import WIDE, browser, resize

SECONDS = 90  # that the page may take to show what it was told
WORKER = "10.0.0.2:50051"
PHONE = (360, 740)


def spoken(text: str, source: Provenance) -> tuple[Token, ...]:
    """Tokens of a text, one a word."""
    words = text.split(" ")
    return tuple(Token(i, word if i == 0 else f" {word}", source) for i, word in enumerate(words))


def answered(tokens: Sequence[Token], **changes: Any) -> Answer:
    """An answer of these tokens."""
    usual: dict[str, Any] = {
        "text": "".join(token.text for token in tokens).strip(),
        "tokens": list(tokens),
        "mode": Mode.DRAFT,
        "latency_ms": 84.3,
        "ttft_ms": 31.0,
        "bytes_up": 8839,
        "bytes_down": 412,
        "rounds": 2,
        "drafted": 9,
        "accepted": 7,
        "exact": True,
        "worker": WORKER,
        "cut": "image",
        "wire": None,
        "confidence": None,
        "complete": True,
        "energy": Energy(joules=0.42, estimated=True),
        "parts_ms": {"prepare": 3.1, "drafter": 12.0, "upload": 22.0, "round trips": 31.2, "decode": 16.0},
    }
    return Answer(**usual | changes)


class Scripted:
    """An agent that says what a test tells it to, when it is told."""

    def __init__(self) -> None:
        self.manifest = Bundle.open(DRAFTER).manifest
        self.asked: list[Request] = []
        self.offline = False
        self.plans = False
        self.upstream: str | None = None
        self.closed = threading.Event()  # whoever asked last has gone
        self.workers: tuple[WorkerState, ...] = (
            WorkerState(address=WORKER, connected=True, rtt_ms=62.0, uplink_mbps=12.3),
        )
        self._loop = asyncio.new_event_loop()
        self._told: asyncio.Queue[Event | CutlineError] = asyncio.Queue()

    def tell(self, *told: Event | CutlineError) -> None:
        """What the answer in the making does next; an Answer or an error ends it."""
        for one in told:
            self._loop.call_soon_threadsafe(self._told.put_nowait, one)

    async def answer(self, question: Request) -> Answer:
        raise NotImplementedError  # the page streams

    async def stream(self, question: Request) -> AsyncGenerator[Event]:
        self.asked.append(question)
        self.closed.clear()
        try:
            while True:
                told = await self._told.get()
                if isinstance(told, CutlineError):
                    raise told
                yield told
                if isinstance(told, Answer):
                    return
        finally:
            self.closed.set()

    def state(self) -> AgentState:
        modes = (Mode.AUTO, Mode.EDGE) if self.offline else (Mode.AUTO, Mode.EDGE, Mode.DRAFT, Mode.CLOUD)
        return AgentState(
            ready=True,
            offline=self.offline,
            modes=modes,
            drafter="drafter",
            target="target",
            plans=self.plans,
            upstream=self.upstream,
            workers=self.workers,
        )

    def lose(self) -> None:
        """No worker answers any more."""
        lost = (msgspec.structs.replace(one, breaker=Breaker.OPEN, retry_seconds=3.2) for one in self.workers)
        self.workers = tuple(lost)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Serve its application; gives the address."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            config = uvicorn.Config(application(self), log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
            server = uvicorn.Server(config)
            thread = threading.Thread(target=self._loop.run_until_complete, args=(_serve(server, listening),))
            thread.start()
            try:
                yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
            finally:
                server.should_exit = True
                thread.join()
                self._loop.close()


async def _serve(server: uvicorn.Server, listening: socket.socket) -> None:
    await server.serve([listening])
    await asyncio.sleep(0.05)  # for connections to be closed that were told to


class Page:
    """The page in a browser, as a person meets it."""

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver = driver
        self.address = address
        self.forgiven: tuple[str, ...] = ()  # parts of console messages that a test expects

    def open(self, size: tuple[int, int] = WIDE, **media: str) -> None:
        """Load the page afresh, on a screen of this size; `media` are features such as prefers_color_scheme."""
        resize(self.driver, size, **media)
        self.driver.get(self.address)
        self.until(lambda: self.one("#now").get_attribute("data-state") != "unknown")

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def run(self, script: str, *arguments: object) -> Any:
        """What a script returns; it may await."""
        wrapped = f"(async () => {{ {script} }})().then([...arguments].at(-1), (e) => [...arguments].at(-1)(String(e)))"
        return self.driver.execute_async_script(wrapped, *arguments)

    def until(self, holds: Callable[[], object]) -> None:
        """Wait until something holds."""
        WebDriverWait(self.driver, SECONDS, 0.02).until(lambda _: holds())

    def shows(self, selector: str, text: str) -> None:
        """Wait until the last element of this kind has a text in it."""
        try:
            self.until(lambda: text in self.text(selector))
        except Exception:
            raise AssertionError(f"{selector} shows {self.text(selector)!r}, never {text!r}") from None

    def text(self, selector: str) -> str:
        """The text of the last element of this kind, shown or not."""
        found = self.run("return [...document.querySelectorAll(arguments[0])].at(-1)?.textContent ?? ''", selector)
        return str(found)

    def ask(self, text: str, picture: Path | None = None) -> None:
        """Ask as a person does: choose the picture, write, press Enter."""
        if picture is not None:
            self.one("#files").send_keys(str(picture))
            self.until(lambda: self.all("#pictures img"))
        self.one("#question").send_keys(text + Keys.ENTER)
        self.until(lambda: self.one("#stop").is_displayed() or self.all(".answer[data-over]"))

    def over(self) -> None:
        """Wait for the end of the answer."""
        self.until(lambda: self.all(".answer[data-over]") and not self.all(".answer[aria-busy]"))

    def focus(self) -> str:
        """What has the focus, by its id or its name."""
        return str(
            self.run("const e = document.activeElement; return e.id || e.value || e.ariaLabel || e.textContent.trim()")
        )

    def faults(self) -> list[str]:
        """What the console complained of, and addresses outside the agent that were asked for anything."""
        said = [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]
        found = [one for one in said if not any(part in one for part in self.forgiven)]
        for entry in self.driver.get_log("performance"):  # type: ignore[no-untyped-call]
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                if not url.startswith((self.address, "data:", "blob:")):
                    found.append(f"asked {url}")
        return found


@pytest.fixture(scope="session")
def chromium() -> Iterator[webdriver.Chrome]:
    """The browser that all tests of the page share."""
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        reason = "no chromium with chromedriver; scripts/browser.sh installs them"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    driver = browser()
    driver.set_script_timeout(SECONDS)
    yield driver
    driver.quit()


@pytest.fixture
def agent() -> Scripted:
    return Scripted()


@pytest.fixture
def page(chromium: webdriver.Chrome, agent: Scripted) -> Iterator[Page]:
    """The page of `agent`; fails where anything was asked for outside it, or the console complained."""
    with agent.serving() as address:
        chromium.get("about:blank")
        page = Page(chromium, address)
        page.faults()  # of tests before
        page.open()
        yield page
        faults = page.faults()
        chromium.get("about:blank")  # which ends its requests, so that the agent can stop
    assert faults == []


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "card.png"
    path.write_bytes(png("teal"))
    return path


def png(colour: str) -> bytes:
    out = BytesIO()
    Image.new("RGB", (64, 48), colour).save(out, "PNG")
    return out.getvalue()
