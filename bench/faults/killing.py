"""A link killed at a random token, run after run: how soon it is noticed, and how soon another worker goes on."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
from rich.console import Console

from cutline.bench.faults.cases import WAYS
from cutline.bench.faults.checking import hear
from cutline.bench.faults.lane import MOST_SECONDS, Asker
from cutline.bench.faults.link import FaultyLink
from cutline.bench.faults.rig import PACE, asker, ungated
from cutline.bench.worker_process import WorkerProcess
from cutline.core.request import Mode
from cutline.demo.bundles import TARGET
from cutline.devices.emulator import LinkEmulator
from cutline.devices.link import LinkProfile, load_link
from cutline.edge.agent import Agent
from cutline.models.bundle import Bundle

CALM = 3  # unbroken questions, of whose times the middle one counts
RESET_SECONDS = 0.1  # that noticing a reset may take

# Auto drafts a whole answer first, which is no part of a replay.
KILLED = tuple(way for way in WAYS if way["mode"] is not Mode.AUTO and "sampling" not in way)
_BEFORE = ("prepare", "edge")  # parts of an answer that come before its session is opened, and are not replayed


@dataclass(frozen=True, slots=True)
class Killed:
    """One run. Seconds: from the kill until it was `noticed`, which may take `limit`; from then until the next token of
    the other worker came, which may take `allowed`: the `prefill` of a replay and two round trips.
    """

    right: bool
    silent: bool
    noticed: float | None = None
    limit: float = 0.0
    again: float | None = None
    prefill: float = 0.0
    allowed: float = 0.0


async def killing(runs: int, seed: int, folder: Path, console: Console, *, notice: float, rtt_ms: float) -> bool:
    """Kill so many links, and print what came of it. Whether every answer was whole and right, and noticed in time."""
    drafter, rng = ungated(folder / "drafter"), random.Random(seed)  # noqa: S311
    asking = asker(drafter, cards=8, seed=seed)
    profile = msgspec.structs.replace(load_link("ethernet"), rtt_ms=rtt_ms, jitter_ms=0.0)
    done: list[Killed] = []
    async with WorkerProcess(TARGET) as first, WorkerProcess(TARGET) as spare:
        bench = _Bench(asking, drafter, Bundle.open(TARGET, "device"), profile, notice)
        for number in range(runs):
            way, index = KILLED[number % len(KILLED)], rng.randrange(len(asking.requests))
            at, silent = rng.random(), number % 2 == 1
            done.append(await bench.kill((first.address, spare.address), way, index, at, silent=silent))
    return report(done, console, notice=notice, rtt_ms=rtt_ms)


@dataclass(frozen=True, slots=True)
class _Bench:
    """What all runs have alike: questions, models, the link to each worker, and the agents' notice."""

    asking: Asker
    drafter: Bundle
    target: Bundle
    profile: LinkProfile
    notice: float

    async def kill(
        self, workers: tuple[str, str], way: Mapping[str, Any], index: int, at: float, *, silent: bool
    ) -> Killed:
        """Ask a question a `way`, and kill the link to the first worker where the answer is `at` (0..1)."""
        async with AsyncExitStack() as stack:
            near = [await stack.enter_async_context(self._emulated(worker)) for worker in workers]
            link = await stack.enter_async_context(FaultyLink(near[0].address, pace=PACE))
            prefill = await self._prefill(near[1].address, way, index)
            agent = await stack.enter_async_context(self._agent(link.address, near[1].address))
            # Graphs are loaded, the link is measured, and the agent gets to know who stands by.
            await hear(agent, self.asking.question(index, **way))
            question, truth = self.asking.question(index, **way), self.asking.truths[index]
            token, struck = 1 + int(at * (len(truth) - 2)), list[float]()

            def during(settled: int) -> None:
                if settled >= token and not struck:
                    struck.append(time.monotonic())
                    (link.hold if silent else link.reset)()

            limit = self.notice if silent else RESET_SECONDS
            try:
                async with asyncio.timeout(MOST_SECONDS):
                    heard = await hear(agent, question, during)
            except TimeoutError:
                return Killed(False, silent)
            find = self.asking.checker.find
            found = await asyncio.to_thread(find, question, heard, truth, first=link.address, spared=True)
        if not heard.lost or not struck:
            return Killed(found.right, silent)
        noticed = heard.lost[0][0]
        after = heard.settled_after(noticed)
        return Killed(
            found.right,
            silent,
            noticed - struck[0],
            limit,
            None if after is None else after - noticed,
            prefill,
            prefill + 2 * self.profile.rtt_ms / 1e3,
        )

    async def _prefill(self, worker: str, way: Mapping[str, Any], index: int) -> float:
        """Seconds from opening an unbroken session with the worker that goes on to its first token, less a round trip.

        Pictures are sent and run, as in a replay: each is one that it has not seen.
        """
        took = list[float]()
        async with self._agent(worker) as agent:
            for _ in range(1 + CALM):
                answer = await agent.answer(self.asking.question(index, **way))
                took.append(answer.ttft_ms - sum(answer.parts_ms.get(part, 0.0) for part in _BEFORE))
        return (median(took[1:]) - self.profile.rtt_ms) / 1e3  # the first loaded graphs, and connected

    def _agent(self, *workers: str) -> Agent:
        return Agent(self.drafter, worker=workers, threads=1, target=self.target, notice=self.notice)

    def _emulated(self, worker: str) -> LinkEmulator:
        host, port = worker.rsplit(":", 1)
        return LinkEmulator(self.profile, target=(host, int(port)))


def report(done: list[Killed], console: Console, *, notice: float, rtt_ms: float) -> bool:
    """Print the figures. Whether all is as it must be."""
    right = sum(one.right for one in done)
    console.print(f"link killed at a random token in {len(done)} runs: {right} complete answers, every token right")
    for silent, kind in ((False, "reset"), (True, "silent")):
        times = [(one.noticed, one.limit) for one in done if one.noticed is not None and one.silent is silent]
        if not times:
            continue
        half, most = np.quantile([noticed for noticed, _ in times], [0.5, 0.99])
        share = np.quantile([noticed / limit for noticed, limit in times], 0.99)
        console.print(
            f"{kind}, {len(times)} before the answer was there: noticed after {half:.3f} s (p50), {most:.3f} s (p99)"
            + (f", p99 {share:.2f} of what it may take at a notice of {notice:g} s" if silent else "")
        )
    again = [one for one in done if one.again is not None]
    if again:
        console.print(
            f"from then to the next token of the other worker: p50 {median(one.again or 0.0 for one in again):.3f} s, "
            f"where an opening's prefill takes {median(one.prefill for one in again):.3f} s (p50)"
        )
        bound = f"prefill + 2 round trips of {rtt_ms:g} ms"
        since = [(one.again or 0.0) - one.allowed for one in again]
        whole = [beyond + (one.noticed or 0.0) - one.limit for beyond, one in zip(since, again, strict=True)]
        _within(f"from then, {bound}", since, console)
        _within(f"from the kill, {bound} + what noticing may take", whole, console)
    late = np.quantile(
        [one.noticed / one.limit for one in done if one.silent and one.noticed is not None] or [0.0], 0.99
    )
    return right == len(done) and bool(late <= 1.0)


def _within(bound: str, beyond: Sequence[float], console: Console) -> None:
    half, most = np.quantile(beyond, [0.5, 0.99])
    within = sum(one <= 0.0 for one in beyond)
    console.print(
        f"{bound}: kept in {within} of {len(beyond)}; off by {half:+.3f} s (p50), {most:+.3f} s (p99)", soft_wrap=True
    )
