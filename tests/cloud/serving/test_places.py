"""A session has its place on every worker of a chain from its opening on, before the first rows come there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cutline.cloud.engine.sessions.session import Forward
from cutline.cloud.serving.limits import ServingLimits
from cutline.cloud.serving.pipeline import Onward
from cutline.cloud.serving.servicer import WorkerServicer
from cutline.cloud.telemetry.observer import Observer
from cutline.errors import WorkerUnavailable
from cutline.models.bundle import Bundle
from cutline.protos.client import WorkerClient
from tests.cloud.serving.test_pipeline import SECONDS, Case, free, on_chain

CUTS = ("decoder.1", "decoder.3")


class Open(Observer):
    """Counts the streams of sessions that are open on all workers that have it."""

    def __init__(self) -> None:
        self.count = 0
        self.most = 0
        self._changed = asyncio.Event()

    def talking(self, change: int) -> None:
        self.count += change
        self.most = max(self.most, self.count)
        self._changed.set()

    async def reach(self, count: int) -> None:
        async with asyncio.timeout(SECONDS):
            while self.count != count:
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """No rows go on to a next worker before this is set."""
    go, forward = asyncio.Event(), Onward.forward

    async def later(onward: Onward, piece: Forward) -> None:
        await go.wait()
        await forward(onward, piece)

    monkeypatch.setattr(Onward, "forward", later)
    return go


def test_the_whole_chain_counts_a_session_whose_rows_are_computed(
    bundle: Bundle, asking: Any, case: Case, held: asyncio.Event
) -> None:
    seen = Open()

    async def run(clients: list[WorkerClient]) -> None:
        one = asking(case, "image")
        answer = asyncio.create_task(one.ask(clients[0]))
        await seen.reach(3)
        held.set()
        await answer
        assert tuple(one.tokens) == case[2]
        await seen.reach(0)

    on_chain(bundle, CUTS, run, observer=seen)


def test_an_agent_that_leaves_meanwhile_leaves_every_worker(
    bundle: Bundle, asking: Any, case: Case, held: asyncio.Event
) -> None:
    seen = Open()

    async def run(clients: list[WorkerClient]) -> None:
        answer = asyncio.create_task(asking(case, "image").ask(clients[0]))
        await seen.reach(3)
        answer.cancel()
        await seen.reach(0)
        await free(clients)

    on_chain(bundle, CUTS, run, observer=seen)


def test_who_only_connects_takes_no_place_further_along(bundle: Bundle, asking: Any, case: Case) -> None:
    seen = Open()

    async def run(clients: list[WorkerClient]) -> None:
        async with clients[0].place(timeout=SECONDS):
            await seen.reach(1)
            await asking(case, "image").ask(clients[0])
            await seen.reach(1)
        assert seen.most == 4

    on_chain(bundle, CUTS, run, observer=seen)


def test_a_last_worker_that_drains_waits_for_rows_to_come(
    bundle: Bundle, asking: Any, case: Case, held: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, workers = Open(), list[WorkerServicer]()
    made = WorkerServicer.__init__

    def noted(worker: WorkerServicer, *given: Any, **options: Any) -> None:
        workers.append(worker)
        made(worker, *given, **options)

    monkeypatch.setattr(WorkerServicer, "__init__", noted)

    async def run(clients: list[WorkerClient]) -> None:
        one = asking(case, "image")
        answer = asyncio.create_task(one.ask(clients[0]))
        await seen.reach(3)
        last = workers[0]  # chains are built from their end
        draining = asyncio.create_task(last.drain(SECONDS))
        await asyncio.wait([draining], timeout=0.2)
        assert not draining.done()
        with pytest.raises(WorkerUnavailable, match="draining"):
            await asking(case, "decoder.3").ask(clients[-1])
        held.set()
        await answer
        assert tuple(one.tokens) == case[2]
        await draining

    on_chain(bundle, CUTS, run, observer=seen)


def test_rows_that_take_longer_than_a_worker_waits_find_their_place(
    bundle: Bundle, asking: Any, case: Case, held: asyncio.Event
) -> None:
    """The place is taken anew before the next worker gives it up; each waits for an opening a while only."""

    async def run(clients: list[WorkerClient]) -> None:
        one = asking(case, "image")
        answer = asyncio.create_task(one.ask(clients[0]))
        await asyncio.wait([answer], timeout=2.5)
        held.set()
        await answer
        assert tuple(one.tokens) == case[2]

    on_chain(bundle, ("decoder.2",), run, limits=ServingLimits(place_seconds=0.2, opening_seconds=2.0))
