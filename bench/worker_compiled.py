"""A worker's layers compiled, against the same as they are: `python -m cutline.bench.worker_compiled [--rounds 21]`.

On the decoder of SmolVLM-256M's shape (seeded random weights), one thread: processor time of passes of 1, 4 and 16
sessions, of 8 drafted tokens, and of a prompt's 64, compiled and not in turn. Where in memory weights happen to lie
shows in such figures too, so a second copy that is not compiled stands beside: what it differs by, is noise.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from cutline.bench.worker_load import DTYPES, SESSIONS, pass_works, unexported
from cutline.cloud.model.model_runner import Capacity, Target
from cutline.models.layerline import END

KINDS = {
    "1": "1 session",
    "4": "4 sessions",
    "16": "16 sessions",
    "drafts": "8 drafted tokens",
    "prompt": "prompt of 64",
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(soft_wrap=True)
    with tempfile.TemporaryDirectory() as place:
        bundle = unexported(Path(place))
        for name, dtype in DTYPES.items():
            began = time.thread_time()
            compiled, plain, copy = (
                Target(
                    bundle,
                    Capacity(slots=SESSIONS, context=512),
                    layers=("decoder.0", END),
                    dtype=dtype,
                    compiled=chosen,
                )
                for chosen in (True, False, False)
            )
            console.print(f"[bold]{name}[/], loaded and compiled in {time.thread_time() - began:.0f} s")
            ours, theirs, others = pass_works(compiled), pass_works(plain), pass_works(copy)
            for kind, said in KINDS.items():
                ratio = ratio_of(ours[kind], theirs[kind], args.rounds)
                noise = ratio_of(others[kind], theirs[kind], args.rounds)
                console.print(f"{said}: compiled takes {ratio:.2f} of the time, a copy {noise:.2f}")


def ratio_of(one: Callable[[], object], other: Callable[[], object], rounds: int) -> float:
    """Median ratio of the processor time of `one` to that of the `other`; each is first every second round."""
    ratios = []
    for index in range(rounds + 1):
        taken = {}
        for work in (one, other)[:: -1 if index % 2 else 1]:
            began = time.thread_time()
            work()
            taken[work] = time.thread_time() - began
        ratios.append(taken[one] / taken[other])
    return statistics.median(ratios[1:])


if __name__ == "__main__":
    main()
