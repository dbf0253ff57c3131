"""A link killed at a random token, run after run: how soon it is noticed, and how soon another worker goes on."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console

from cutline.bench.fault_cases import WAYS
from cutline.bench.fault_check import Heard, hear
from cutline.bench.fault_lane import MOST_SECONDS, Asker
from cutline.bench.fault_rig import PACE, asker, ungated
from cutline.bench.faulty_link import FaultyLink
from cutline.bench.worker_process import WorkerProcess
from cutline.demo.bundles import TARGET
from cutline.devices.emulator import LinkEmulator
from cutline.devices.link import LinkProfile, load_link
from cutline.edge.agent import Agent
from cutline.edge.heartbeat import patience
from cutline.edge.question import Mode, Question
from cutline.models.bundle import Bundle

DEVICE = Bundle.open(TARGET, "device")
DEEP_AHEAD = 22_000  # bytes of the boundary rows of a whole answer, which drafts may have sent

# Auto drafts a whole answer first, which is no part of a replay.
KILLED = tuple(way for way in WAYS if way["mode"] is not Mode.AUTO and "sampling" not in way)


@dataclass(frozen=True, slots=True)
class Killed:
    """One run. Seconds: from the kill until it was noticed, which may take `limit`; from then until the next token came
    of the other worker, and what that may take: the first token of an unbroken question, and a round trip more.
    """

    right: bool
    silent: bool
    notice: float | None = None
    limit: float = 0.0
    again: float | None = None
    allowed: float = 0.0


async def killing(runs: int, seed: int, folder: Path, console: Console, *, notice: float, rtt_ms: float) -> bool:
    """Kill so many links, and print what came of it. Whether every answer was whole and right, and noticed in time."""
    drafter, rng = ungated(folder / "drafter"), random.Random(seed)  # noqa: S311
    asking = asker(drafter, cards=8, seed=seed)
    profile = msgspec.structs.replace(load_link("ethernet"), rtt_ms=rtt_ms, jitter_ms=0.0)
    done: list[Killed] = []
    async with WorkerProcess(TARGET) as first, WorkerProcess(TARGET) as spare:
        for number in range(runs):
            question = asking.question(rng.randrange(len(asking.requests)), **KILLED[number % len(KILLED)])
            workers, silent = (first.address, spare.address), number % 2 == 1
            killed = _killed(asking, drafter, workers, profile, question, rng.random(), silent=silent, notice=notice)
            done.append(await killed)
    return report(done, console, notice=notice, rtt_ms=rtt_ms)


async def _killed(
    asking: Asker,
    drafter: Bundle,
    workers: tuple[str, str],
    profile: LinkProfile,
    question: Question,
    at: float,
    *,
    silent: bool,
    notice: float,
) -> Killed:
    async with AsyncExitStack() as stack:
        near = [await stack.enter_async_context(_emulated(profile, worker)) for worker in workers]
        link = await stack.enter_async_context(FaultyLink(near[0].address, pace=PACE))
        agent = await stack.enter_async_context(
            Agent(
                drafter,
                worker=[link.address, near[1].address],
                threads=1,
                target=DEVICE,
                notice=notice,
            )
        )
        spare = agent.workers.choose(first=near[1].address)  # it is connected: how long that takes is the link's
        assert spare is not None
        await spare.describe()
        agent.workers.report(near[1].address, None)
        await hear(agent, question)
        calm = await hear(agent, question)
        assert calm.answer is not None
        whole = tuple(token.id for token in calm.answer.tokens)
        token, struck = 1 + int(at * (len(whole) - 2)), list[float]()

        def during(settled: int) -> None:
            if settled >= token and not struck:
                struck.append(time.monotonic())
                (link.hold if silent else link.reset)()

        ahead = DEEP_AHEAD if question.cut in DEVICE.manifest.line.deep_cuts else 0
        limit = patience(notice, ahead=ahead, uplink=agent.workers.uplink(link.address), connected=True) + notice / 4
        try:
            async with asyncio.timeout(MOST_SECONDS):
                heard = await hear(agent, question, during)
        except TimeoutError:
            return Killed(False, silent)
        first = link.address
        find = asking.checker.find
        found = await asyncio.to_thread(find, question, heard, whole, first=first, spared=True)
        return _measured(heard, struck, found.right, silent, limit, calm.answer.ttft_ms / 1e3 + profile.rtt_ms / 1e3)


def _measured(heard: Heard, struck: list[float], right: bool, silent: bool, limit: float, allowed: float) -> Killed:
    if not heard.lost or not struck:
        return Killed(right, silent)
    noticed = heard.lost[0][0]
    after = heard.settled_after(noticed)
    again = None if after is None else after - noticed
    return Killed(right, silent, noticed - struck[0], limit if silent else 0.1, again, allowed)


def _emulated(profile: LinkProfile, worker: str) -> LinkEmulator:
    host, port = worker.rsplit(":", 1)
    return LinkEmulator(profile, target=(host, int(port)))


def report(done: list[Killed], console: Console, *, notice: float, rtt_ms: float) -> bool:
    """Print the figures. Whether all is as it must be."""
    right = sum(one.right for one in done)
    console.print(f"link killed at a random token in {len(done)} runs: {right} complete answers, every token right")
    for silent, kind in ((False, "reset"), (True, "silent")):
        times = [one for one in done if one.notice is not None and one.silent is silent]
        if not times:
            continue
        half, most = np.quantile([one.notice or 0.0 for one in times], [0.5, 0.99])
        share = np.quantile([(one.notice or 0.0) / one.limit for one in times], 0.99)
        console.print(
            f"{kind}, {len(times)} before the answer was there: noticed after {half:.3f} s (p50), {most:.3f} s (p99)"
            + (f", p99 {share:.2f} of what it may take at a notice of {notice:g} s" if silent else "")
        )
    lags = [(one.again, one.allowed) for one in done if one.again is not None]
    if lags:
        within = sum(again <= allowed for again, allowed in lags)
        excess = np.quantile([again - allowed for again, allowed in lags], [0.5, 0.99])
        console.print(
            f"from then to the next token of the other worker: p50 {np.median([again for again, _ in lags]):.3f} s; "
            f"at most an opening's first token and a round trip of {rtt_ms:g} ms more in {within} of {len(lags)} "
            f"({excess[0]:+.3f} s p50, {excess[1]:+.3f} s p99)"
        )
    late = np.quantile([one.notice / one.limit for one in done if one.silent and one.notice is not None] or [0.0], 0.99)
    return right == len(done) and bool(late <= 1.0)
