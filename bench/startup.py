"""What the edge costs to start and to keep: `python -m cutline.bench.startup`.

Times `cutline ask --mode edge` from process start to answer, beside a bare `python -c pass`, and weighs an agent's
process (resident memory) before and after it has answered in every mode, with the demo's drafter. Runs alternate, so
that a slow spell of the machine hits both sides.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from statistics import median

import httpx
import psutil
from rich.console import Console
from rich.progress import track

from cutline.cli.process.children import agent_process, worker_process
from cutline.core.request import Request
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.publish import EXAMPLES
from cutline.demo.results import SHOWN_MODES
from cutline.edge.api.client import ask_over

CARD = EXAMPLES / "card1.png"
ASK = [sys.executable, "-m", "cutline.cli", "ask", str(CARD), "Describe the card.", "--mode", "edge", "--json"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    args = parser.parse_args()
    asks, bare = [], []
    for _ in track(range(args.runs), "starting processes"):
        asks.append(seconds(ASK))
        bare.append(seconds([sys.executable, "-c", "pass"]))
    sizes = resident()
    console = Console()
    console.print(
        f"cutline ask --mode edge, process start to answer: median {median(asks):.2f} s, worst {max(asks):.2f} s"
    )
    console.print(f"python -c pass: median {median(bare):.2f} s")
    console.print(f"agent's resident memory: {', '.join(f'{size:.0f} MB {when}' for when, size in sizes.items())}")


def seconds(command: list[str]) -> float:
    """Wall-clock seconds that a command takes."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return time.perf_counter() - began


def resident() -> dict[str, float]:
    """Megabytes that an agent with a worker holds at rest, and after 50 answers in each mode in turn."""
    sizes: dict[str, float] = {}
    with worker_process(TARGET) as worker, agent_process(DRAFTER, worker) as address:
        processes = psutil.Process().children(recursive=True)
        agent = next(process for process in processes if "edge" in process.cmdline())
        sizes["at rest"] = agent.memory_info().rss / 1e6

        async def ask() -> None:
            async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as client:
                for mode in SHOWN_MODES:
                    question = Request.about(CARD.read_bytes(), "Describe the card.", mode=mode)
                    for _ in range(50):
                        await ask_over(client, question)
                    sizes[f"after mode {mode}"] = agent.memory_info().rss / 1e6

        asyncio.run(ask())
    return sizes


if __name__ == "__main__":
    main()
