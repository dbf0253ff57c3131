"""Faults drawn from a seed in every lane at once, what is sampled meanwhile, and the tables of what came of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from cutline.bench.faults.cases import ENDS_PROCESS, OF_PROCESSES, WAYS, Fault, Setup, draw
from cutline.bench.faults.checking import Found
from cutline.bench.faults.lane import Asker, Lane, Outcome
from cutline.bench.faults.rig import Rig, asker, rig, ungated
from cutline.bench.flatness import Log, Trend, taken
from cutline.errors import CutlineError

EMPTY_SECONDS = 45.0  # a worker notices within half a minute that an agent is gone without a word
SAMPLE_SECONDS = 2.0
SLOW_SECONDS = 5.0


async def storm(
    count: int,
    seed: int,
    folder: Path,
    console: Console,
    *,
    setups: Sequence[Setup],
    without: Sequence[Fault],
    notice: float,
) -> bool:
    """Have so many faults happen, and print what came of them. Whether all is as it must be."""
    drafter = ungated(folder / "drafter")
    asking = asker(drafter, cards=8, seed=seed)
    log, began = Log(), time.monotonic()
    async with rig(setups, asking, drafter=drafter, folder=folder, notice=notice) as made:
        for lane in made.lanes.values():
            await warm(lane, asking)
        sampling = asyncio.create_task(sample(made, log))
        outcomes: list[Outcome] = []
        runs = [
            befall(lane, random.Random(f"{seed} {name}"), outcomes, count, without, console)  # noqa: S311
            for name, lane in made.lanes.items()
        ]
        await asyncio.gather(*runs)
        sampling.cancel()
        left = await leaked(made)
        fallen = [f"{name} ({one.last_words})" for name, one in made.processes.items() if one.fell]
    console.print(f"{len(outcomes)} faults, seed {seed}, notice {notice:g} s, {time.monotonic() - began:.0f} s in all")
    console.print(by_fault(outcomes))
    for one in fallen:
        console.print(f"a worker ended by itself: {one}", style="red", markup=False)
    return report(outcomes, left, log, console) and not fallen


async def befall(
    lane: Lane,
    rng: random.Random,
    outcomes: list[Outcome],
    count: int,
    without: Collection[Fault],
    console: Console,
) -> None:
    """Add to `outcomes` until there are so many. A fault that came after the answer does not count."""
    if not lane.processes:
        without = {*without, *OF_PROCESSES}
    while len(outcomes) < count:
        case = draw(rng, lane.setup, questions=lane.questions, without=without)
        try:
            outcome = await lane.run(case)
        except CutlineError as error:
            outcomes.append(Outcome(case, True, 0.0, Found(wrong=(str(error),))))
            console.print(f"[red]{case}: {error}")
            return
        if not outcome.found.right or outcome.took > SLOW_SECONDS:
            console.print(f"{case}: {outcome.took:.1f} s, {outcome.found}", style="" if outcome.found.right else "red")
        if outcome.struck or not outcome.found.right:
            outcomes.append(outcome)


async def warm(lane: Lane, asking: Asker) -> None:
    """Have every way of asking loaded, and the right answer of each way that draws its tokens known."""
    for way in WAYS:
        question = asking.question(0, **way)
        await asking.truth(lane.agent, 0, question.sampling)
        if lane.setup is not Setup.CHAIN or question.cut != "decoder.2":
            await lane.agent.answer(question)


async def sample(made: Rig, log: Log) -> None:
    """Note what this process and the workers take, for ever. A worker that was started again begins anew."""
    starts = {name: process.starts for name, process in made.processes.items()}
    while True:
        now = time.monotonic()
        log.add("agents", now, taken(psutil.Process()))
        for name, process in made.processes.items():
            if process.starts != starts[name]:
                starts[name] = process.starts
                log.begin_anew(name)
            try:
                log.add(name, now, taken(process.usage))
            except psutil.Error:  # it is being started again
                log.begin_anew(name)
        await asyncio.sleep(SAMPLE_SECONDS)


async def leaked(made: Rig) -> dict[str, int]:
    """Sessions and streams that are left on workers, once each had time to find out that their agents are gone."""
    end, left = time.monotonic() + EMPTY_SECONDS, dict[str, int]()
    while time.monotonic() < end:
        left = {}
        for name, process in made.processes.items():
            if process.fell:
                continue
            figures = await process.figures()
            left[name] = max(await process.sessions(), figures.sessions_open, figures.slots_in_use)
        if not any(left.values()):
            break
        await asyncio.sleep(1.0)
    return left


def by_fault(outcomes: Sequence[Outcome]) -> Table:
    """A line a kind of fault."""
    table = Table(title="Faults, and what they did to answers", title_justify="left")
    headings = (
        "fault",
        "times",
        "changed",
        "torn",
        "wrong",
        "lost",
        "alone",
        "refused",
        "recovery p50",
        "p99",
        "notice p99",
    )
    for heading in (*headings, "late"):
        table.add_column(heading, justify="left" if heading == "fault" else "right")
    for fault in (*Fault, None):
        some = [one for one in outcomes if fault in (one.case.fault, None)]
        if not some:
            continue
        table.add_row(
            "all" if fault is None else str(fault),
            str(len(some)),
            str(sum(one.found.changed for one in some)),
            str(sum(one.found.torn for one in some)),
            str(sum(bool(one.found.wrong) for one in some)),
            str(sum(one.losses > 0 for one in some)),
            str(sum(one.alone for one in some)),
            str(sum(one.refused for one in some)),
            _seconds((one.recovery for one in some), 0.5),
            _seconds((one.recovery for one in some), 0.99),
            _seconds((one.notice for one in some), 0.99),
            str(sum(late(one) for one in some)),
        )
    return table


def late(outcome: Outcome) -> bool:
    """Whether a silent worker was given up later than it had to be."""
    return outcome.notice is not None and outcome.limit is not None and outcome.notice > outcome.limit


def report(outcomes: Sequence[Outcome], left: dict[str, int], log: Log, console: Console) -> bool:
    """Print what is left, and the trends. Whether all is as it must be."""
    console.print("sessions left: " + ", ".join(f"{name} {count}" for name, count in left.items()))
    trends = log.trends()
    for process in dict.fromkeys(process for process, _ in trends):
        figures = {figure: of for (whose, figure), of in trends.items() if whose == process}
        console.print(f"{process}: " + ", ".join(_told(figure, of) for figure, of in figures.items()))
    ratios = [one.notice / one.limit for one in outcomes if one.notice is not None and one.limit]
    if ratios:
        console.print(
            f"time to notice, of its limit: p50 {np.quantile(ratios, 0.5):.2f}, p99 {np.quantile(ratios, 0.99):.2f}"
        )
    ended = sum(one.case.fault in ENDS_PROCESS for one in outcomes)
    wrong = sum(not one.found.right for one in outcomes)
    console.print(f"{len(outcomes)} faults, {ended} of which ended a process: {wrong} answers not as they must be")
    # Agents keep what they know of images, within bounds that minutes do not fill: of memory the soak tells.
    flat = all(of.flat for (_, figure), of in trends.items() if figure != "rss_mb")
    return not wrong and not any(left.values()) and flat


def _told(figure: str, of: Trend) -> str:
    flat = "" if of.flat or figure == "rss_mb" else " [red]not flat[/red]"
    return f"{figure} {of.level:.0f} ({of.rise:+.1f}){flat}"


def _seconds(values: Iterable[float | None], quantile: float) -> str:
    known = [value for value in values if value is not None]
    return f"{np.quantile(known, quantile):.2f} s" if known else "-"
