"""Coverage-guided fuzzing of every decoder: `python -m cutline.bench.fuzz [--executions 1000000] [--seconds 600]`.

Each decoder (cutline.bench.decoders) runs in a process of its own under Atheris, from its seeds and what is kept of
earlier runs in `--corpus`, until so many executions or seconds are over. A crash, an exception that is not a refusal,
an input that takes over five seconds, or memory over 2 GB ends it, and the input is kept beside the corpus.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

STATISTICS = {
    "executions": r"number_of_executed_units:\s+(\d+)",
    "memory": r"peak_rss_mb:\s+(\d+)",
    "slowest": r"slowest_unit_time_sec:\s+(\d+)",
}


@dataclass(frozen=True, slots=True)
class Run:
    """How a decoder fared: executions, seconds of its slowest input, peak memory in MB, last words where it fell."""

    executions: int
    slowest: int
    memory: int
    fell: str


def main() -> None:
    """Print the table; exit with 1 if a decoder fell."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--executions", type=int, default=1_000_000, help="of each decoder")
    parser.add_argument("--seconds", type=int, default=600, help="for each decoder at most")
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--only", default="", help="decoders, with commas")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args()
    if args.inside:
        _inside(args.inside, rest)
    from cutline.bench.decoders import DECODERS

    table = Table(title="Every decoder of outside input, fuzzed", title_justify="left")
    for heading in ("decoder", "executions", "slowest input", "peak memory", ""):
        table.add_column(heading, justify="left" if heading in ("decoder", "") else "right")
    console, fell, total = Console(width=120), False, 0
    for name in args.only.split(",") if args.only else DECODERS:
        console.print(f"[dim]{name}")
        run = fuzz(name, args.corpus / name, executions=args.executions, seconds=args.seconds)
        fell |= bool(run.fell)
        total += run.executions
        slowest = "under 1 s" if run.slowest == 0 else f"{run.slowest} s"
        table.add_row(name, f"{run.executions:,}", slowest, f"{run.memory} MB", run.fell)
    console.print(table)
    console.print(f"{total:,} executions in all")
    sys.exit(int(fell))


def fuzz(name: str, corpus: Path, *, executions: int, seconds: int) -> Run:
    """Fuzz one decoder in a process of its own, from its seeds and `corpus`, to which it adds."""
    from cutline.bench.decoders import seeds

    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    fuzzer = ["-print_final_stats=1", "-timeout=5", "-rss_limit_mb=2048", f"-artifact_prefix={corpus.parent}/{name}-"]
    limits = [f"-runs={executions}", f"-max_total_time={seconds}"]
    command = [sys.executable, "-m", "cutline.bench.fuzz", "--inside", name, *fuzzer, *limits, str(corpus)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    found = {key: re.search(pattern, done.stderr) for key, pattern in STATISTICS.items()}
    figures = {key: int(one.group(1)) if one else 0 for key, one in found.items()}
    last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    return Run(fell="" if done.returncode == 0 else last[0], **figures)


def _inside(name: str, arguments: list[str]) -> None:
    """Be the fuzzer's process; does not come back."""
    import atheris

    with atheris.instrument_imports(include=["cutline"], enable_loader_override=False):
        from cutline.bench.decoders import DECODERS

    atheris.Setup([sys.argv[0], *arguments], DECODERS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
