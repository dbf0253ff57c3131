"""Faults drawn from a seed, before real workers: no answer may suffer, and nothing may be left of them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from cutline.bench.faults.cases import ENDS_PROCESS, OF_PROCESSES, WAYS, Case, Fault, Point, Setup, draw
from cutline.bench.faults.checking import Checker, Heard, hear
from cutline.bench.faults.lane import Asker
from cutline.bench.faults.link import FaultyLink, Way
from cutline.bench.faults.rig import asker, rig, ungated
from cutline.bench.faults.storm import late, leaked, warm
from cutline.bench.flatness import RULES, trend
from cutline.cloud.serving.limits import SERVING_LIMITS
from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.core.request import Mode
from cutline.demo.bundles import TARGET
from cutline.edge.agent import Agent
from cutline.edge.generation.events import Settled
from cutline.edge.generation.result import Answer, Provenance
from cutline.models.bundle import Bundle

NOTICE = 0.5


@pytest.fixture(scope="module")
def drafter(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return ungated(tmp_path_factory.mktemp("faults") / "drafter")


@pytest.fixture(scope="module")
def asking(drafter: Bundle) -> Asker:
    return asker(drafter, cards=2, seed=3)


@pytest.fixture(autouse=True)
def quiet_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")


@pytest.mark.sampled(3, 16)
def test_answers_survive_faults_over_tls(asking: Asker, drafter: Bundle, tmp_path: Path, rounds: int) -> None:
    rng = random.Random(7)  # noqa: S311

    def drawn() -> Iterator[Case]:
        for _ in range(rounds):
            case = draw(rng, Setup.TLS, questions=len(asking.requests), without=ENDS_PROCESS)
            yield dataclasses.replace(case, forgotten=False)  # of which a worker hears after half a minute only
        for at in (0.1, 0.4, 0.8):
            yield Case(Setup.TLS, Fault.FLIP, Point.SETTLED, way=0, question=0, at=at, strength=0.9, lasts=None)
        # What it kept is gone when it is back, of which the agent does not know.
        restart = Case(Setup.TLS, Fault.RESTART, Point.SETTLED, way=1, question=0, at=0.3, strength=0.0, lasts=None)
        yield dataclasses.replace(restart, kept=True)

    async def run() -> None:
        setups = [Setup.TLS]
        async with rig(setups, asking, drafter=drafter, folder=tmp_path, notice=NOTICE, beside=False) as made:
            (lane,) = made.lanes.values()
            await warm(lane, asking)
            outcomes = [await lane.run(case) for case in drawn()]
            assert [str(one.case) for one in outcomes if not one.found.right] == []
            assert sum(one.struck for one in outcomes) > rounds // 2
            assert sum(one.losses > 0 for one in outcomes) > rounds // 3
            assert sum(late(one) for one in outcomes) <= 1, "a machine may be held up once"
            assert not any((await leaked(made)).values())
            assert not any(process.fell for process in made.processes.values())

    asyncio.run(run())


@pytest.mark.parametrize("way", [{"mode": Mode.CLOUD}, {"mode": Mode.DRAFT, "cut": "vision.1"}], ids=str)
@pytest.mark.parametrize("silently", [False, True])
def test_a_chain_whose_inner_link_dies_is_given_up_for_another_worker(
    way: dict[str, object], silently: bool, asking: Asker, drafter: Bundle
) -> None:
    async def run() -> None:
        whole, target = Bundle.open(TARGET), Bundle.open(TARGET, "device")
        options = WorkerOptions(slots=2, context=256)
        async with (
            serve(whole, options) as spare,
            serve(whole, replace(options, layers=("decoder.2", "end"))) as second,
            FaultyLink(second, pace=5_000.0) as link,
            serve(whole, replace(options, layers=("image", "decoder.2"), next_worker=link.address)) as first,
            Agent(drafter, worker=[first, spare], threads=1, target=target, notice=NOTICE) as agent,
        ):
            question = asking.question(0, **way)
            assert (await agent.answer(question)).worker == first
            question, struck = asking.question(0, **way), list[int]()

            def during(settled: int) -> None:
                if not struck:
                    struck.append(settled)
                    (link.hold if silently else link.reset)()

            heard = await hear(agent, question, during)
            assert asking.checker.find(question, heard, asking.truths[0], first=first, spared=True).right
            if heard.lost:  # all may have come already
                assert heard.ended - heard.began < 4 * SERVING_LIMITS.silence_seconds
            link.forget()
            link.heal()
            async with asyncio.timeout(60):  # it goes on over another connection, once it was found to be back
                while (await agent.answer(asking.question(0, **way))).worker != first:
                    pass

    asyncio.run(run())


def test_the_same_seed_draws_the_same_cases() -> None:
    def cases(seed: int, setup: Setup) -> list[Case]:
        rng = random.Random(seed)  # noqa: S311
        return [draw(rng, setup, questions=4) for _ in range(400)]

    for setup in Setup:
        drawn = cases(1, setup)
        assert drawn == cases(1, setup)
        assert drawn != cases(2, setup)
        assert {case.point for case in drawn} == set(Point)
        assert (Fault.FLIP in {case.fault for case in drawn}) == (setup is Setup.TLS)
        assert {case.fault for case in drawn} >= set(Fault) - {Fault.FLIP}
        assert any(case.second for case in drawn) == (setup is Setup.CHAIN)
        assert len({case.way for case in drawn}) >= len(WAYS) - 2
    rng = random.Random(1)  # noqa: S311
    some = [draw(rng, Setup.ALONE, questions=4, without=OF_PROCESSES).fault for _ in range(200)]
    assert not set(some) & set(OF_PROCESSES)


def test_a_wrong_answer_is_found(asking: Asker, drafter: Bundle) -> None:
    checker, question, truth = Checker(drafter), asking.question(0, mode=Mode.DRAFT), asking.truths[0]

    async def run() -> Heard:
        async with Agent(drafter, worker=None, threads=1) as agent:
            return await hear(agent, asking.question(0, mode=Mode.AUTO))

    heard = asyncio.run(run())
    assert heard.answer is not None
    assert checker.find(question, heard, truth, first="it", spared=False).wrong == ("nobody was told of the loss",)
    assert any("went on alone" in why for why in checker.find(question, heard, truth, first="it", spared=True).wrong)
    tokens = list(heard.answer.tokens)

    def found(answer: Answer) -> tuple[int, bool]:
        events = [(0.0, Settled(0, tuple(tokens)))]
        one = checker.find(question, Heard(0.0, list(events), answer), truth, first="it", spared=False)
        return one.changed, one.torn

    assert found(heard.answer) == (0, False)
    assert found(msgspec.structs.replace(heard.answer, tokens=tokens[:-1])) == (1, True)
    assert found(msgspec.structs.replace(heard.answer, tokens=[*tokens, tokens[0]]))[1]
    other = msgspec.structs.replace(tokens[1], id=tokens[1].id + 1, source=Provenance.EDGE)
    assert found(msgspec.structs.replace(heard.answer, tokens=[tokens[0], other, *tokens[2:]]))[0] > 0


def test_what_the_link_does_to_bytes() -> None:
    async def run() -> None:
        arrived = list[bytes]()

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(1000):
                    arrived.append(data)
                    writer.write(data)
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1")
        port = server.sockets[0].getsockname()[1]
        async with FaultyLink(f"127.0.0.1:{port}") as link:
            host, at = link.address.rsplit(":", 1)

            async def connected() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
                return await asyncio.open_connection(host, int(at))

            reader, writer = await connected()
            link.flip(1)
            writer.write(b"abc")
            assert await reader.readexactly(3) == b"abC"
            link.hold(Way.DOWN)
            writer.write(b"late")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(9), 0.1)
            link.heal()
            assert await reader.readexactly(4) == b"late", "it waited at the sender's"
            struck = list[int]()

            def strike() -> None:
                struck.append(link.carried[Way.UP])
                link.hold()
                link.forget()

            link.fuse(Way.UP, 3, strike)
            writer.write(b"nobody hears")
            async with asyncio.timeout(60):
                while not struck:  # noqa: ASYNC110 (nobody else waits)
                    await asyncio.sleep(0.01)
            assert struck == [3 + 4 + 3]
            link.heal()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(9), 0.1)
            writer.close()
            reader, writer = await connected()
            link.truncate()
            writer.write(b"half of it")
            with pytest.raises(ConnectionResetError):
                await reader.read(100)
            assert arrived[-1] == b"half "
            writer.close()
            link.refuse()
            with pytest.raises(OSError, match=r"Connect call failed"):
                await connected()
            await link.restore()
            reader, writer = await connected()
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            link.reset()
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
            writer.close()
        server.close()
        await server.wait_closed()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("figure", "values", "flat"),
    [
        ("rss_mb", [400.0] * 100, True),
        ("rss_mb", [400.0 + (index % 7) for index in range(100)], True),
        ("rss_mb", [400.0 + index for index in range(100)], False),
        ("rss_mb", [300.0 + 4 * index for index in range(25)] + [400.0] * 75, True),
        ("descriptors", [20.0 + 0.1 * index for index in range(100)], False),
        ("descriptors", [20.0 + 40 * (index % 50 == 3) for index in range(100)], True),
        ("threads", [10.0] * 60 + [11.0] * 40, True),
        ("sessions", [float(index // 20) for index in range(100)], False),
    ],
)
def test_flat_is_what_does_not_rise(figure: str, values: list[float], flat: bool) -> None:
    found = trend(figure, [36.0 * index for index in range(len(values))], values)
    assert found.flat is flat
    assert figure in RULES
    assert found.hourly == pytest.approx(found.rise / (36.0 * 75 / 3600), rel=0.05, abs=1e-9)
