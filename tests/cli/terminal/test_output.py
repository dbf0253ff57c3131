"""What commands print: no figure is cut off at any width, and a stream that cannot be written is one line."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from cutline.cli.terminal.tables import show_table
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.errors import StorageError

Run = Callable[..., Any]
CUTLINE = [sys.executable, "-m", "cutline.cli"]
PLAN = ["plan", "--edge", "raspberry-pi-5", "--cloud", "l4", "--link", "3g", "--explain"]
TABLES = {
    "plan": PLAN,
    "target": ["bundle", "show", str(TARGET)],
    "drafter": ["bundle", "show", str(DRAFTER)],
    "doctor": ["doctor"],
}


def shown(table: Table, width: int, *, terminal: bool) -> str:
    file = io.StringIO()
    show_table(Console(file=file, width=width, force_terminal=terminal, color_system=None), table)
    return file.getvalue()


@given(
    rows=st.lists(st.lists(st.integers(0, 10**14).map(str), min_size=4, max_size=4), min_size=1, max_size=5),
    width=st.integers(20, 200),
    terminal=st.booleans(),
)
def test_every_figure_of_a_table_is_whole_at_any_width(rows: list[list[str]], width: int, terminal: bool) -> None:
    table = Table("name", "bytes", "milliseconds", "joules")
    for row in rows:
        table.add_row(*row)
    found = re.findall(r"\d+", shown(table, width, terminal=terminal))
    assert sorted(found) == sorted(cell for row in rows for cell in row)


def test_a_table_that_fits_stays_one_and_a_wider_one_becomes_a_list() -> None:
    table = Table("plan", "bytes up")
    table.add_row("cloud", "219934")
    assert "┃ bytes up ┃" in shown(table, 40, terminal=True)
    assert shown(table, 12, terminal=True).split() == ["cloud", "bytes", "up", "219934"]
    assert "┃ bytes up ┃" in shown(table, 12, terminal=False)


_FIGURES: dict[tuple[str, ...], Counter[str]] = {}


def figures_of(run: Run, *command: str) -> Counter[str]:
    """What a command prints as figures where there is room; it is run once."""
    if command not in _FIGURES:
        _FIGURES[command] = Counter(re.findall(r"\d[\d.,]*\d", run(*command).out))
    return _FIGURES[command]


@pytest.mark.parametrize("width", ["60", "80", "200", "pipe"])
@pytest.mark.parametrize("command", TABLES.values(), ids=TABLES.keys())
def test_no_command_cuts_a_figure_off(
    command: list[str], width: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = figures_of(run, *command)
    monkeypatch.setenv("COLUMNS", "80" if width == "pipe" else width)
    if width != "pipe":
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        monkeypatch.setenv("NO_COLOR", "1")
    out = re.sub(r"\x1b\[[0-9;]*m", "", run(*command).out)
    assert "…" not in out
    if command != ["doctor"]:  # what is free and how hot it is changes from one run to the next
        assert not figures - Counter(re.findall(r"\d[\d.,]*\d", out))


def test_the_bytes_of_a_plan_are_whole_in_a_pipe() -> None:
    ask = [*CUTLINE, *PLAN, "--image", str(TARGET.parent.parent / "examples" / "card1.png")]
    planned = json.loads(subprocess.run([*ask, "--json"], capture_output=True, check=True).stdout)
    text = subprocess.run(ask, capture_output=True, check=True, text=True).stdout
    for plan in (planned["plan"], *planned["runners_up"]):
        assert f"{plan['bytes_up']:.0f}" in text


@pytest.mark.parametrize(
    "command",
    [
        ["ask", str(TARGET.parent.parent / "examples" / "card1.png"), "Read the digits.", "--mode", "edge"],
        ["watch", "--source", str(TARGET.parent.parent / "examples"), "--ask", "Read.", "--mode", "edge", "--once"],
        ["bundle", "show", str(TARGET)],
        ["plan", "--json"],
        ["--help"],
        ["--version"],
    ],
    ids=lambda command: command[0],
)
def test_output_on_a_full_disk(command: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run([*CUTLINE, *command], stdout=full, stderr=subprocess.PIPE, text=True)
    assert ran.returncode == StorageError.exit_code
    assert ran.stderr.splitlines()[-1].startswith("cutline: ")
    assert "No space left on device" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_output_that_nobody_reads() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as unread:
        ran = subprocess.run([*CUTLINE, *PLAN], stdout=unread, stderr=subprocess.PIPE, text=True)
    assert (ran.returncode, ran.stderr) == (141, "")


def test_what_was_printed_stays_where_another_file_cannot_be_written() -> None:
    probe = (
        "import sys\n"
        "from cutline.cli import main\n"
        "from cutline.errors import StorageError\n"
        "@main.app.command()\n"
        "def probe() -> None:\n"
        "    sys.stdout.buffer.write(b'the result')\n"
        "    raise StorageError('cannot write the report')\n"
        "sys.argv = ['cutline', 'probe']\n"
        "main.main()\n"
    )
    ran = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (12, "the result", "cutline: cannot write the report\n")


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=pytest.mark.proof)])
def test_an_encoding_that_lacks_characters(encoding: str) -> None:
    card = str(TARGET.parent.parent / "examples" / "card1.png")
    for command in (["ask", card, "Read.", "--mode", "edge", "--verbose"], ["doctor"], ["bundle", "show", str(TARGET)]):
        ran = subprocess.run([*CUTLINE, *command], env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True)
        assert b"Traceback" not in ran.stderr
        assert ran.returncode in (0, 8)


def test_an_interrupt_while_the_commands_are_imported() -> None:
    """Held up where the import begins, so that the signal always comes in the middle of it."""
    begin = (
        "import sys, os, signal, cutline.cli.entry\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer':\n"
        "            os.kill(os.getpid(), int(sys.argv[1]))\n"
        "sys.meta_path.insert(0, Finder())\n"
        "cutline.cli.entry.main()\n"
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        ran = subprocess.run([sys.executable, "-c", begin, str(int(number))], capture_output=True, text=True)
        assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "cutline: interrupted\n")


def test_the_version(run: Run) -> None:
    ran = run("--version")
    assert (ran.code, ran.out) == (0, f"cutline {version('cutline')}\n")
