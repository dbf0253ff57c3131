"""What a flood does to who waits for an answer: `python -m cutline.bench.priorities [--questions 200]`.

One agent asks the demo's worker about cards, one after another, in mode `cloud` and as `interactive`. Meanwhile others,
a process of their own at the lowest priority of the system, ask as many as they get answers to: none, some in the
`background`, and the same number with no less priority. Times are those of the first agent's answers.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle

import numpy as np
from rich.console import Console
from rich.table import Table

from cutline.cli.process.children import worker_process
from cutline.cli.setting import open_drafter
from cutline.core.request import Mode, Priority, Request
from cutline.demo.bundles import TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import CardRequest, requests
from cutline.edge.agent import Agent, AgentSettings
from cutline.errors import WorkerError

SETTINGS = AgentSettings(fresh=True)
FLOODS = (None, Priority.BACKGROUND, Priority.INTERACTIVE)


def main() -> None:
    """Measure and print; or, with `--flood`, ask for ever."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--others", type=int, default=12, help="that ask at once")
    parser.add_argument("--flood", nargs=2, metavar=("ADDRESS", "PRIORITY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.flood is not None:
        os.nice(19)  # it is the worker's time that is asked for, not that of the first agent
        asyncio.run(flood(args.flood[0], Priority(args.flood[1]), args.others))
        return
    table = Table(title=f"{args.questions} answers, {args.others} others at once")
    for heading in ("others", "first token, p50", "p99", "answer, p50", "p99", "p99 against none"):
        table.add_column(heading, justify="left" if heading == "others" else "right")
    calm = None
    for priority in FLOODS:
        with worker_process(TARGET, "--max-sessions", "16") as address, flooding(address, priority, args.others):
            first, whole = asyncio.run(asked(address, args.questions))
        calm = calm or float(np.quantile(whole, 0.99))
        times = [np.quantile(one, share) for one in (first, whole) for share in (0.5, 0.99)]
        ratio = f"{float(np.quantile(whole, 0.99)) / calm:.2f}"
        table.add_row(str(priority or "none"), *(f"{one:.0f} ms" for one in times), ratio)
    Console().print(table)


@contextmanager
def flooding(address: str, priority: Priority | None, others: int) -> Iterator[None]:
    """Others that ask the worker at `address`, where they have a `priority`."""
    if priority is None:
        yield
        return
    command = [sys.executable, "-m", "cutline.bench.priorities", "--flood", address, priority, "--others", str(others)]
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.kill()


async def flood(address: str, priority: Priority, others: int) -> None:
    """So many `others` that ask the worker at `address`, each as soon as it has an answer."""
    cards = cycle(list(requests(Split.CALIBRATION, 50, 0)))
    async with Agent(open_drafter(None), worker=address, threads=1, settings=SETTINGS) as agent:

        async def ask() -> None:
            for card in cards:
                try:
                    await agent.answer(_question(card, priority))
                except WorkerError:  # it has no room
                    await asyncio.sleep(0.05)

        await asyncio.gather(*(ask() for _ in range(others)))


async def asked(address: str, questions: int) -> tuple[list[float], list[float]]:
    """Milliseconds to the first token and to the end of each answer."""
    cards = cycle(list(requests(Split.EVALUATION, 50, 2)))
    async with Agent(open_drafter(None), worker=address, threads=1, settings=SETTINGS) as agent:
        for card, _ in zip(cards, range(20), strict=False):  # until all is warm, and the others are there
            await agent.answer(_question(card, Priority.INTERACTIVE))
        found = [
            await agent.answer(_question(card, Priority.INTERACTIVE))
            for card, _ in zip(cards, range(questions), strict=False)
        ]
    return [one.ttft_ms for one in found], [one.latency_ms for one in found]


def _question(card: CardRequest, priority: Priority) -> Request:
    return Request.about(card.image, card.question.text, mode=Mode.CLOUD, priority=priority, timeout=600.0)


if __name__ == "__main__":
    main()
