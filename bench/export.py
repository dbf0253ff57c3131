"""What an export takes at the size of a real model: `python -m cutline.bench.export [--folder DIR]`.

Exports a folder of SmolVLM-256M's shape (seeded random weights unless --folder names another) as a target and as
drafters, each by a process of its own; prints minutes, the most memory it held, and the bundle's size.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cutline.testing.models.random_models import make_smolvlm_256m

EXPORTS = (("target", "fp32"), ("target", "int8"), ("drafter", "int8"), ("drafter", "int4"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="a Hugging Face folder, instead of random weights")
    args = parser.parse_args()
    console = Console()
    table = Table(title="cutline export")
    for heading in ("role", "precision", "seconds", "most memory", "bundle"):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory() as place:
        folder = args.folder or Path(place) / "model"
        if args.folder is None:
            with console.status("making a model"):
                make_smolvlm_256m(folder)
        for role, precision in EXPORTS:
            out = Path(place) / f"{role}-{precision}"
            with console.status(f"exporting a {role} as {precision}"):
                seconds, memory = measured(folder, "--out", str(out), "--role", role, "--precision", precision)
            size = sum(file.stat().st_size for file in out.iterdir())
            table.add_row(role, precision, f"{seconds:.0f}", f"{memory / 1e9:.2f} GB", f"{size / 1e6:.0f} MB")
    console.print(table)


def measured(folder: Path, *options: str) -> tuple[float, int]:
    """Seconds of one export, and the most bytes that its process had resident."""
    command = [sys.executable, "-m", "cutline.cli", "export", str(folder), *options]
    began = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(said)
    return time.perf_counter() - began, usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
