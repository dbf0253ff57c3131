from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
from hypothesis import given
from hypothesis import strategies as st

from cutline.edge.offload.discovery import (
    FULL_SECONDS,
    MEASURE_SECONDS,
    MOVE_SECONDS,
    Candidate,
    ListedWorkers,
    arrange,
    cost,
    pick,
)
from cutline.errors import WorkerUnavailable
from cutline.protos.directory import ListedWorker, Listing, Standing, listing_to_wire
from cutline.protos.v1 import directory_pb2_grpc, worker_pb2_grpc
from cutline.protos.v1 import worker_pb2 as pb

REFRESH = 0.02

candidates = st.lists(
    st.builds(
        Candidate,
        address=st.integers(1, 10_000).map(lambda port: f"192.0.2.1:{port}"),
        queue_seconds=st.floats(0.0, 5.0),
        sessions=st.integers(0, 8),
        max_sessions=st.just(8),
        rtt=st.none() | st.floats(0.0, 1.0),
    ),
    max_size=8,
    unique_by=lambda one: one.address,
)


def candidate(name: str, **changes: float) -> Candidate:
    return Candidate(**{"address": name, "queue_seconds": 0.0, "sessions": 0, "max_sessions": 8} | changes)  # type: ignore[arg-type]


@given(candidates, st.integers())
def test_the_dearest_of_several_is_never_picked(some: list[Candidate], seed: int) -> None:
    picked = pick(some, random.Random(seed))  # noqa: S311
    assert (picked is None) == (not some)
    if picked is not None and len(some) > 1:
        assert any(cost(picked) <= cost(one) for one in some if one is not picked)


@given(candidates, st.integers(), st.integers(1, 10_000))
def test_all_are_asked_in_the_end_and_who_holds_the_images_first_unless_far_dearer(
    some: list[Candidate], seed: int, port: int
) -> None:
    holder = f"192.0.2.1:{port}" if seed % 2 else some[0].address if some else None
    order = arrange(some, random.Random(seed), holder=holder)  # noqa: S311
    assert Counter(order) == Counter(one.address for one in some)
    costs = {one.address: cost(one) for one in some}
    if holder in costs:
        assert (order[0] == holder) or len(order) == 1 or costs[holder] > min(costs.values()) + MOVE_SECONDS
    rest = [costs[address] for address in order[1:]]
    assert rest == sorted(rest)


def test_a_full_worker_loses_its_conversations_and_a_slightly_busier_one_does_not() -> None:
    free, rng = candidate("free"), random.Random(0)  # noqa: S311
    assert arrange([free, candidate("mine", sessions=7)], rng, holder="mine")[0] == "mine"
    assert arrange([free, candidate("mine", queue_seconds=0.4)], rng, holder="mine")[0] == "mine"
    assert arrange([free, candidate("mine", queue_seconds=0.6)], rng, holder="mine")[0] == "free"
    assert arrange([free, candidate("mine", sessions=8)], rng, holder="mine")[0] == "free"
    assert cost(candidate("full", sessions=8)) >= FULL_SECONDS


def test_two_choices_divide_sessions_far_better_than_one() -> None:
    """The most on one of 20 workers after 400 agents came, none of which knows of the others' choices meanwhile."""

    def most(choices: int) -> int:
        rng, sessions = random.Random(7), Counter[int]()  # noqa: S311
        for _ in range(400):
            told = [candidate(str(index), sessions=sessions[index], max_sessions=1000) for index in range(20)]
            picked = pick(told if choices == 2 else [rng.choice(told)], rng)
            assert picked is not None
            sessions[int(picked.address)] += 1
        return max(sessions.values())

    assert most(2) <= 22 < most(1)


class Book(directory_pb2_grpc.DirectoryServicer):
    """A directory that says what it is told to."""

    def __init__(self) -> None:
        self.listed: list[ListedWorker] = []
        self.asked: list[str] = []

    async def List(self, request: object, context: object) -> object:
        self.asked.append(request.model)  # type: ignore[attr-defined]
        return listing_to_wire(Listing(epoch="e", version=1, wanted=1, workers=tuple(self.listed)))

    def list(self, *ports: int) -> None:
        self.listed = [
            ListedWorker(
                name=f"worker-{port}",
                address=f"127.0.0.1:{port}",
                standing=Standing.READY,
                since=0.0,
                model="m",
                max_sessions=8,
            )
            for port in ports
        ]


async def until(workers: ListedWorkers, *ports: int) -> None:
    async with asyncio.timeout(60):
        while set(workers.addresses) != {f"127.0.0.1:{port}" for port in ports}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_workers_come_and_go_with_the_listing() -> None:
    async def run() -> None:
        book = Book()
        server = grpc.aio.server()
        directory_pb2_grpc.add_DirectoryServicer_to_server(book, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        workers = ListedWorkers(f"127.0.0.1:{port}", model="m", refresh=REFRESH)
        try:
            await workers.open()
            assert "lists no worker" in str(workers.nobody)
            assert workers.choose() is None

            book.list(1, 2)
            await until(workers, 1, 2)
            workers.report("127.0.0.1:1", WorkerUnavailable("it is gone"))
            client = workers.choose(first="127.0.0.1:1")  # the agent knows before the directory does
            assert client is not None
            assert client.address == "127.0.0.1:2"

            book.list(2, 3)
            await until(workers, 2, 3)
            assert client is workers.choose(but=["127.0.0.1:3"])  # whose connection is kept
            chosen = {one.address for _ in range(20) if (one := workers.choose(first="127.0.0.1:3"))}
            assert chosen <= {"127.0.0.1:2", "127.0.0.1:3"}

            everyone = workers.addresses
            assert workers.wait(but=everyone) == REFRESH  # for whom the next listing may have

            book.list()  # a directory that was just started: what it knew last is taken to be there still
            await asked_more(book)
            assert len(workers.addresses) == 2
            await server.stop(None)
            async with asyncio.timeout(60):
                while workers.wait(but=everyone) is not None:  # noqa: ASYNC110 (nobody else waits)
                    await asyncio.sleep(0.01)
            assert len(workers.addresses) == 2
            assert set(book.asked) == {"m"}
        finally:
            await workers.close()

    asyncio.run(run())


@asynccontextmanager
async def listing(book: Book) -> AsyncIterator[ListedWorkers]:
    """Workers that `book` lists, followed quickly."""
    server = grpc.aio.server()
    directory_pb2_grpc.add_DirectoryServicer_to_server(book, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    workers = ListedWorkers(f"127.0.0.1:{port}", model="m", refresh=REFRESH)
    try:
        await workers.open()
        yield workers
    finally:
        await workers.close()
        await server.stop(None)


async def asked_more(book: Book, times: int = 3) -> None:
    async with asyncio.timeout(60):
        before = len(book.asked)
        while len(book.asked) < before + times:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_who_cannot_be_reached_is_passed_over() -> None:
    async def run() -> None:
        book = Book()
        book.list(1)
        ours = book.listed[0]
        book.listed = [replace(ours, address="192.0.2.1:5"), ours, replace(ours, address="127.0.0.1:0")]
        async with listing(book) as workers:
            assert workers.addresses == ("127.0.0.1:1",)
            await asked_more(book)
            assert workers.choose() is not None
            book.listed = book.listed[:1]
            await asked_more(book)
            assert "--ca" in str(workers.nobody)

    asyncio.run(run())


def test_a_worker_that_does_not_answer_holds_up_no_listing() -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            book = Book()
            book.list(silent.getsockname()[1])
            async with listing(book) as workers:
                await asyncio.sleep(0.1)
                await asked_more(book)
                # Nor does the end of its connection end the following, or anything be asked meanwhile.
                workers.offline = True
                await asyncio.sleep(0.1)
                assert workers._directory is None
                before = len(book.asked)
                await asyncio.sleep(0.1)
                assert len(book.asked) == before
                workers.offline = False
                await asked_more(book)

    asyncio.run(run())


def test_a_worker_whose_way_cannot_be_timed_is_taken_for_a_far_one_and_the_others_are_timed_as_well() -> None:
    class Near(worker_pb2_grpc.WorkerServicer):
        probes = 0

        async def Probe(self, request: object, context: object) -> pb.ProbeAnswer:
            self.probes += 1
            return pb.ProbeAnswer()

    async def run() -> None:
        near, server = Near(), grpc.aio.server()
        worker_pb2_grpc.add_WorkerServicer_to_server(near, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        book = Book()
        book.list(1, port)  # at the first nobody listens
        async with listing(book) as workers:
            async with asyncio.timeout(30):
                while near.probes < 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            order = {workers._order(workers.addresses, None) for _ in range(20)}
            assert order == {(f"127.0.0.1:{port}", "127.0.0.1:1")}
            far, known = workers.states
            assert (far.rtt_ms, far.queue_ms) == (None, 0.0)
            assert known.rtt_ms is not None
            assert 0.0 < known.rtt_ms < 1e3 * MEASURE_SECONDS
        await server.stop(None)

    asyncio.run(run())


def test_going_offline_while_the_directory_is_asked_is_no_end() -> None:
    class Slow(Book):
        async def List(self, request: object, context: object) -> object:
            told = await super().List(request, context)
            await asyncio.sleep(0.1 if len(self.asked) > 1 else 0.0)
            return told

    async def run() -> None:
        book = Slow()
        book.list(1)
        async with listing(book) as workers:
            while len(book.asked) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            workers.offline = True
            await asyncio.sleep(0.2)
            workers.offline = False
            await asked_more(book)

    asyncio.run(run())


def test_a_directory_that_is_not_there_is_no_reason_not_to_start() -> None:
    async def run() -> None:
        workers = ListedWorkers("127.0.0.1:1", model="m")
        await workers.open()
        assert "no directory answers at 127.0.0.1:1" in str(workers.nobody)
        assert workers.choose() is None
        await workers.close()

    asyncio.run(run())


def test_an_offline_agent_asks_no_directory() -> None:
    async def run() -> None:
        workers = ListedWorkers("127.0.0.1:1", model="m", offline=True)
        await workers.open()
        assert "offline" in str(workers.nobody)
        await workers.close()

    asyncio.run(run())
