"""In which turns bodies are taken apart: what is large leaves most of the loop's time to those that are answered."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import httpx
import msgspec
import pytest

from cutline.edge.api.access.limits import HttpLimits
from cutline.edge.api.requests import body
from cutline.edge.api.requests.body import SHARE, Turns
from cutline.edge.api.requests.scanner import Scanner
from cutline.testing.agent import ScriptedAgent, spoken
from cutline.testing.raw_http import BODY, PATH

Serving = Callable[..., AbstractAsyncContextManager[str]]

PIECE_SECONDS = 0.002


class SlowScanner(Scanner):
    """One that takes its time, on a clock that nothing else moves; and that counts those that are at it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pauses: list[float] = []
        self.at_it = self.most = 0

    def take(self, piece: bytes) -> None:
        self.at_it += 1
        self.most = max(self.most, self.at_it)
        self.now += PIECE_SECONDS

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)
        self.at_it -= 1


def paused(*, others: bool, large: bool) -> SlowScanner:
    scanner = SlowScanner()

    async def run() -> None:
        turns = Turns(lambda: others, clock=lambda: scanner.now, sleep=scanner.pause)
        await asyncio.gather(*(turns.take(scanner, b"x", large=large) for _ in range(20)))

    asyncio.run(run())
    return scanner


@pytest.mark.threat("floods")
def test_all_large_ones_together_have_their_share_while_others_are_answered() -> None:
    scanner = paused(others=True, large=True)
    assert scanner.most == 1, "they take turns"
    assert scanner.now / (scanner.now + sum(scanner.pauses)) == pytest.approx(SHARE)


@pytest.mark.parametrize(("others", "large"), [(False, True), (True, False)], ids=["alone", "small"])
def test_nobody_waits_for_nobody_nor_for_what_is_small(others: bool, large: bool) -> None:
    assert set(paused(others=others, large=large).pauses) == {0.0}


@pytest.mark.threat("floods")
def test_the_others_are_those_in_work(agent: ScriptedAgent, serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    agent.enqueue(spoken("7"))
    agent.enqueue(math.inf)
    agent.always = [spoken("8")]
    told = list[tuple[bool, bool]]()

    class Told(Turns):
        async def take(self, scanner: Scanner, piece: bytes, *, large: bool) -> None:
            told.append((large, self._others()))
            await super().take(scanner, piece, large=large)

    monkeypatch.setattr(body, "Turns", Told)
    content = msgspec.json.decode(BODY)
    words = {**content, "metadata": {"x": "y" * 200}}

    async def run() -> None:
        small = HttpLimits(small_body=100)
        async with serving(http=small) as url, httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
            await client.post(PATH, json=words)
            first = asyncio.create_task(client.post(PATH, json=words))
            while len(agent.asked) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert (await client.post(PATH, json=words)).status_code == 200
            first.cancel()

    asyncio.run(run())
    assert [others for large, others in told if large] == [False, False, True]
