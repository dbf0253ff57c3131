"""What faults do to answers: `python -m cutline.bench.faults [--faults 1000] [--seed 1] [--kill-at-random-token 100]`.

Agents ask workers, processes of their own, over links that break, go silent, lag, crawl, cut off or change what they
carry, while workers are killed, frozen, drained and started again: alone, with another worker to go to, in a chain of
two, and over TLS, each in all modes, at moments drawn from the seed. Every answer is held against the unsplit target's.
At the end nothing may be left of any session, and no process may have more descriptors or threads than before.

With --kill-at-random-token the link of the first of two workers dies so often at a random token instead, in turn by a
reset and in silence, over links with a round trip of --rtt-ms. Exits with 1 if something is not as it must be.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from cutline.bench.faults.cases import Fault, Setup
from cutline.bench.faults.killing import killing
from cutline.bench.faults.storm import storm

NOTICE = 0.5


def main() -> None:
    """Break things, print, and exit with 1 if an answer was wrong or something was left."""
    parser = argparse.ArgumentParser(
        prog="python -m cutline.bench.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--notice", type=float, default=NOTICE, help="of the agents, in seconds")
    parser.add_argument("--setups", default=",".join(Setup), help="which, with commas")
    parser.add_argument("--without", default="", help="faults to leave out, with commas")
    parser.add_argument("--kill-at-random-token", type=int, metavar="RUNS")
    parser.add_argument("--rtt-ms", type=float, default=40.0)
    args = parser.parse_args()
    console = Console(width=130)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if args.kill_at_random_token:
            good = asyncio.run(
                killing(args.kill_at_random_token, args.seed, folder, console, notice=args.notice, rtt_ms=args.rtt_ms)
            )
        else:
            setups = [Setup(one) for one in args.setups.split(",")]
            without = [Fault(one) for one in args.without.split(",") if one]
            good = asyncio.run(
                storm(args.faults, args.seed, folder, console, setups=setups, without=without, notice=args.notice)
            )
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
