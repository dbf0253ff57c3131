"""What each cut costs: `python -m cutline.bench.cuts [--plot docs/explanation/cuts.png]`.

Latency and bytes up of the same questions at every cut, over emulated links; the memory of a fresh process that holds
only the layers before the cut; and what every wire format changes (cli/calibration/pricing.py). The worker is a process
of its own, the agent runs here, each on one thread. `split` is the target alone, `draft` has the drafter's help; at
`image` the picture is uploaded.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cutline.bench.cuts_plot import draw
from cutline.cli.bundle import price_table
from cutline.cli.calibration.pricing import PricedQuestion, measure, ways
from cutline.cli.process.children import worker_process
from cutline.cli.setting import open_drafter, open_target
from cutline.core.request import Mode, Request
from cutline.core.wire import Wire
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.devices.emulator import LinkEmulator
from cutline.devices.link import load_link
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.generation.result import Answer
from cutline.edge.inference.target_prefix import device_cuts
from cutline.models.bundle import Bundle
from cutline.models.prices import Prices
from cutline.protos.channel.address import parse_address

MANNERS = {  # of asking
    "split, fp32": (Mode.SPLIT, Wire.FLOAT32),
    "split, int8": (Mode.SPLIT, Wire.INT8),
    "draft, int8": (Mode.DRAFT, Wire.INT8),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """The answers at one cut, asked in one manner over one link: means."""

    latency_ms: float
    bytes_up: float
    rounds: float


Cells = dict[tuple[str, str], Cell]  # by manner and cut


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, help="the target's bundle; without it, the demo's")
    parser.add_argument("--drafter", type=Path, help="the drafter's bundle; without it, the demo's")
    parser.add_argument("--links", nargs="+", default=["wifi", "4g"], help="names of link profiles, or TOML files")
    parser.add_argument("--cards", type=int, default=5, help="cards asked about over each link, six questions each")
    parser.add_argument("--price-cards", type=int, default=50, help="cards for the wire formats' prices, 0 for none")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="a file for the plot")
    args = parser.parse_args()
    target, drafter = open_target(args.target), open_drafter(args.drafter)
    cuts = ("image", *device_cuts(target.manifest))
    asked = [
        PricedQuestion(one.image, one.question.text, one.question.answer)
        for one in requests(Split.EVALUATION, max(args.cards, args.price_cards), args.seed)
    ]
    with Progress(transient=True) as progress, worker_process(target.path) as worker:
        memory = {cut: resident(target, cut) for cut in progress.track(cuts, description="memory")}
        links = {
            link: asyncio.run(over(link, worker, drafter, target, cuts, asked[: 6 * args.cards], progress))
            for link in args.links
        }
        priced = asked[: 6 * args.price_cards]
        prices = asyncio.run(price(worker, drafter, target, cuts, priced, progress)) if priced else None
    console = Console(width=160)
    for link, cells in links.items():
        console.print(_table(f"{6 * args.cards} questions over {link}: mean latency, bytes up, rounds", cuts, cells))
    table = Table(title="Memory of a process that holds the layers before the cut", title_justify="left")
    for heading in ("cut", "resident", "above image"):
        table.add_column(heading, justify="right")
    for cut, size in memory.items():
        table.add_row(cut, f"{size / 1e6:.0f} MB", f"{(size - memory['image']) / 1e6:.1f} MB")
    console.print(table)
    if prices is not None:
        console.print(price_table(prices))
    if args.plot:
        draw(args.plot, cuts, links, memory)


async def over(
    link: str,
    worker: str,
    drafter: Bundle,
    target: Bundle,
    cuts: Sequence[str],
    asked: Sequence[PricedQuestion],
    progress: Progress,
) -> Cells:
    """Every question at every cut in every manner, over an emulated link."""
    answers: dict[tuple[str, str], list[Answer]] = {(manner, cut): [] for manner in MANNERS for cut in cuts}
    async with (
        LinkEmulator(load_link(link), target=parse_address(worker)) as emulator,
        Agent(drafter, worker=emulator.address, threads=1, target=target, settings=AgentSettings(fresh=True)) as agent,
    ):
        for manner, cut in answers:  # opens the connection and loads the models
            await agent.answer(put(asked[0], manner, cut))
        for one in progress.track(asked, description=f"over {link}"):
            for (manner, cut), found in answers.items():
                found.append(await agent.answer(put(one, manner, cut)))
    return {
        way: Cell(
            latency_ms=fmean(one.latency_ms for one in found),
            bytes_up=fmean(one.bytes_up for one in found),
            rounds=fmean(one.rounds for one in found),
        )
        for way, found in answers.items()
    }


async def price(
    worker: str,
    drafter: Bundle,
    target: Bundle,
    cuts: Sequence[str],
    asked: Sequence[PricedQuestion],
    progress: Progress,
) -> Prices:
    """What each wire format changes at every cut, without a link between."""
    track = progress.add_task("prices", total=len(asked) * sum(1 for _ in ways(cuts)))
    return await measure(
        partial(Agent, drafter, worker=worker, threads=1, target=target, settings=AgentSettings(fresh=True)),
        cuts=cuts,
        asked=asked,
        kept=lambda agent: agent,
        advance=lambda: progress.advance(track),
    )


def put(asked: PricedQuestion, manner: str, cut: str) -> Request:
    """A question asked in one manner, at `image` by uploading the picture."""
    mode, wire = MANNERS[manner]
    if cut == "image" and mode is Mode.SPLIT:
        mode = Mode.CLOUD
    return Request.about(asked.image, asked.text, mode=mode, cut=cut, wire=wire)


def resident(target: Bundle, cut: str) -> int:
    """Bytes that a fresh process has resident after it ran the layers before `cut`; see cutline.bench.resident."""
    command = [sys.executable, "-m", "cutline.bench.resident", str(target.path), cut]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _table(title: str, cuts: Sequence[str], cells: Cells) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("cut", *MANNERS):
        table.add_column(heading, justify="right")
    for cut in cuts:
        found = (cells[manner, cut] for manner in MANNERS)
        row = (f"{one.latency_ms:.0f} ms, {one.bytes_up / 1e3:.1f} kB, {one.rounds:.1f}" for one in found)
        table.add_row(cut, *row)
    return table


if __name__ == "__main__":
    main()
