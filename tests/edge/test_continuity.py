"""Real workers behind links that are cut, reset, half-open and slow: the answer is that of a run without any of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import psutil
import pytest

from cutline.cli.process.children import worker_process
from cutline.cloud.serving.limits import SERVING_LIMITS
from cutline.cloud.worker import Worker
from cutline.core.request import Mode, Request
from cutline.core.sampling import Sampling
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.reference import Reference
from cutline.demo.requests import requests
from cutline.devices.emulator import LinkEmulator
from cutline.devices.link import LinkProfile, load_link
from cutline.edge.agent import Agent
from cutline.edge.generation.events import Corrected, Event, Settled
from cutline.edge.generation.result import Answer, Lost, Provenance, Tail
from cutline.edge.offload.worker_pool import Workers
from cutline.models.bundle import Bundle
from cutline.protos.client import BEAT_BYTES, WorkerClient
from cutline.testing.worker import NEVER, gated

DEVICE, BUNDLE = Bundle.open(TARGET, "device"), gated(Bundle.open(DRAFTER), NEVER)
ASKED = next(one for one in requests(Split.EVALUATION, 2, seed=11) if one.question.kind == "describe")
NOTICE = 0.6
Whole = Callable[[Mode, dict[str, Any]], Awaitable[tuple[int, ...]]]
QUICK = LinkProfile(
    name="quick",
    rtt_ms=4.0,
    uplink_mbps=100.0,
    downlink_mbps=100.0,
    source="measured",
    reference="made for tests",
)


@pytest.fixture(scope="module")
def workers() -> Iterator[tuple[str, str]]:
    bundle = Bundle.open(TARGET)
    with Worker(bundle) as first, Worker(bundle) as second:
        yield first.address, second.address


@pytest.fixture(scope="module")
def truth() -> tuple[int, ...]:
    return Reference(Bundle.open(TARGET)).answer(ASKED.image, ASKED.question.text)


def asking(mode: Mode, **options: Any) -> Request:
    return Request.about(ASKED.image, ASKED.question.text, mode=mode, **options)


def ids(answer: Answer) -> tuple[int, ...]:
    return tuple(token.id for token in answer.tokens)


def behind(worker: str, profile: LinkProfile = QUICK) -> LinkEmulator:
    host, port = worker.rsplit(":", 1)
    return LinkEmulator(profile, target=(host, int(port)))


class HalfOpen:
    """A proxy that from a moment on takes what is sent to it and passes on nothing, without a word."""

    def __init__(self, worker: str) -> None:
        self._target = worker.rsplit(":", 1)
        self._deaf = False
        self._tasks = set[asyncio.Task[None]]()

    async def __aenter__(self) -> HalfOpen:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1")
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        self._deaf = True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._target[0], int(self._target[1]))
        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._pass(source, sink))
            self._tasks.add(task)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            try:
                while data := await source.read(65536):
                    if not self._deaf:
                        sink.write(data)
            finally:
                sink.close()


async def answered(agent: Agent, asked: Request, at: int, strike: Callable[[], object]) -> tuple[Answer, list[Event]]:
    """An answer, and its events; something strikes once so many tokens are settled."""
    events, told = list[Event](), 0
    async with asyncio.timeout(60):
        async for event in agent.stream(asked):
            events.append(event)
            if isinstance(event, Settled) and told < at:
                told = event.position + len(event.tokens)
                if told >= at:
                    strike()
    answer = events.pop()
    assert isinstance(answer, Answer)
    settled = [token for event in events if isinstance(event, Settled) for token in event.tokens]
    if not any(isinstance(event, Corrected) for event in events):
        assert [token.id for token in settled] == list(ids(answer))
    assert tuple(event for event in events if isinstance(event, Lost)) == answer.lost
    return answer, events


@pytest.fixture(scope="module")
def whole(workers: tuple[str, str], truth: tuple[int, ...]) -> Whole:
    """The answer that no link breaks, by the way of asking, made once."""
    found: dict[str, tuple[int, ...]] = {}

    async def answer(mode: Mode, options: dict[str, Any]) -> tuple[int, ...]:
        if (name := f"{mode}{options}") not in found:
            async with Agent(BUNDLE, worker=workers[1], threads=1, target=DEVICE) as calm:
                found[name] = ids(await calm.answer(asking(mode, **options)))
            assert found[name] == truth or "sampling" in options
        return found[name]

    return answer


WAYS = [
    (Mode.CLOUD, {}),
    (Mode.DRAFT, {}),
    (Mode.AUTO, {}),
    (Mode.DRAFT, {"effort": 0.0}),
    (Mode.DRAFT, {"cut": "vision.1"}),
    (Mode.SPLIT, {"cut": "decoder.2"}),
    (Mode.DRAFT, {"cut": "decoder.2"}),
    (Mode.DRAFT, {"sampling": Sampling(temperature=0.8, seed=3)}),
]


@pytest.mark.parametrize(("mode", "options"), WAYS, ids=str)
@pytest.mark.parametrize("kind", ["cut", "reset", "half-open"])
def test_a_link_that_dies_anywhere_changes_no_token(
    kind: str, mode: Mode, options: dict[str, Any], workers: tuple[str, str], whole: Whole
) -> None:
    rng = random.Random(f"{kind}{mode}{options}")  # noqa: S311

    async def run() -> None:
        asked, calm = asking(mode, **options), await whole(mode, options)
        for at in rng.sample(range(1, len(calm) - 1), 2):
            proxy = HalfOpen(workers[0]) if kind == "half-open" else behind(workers[0])
            async with (
                proxy as link,
                Agent(BUNDLE, worker=[link.address, workers[1]], threads=1, target=DEVICE, notice=NOTICE) as agent,
            ):
                answer, events = await answered(
                    agent, asked, at, link.reset if isinstance(link, LinkEmulator) and kind == "reset" else link.cut
                )
            assert ids(answer) == calm
            assert answer.exact
            assert answer.alone_from is None
            if answer.lost:  # all may have come already
                assert [lost.next for lost in answer.lost] == [workers[1]]
                assert answer.lost[0].silent_ms < 5 * NOTICE * 1e3
                before = events[: events.index(answer.lost[0])]
                if sum(len(event.tokens) for event in before if isinstance(event, Settled)) >= at:
                    assert answer.lost[0].position >= at  # a worker that has no core for a while is lost before

    asyncio.run(run())


@asynccontextmanager
async def slowly(worker: str) -> AsyncIterator[str]:
    """A link on which a boundary of 32 KB takes far longer than the notice."""
    profile = msgspec.structs.replace(QUICK, rtt_ms=60.0, uplink_mbps=0.2)
    async with behind(worker, profile) as link:
        yield link.address


def test_a_slow_upload_is_no_death(workers: tuple[str, str], truth: tuple[int, ...]) -> None:
    async def run() -> None:
        async with (
            slowly(workers[0]) as address,
            Agent(BUNDLE, worker=address, threads=1, target=DEVICE, notice=NOTICE) as agent,
        ):
            answer = await agent.answer(asking(Mode.SPLIT, cut="vision.2"))
            assert (ids(answer), answer.lost) == (truth, ())
            assert answer.parts_ms["upload"] > 1.5 * NOTICE * 1e3
            (state,) = agent.workers.states
            assert state.uplink_mbps == pytest.approx(0.2, rel=0.25), "and by now it is known how fast the link is"

    asyncio.run(run())


def test_3g_is_slow_and_alive(workers: tuple[str, str], truth: tuple[int, ...]) -> None:
    async def run() -> None:
        async with (
            behind(workers[0], load_link("3g")) as link,
            Agent(BUNDLE, worker=link.address, threads=1, target=DEVICE, notice=1.2) as agent,
        ):
            for asked in (asking(Mode.DRAFT), asking(Mode.SPLIT, cut="vision.1")):
                answer = await agent.answer(asked)
                assert (ids(answer), answer.lost, answer.exact) == (truth, (), True)

    asyncio.run(run())


def test_a_worker_that_freezes_is_noticed(truth: tuple[int, ...], workers: tuple[str, str]) -> None:
    before = {child.pid for child in psutil.Process().children()}
    with worker_process(TARGET) as frozen:
        (process,) = [child for child in psutil.Process().children() if child.pid not in before]

        async def run() -> None:
            asked = asking(Mode.DRAFT, effort=0.0)
            known = Workers([frozen, workers[1]], clock=lambda: 0.0)  # by which nobody is left alone for long enough
            async with Agent(BUNDLE, worker=known, threads=1, notice=NOTICE) as agent:
                answer, _ = await answered(agent, asked, 2, lambda: os.kill(process.pid, signal.SIGSTOP))
                assert ids(answer) == truth
                (lost,) = answer.lost
                assert lost.next == workers[1]
                assert 3 / 4 * NOTICE * 1e3 <= lost.silent_ms < 10_000, "a notice, and what this process is held up for"
                again = await agent.answer(asked)
                assert (again.lost, again.worker) == ((), workers[1]), "the other is not asked again so soon"
            async with Agent(BUNDLE, worker=frozen, threads=1, notice=NOTICE) as agent:
                answer = await agent.answer(asked)
                assert (answer.alone_from, answer.worker) == (0, None)
                assert {token.source for token in answer.tokens} == {Provenance.EDGE}
                os.kill(process.pid, signal.SIGCONT)
                await asyncio.sleep(NOTICE)
                assert ids(await agent.answer(asking(Mode.CLOUD))) == truth, "it is asked again, on a new connection"

        try:
            asyncio.run(run())
        finally:
            process.send_signal(signal.SIGCONT)


def test_a_link_that_comes_back_is_used_to_verify_what_was_said_alone(
    workers: tuple[str, str], truth: tuple[int, ...]
) -> None:
    async def run() -> None:
        async with (
            behind(workers[0]) as link,
            Agent(BUNDLE, worker=link.address, threads=1, notice=NOTICE) as agent,
        ):

            def strike() -> None:
                link.cut()
                asyncio.get_running_loop().call_later(2 * NOTICE, link.restore)

            answer, events = await answered(agent, asking(Mode.CLOUD, correct_seconds=20.0), 3, strike)
            assert answer.tail in (Tail.CONFIRMED, Tail.CORRECTED)
            assert (answer.tail is Tail.CORRECTED) == any(isinstance(event, Corrected) for event in events)
            assert ids(answer) == truth
            assert answer.exact
            assert answer.worker == link.address
            assert [lost.next for lost in answer.lost] == [None]

    asyncio.run(run())


def test_heartbeats_are_answered_though_many_probe(workers: tuple[str, str]) -> None:
    async def run() -> None:
        async with WorkerClient(workers[0]) as client:
            await asyncio.gather(*[client.probe(up=0, down=0) for _ in range(8 * SERVING_LIMITS.probes)])

    asyncio.run(run())


def test_a_heartbeat_costs_what_it_is_said_to_cost(workers: tuple[str, str]) -> None:
    async def run() -> None:
        async with behind(workers[0]) as link, WorkerClient(link.address) as client:
            for _ in range(3):
                await client.probe(up=0, down=0)
            await asyncio.sleep(0.2)
            before = link.bytes_up
            for _ in range(20):
                await client.probe(up=0, down=0)
            await asyncio.sleep(0.2)
            assert (link.bytes_up - before) / 20 == pytest.approx(BEAT_BYTES, rel=0.25)

    asyncio.run(run())
