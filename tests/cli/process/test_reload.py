"""SIGHUP has a command that runs read its settings again, and say what came of it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cutline.demo.bundles import DRAFTER
from cutline.models.bundle import Bundle, copy_bundle, write_manifest

Start = Callable[..., Any]

PACKAGE = Path(__file__).resolve().parents[3] / ".dev"
LISTEN = 'listen = "127.0.0.1:0"\ninsecure = true\nthreads = 1\n'


def hung_up(process: Any) -> str:
    """What it says of its settings after SIGHUP, log lines before that left out."""
    process.signal(signal.SIGHUP)
    while "settings" not in (line := process.told()):
        assert line, "it ended"
    return str(line)


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


def test_an_agent_takes_new_limits_and_names_what_needs_a_restart(start: Start, settings: Path) -> None:
    settings.write_text(LISTEN + "requests = 3\n")
    agent = start("edge", "--config", settings, "--notice", "5")
    agent.address()
    assert "settings were read again: nothing changed" in hung_up(agent)
    settings.write_text(LISTEN + 'requests = 4\nnotice = 9\nmemory = 60\nlog = "json"\n')
    told = json.loads(hung_up(agent))["event"]  # an option stands above the file: --notice is as it was
    assert told == "settings were read again: log is json; requests is 4; memory changed and needs a restart"
    for broken, words in (("requests = 0", "0 requests at once are none"), ("requets = 1", "did you mean requests?")):
        settings.write_text(LISTEN + broken)
        assert "settings stay as they are: " in (line := hung_up(agent))
        assert words in line
    settings.write_text(LISTEN + "requests = 4\nlog = 'json'")
    assert "nothing changed" in hung_up(agent), "what was refused changed nothing"
    agent.signal(signal.SIGTERM)
    assert agent.finish().code == 0


def test_a_worker_writes_its_log_otherwise(start: Start, settings: Path) -> None:
    settings.write_text(LISTEN)
    worker = start("cloud", "--config", settings)
    worker.address()
    settings.write_text(LISTEN + 'log = "json"\ndrain = 3\n')
    told = json.loads(hung_up(worker))["event"]
    assert told == "settings were read again: log is json; drain changed and needs a restart"
    settings.unlink()
    assert "settings stay as they are: cannot read" in hung_up(worker)
    worker.signal(signal.SIGINT)
    ran = worker.finish()
    assert ran.code == 0
    assert "Traceback" not in ran.err


def test_a_watch_asks_otherwise_from_then_on(start: Start, settings: Path, card: Path, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "1.png").write_bytes(card.read_bytes())
    settings.write_text(f'source = ["{folder}"]\nask = "Describe the card."\nmode = "edge"\nthreads = 1\n')
    watch = start("watch", "--config", settings)
    whole = json.loads(watch.line())["answer"]
    with settings.open("a") as file:
        file.write("max-tokens = 2\nqueue = 9\n")
    assert "max-tokens is 2; queue changed and needs a restart" in hung_up(watch)
    (folder / "2.png").write_bytes(card.read_bytes())
    short = json.loads(watch.line())["answer"]
    assert whole.startswith(short)
    assert len(short) < len(whole)
    watch.signal(signal.SIGTERM)
    assert watch.finish().code == 0


WAITS = """
import threading
from cutline.cli.process.signals import Signals
with Signals():
    print("ready", flush=True)
    threading.Event().wait()
"""


@pytest.mark.skipif(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, reason="it was told not to, as by nohup")
def test_the_end_of_its_terminal_ends_a_command() -> None:
    _, terminal = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    command = [sys.executable, "-c", WAITS]
    with subprocess.Popen(command, stdin=terminal, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == -signal.SIGHUP


def test_an_agent_goes_on_with_another_drafter(start: Start, settings: Path, tmp_path: Path) -> None:
    for name in ("old", "new"):
        made = copy_bundle(Bundle.open(DRAFTER), tmp_path / name)
        write_manifest(made.path, msgspec.structs.replace(made.manifest, name=name))
    settings.write_text(f'{LISTEN}bundle = "{tmp_path / "old"}"\n')
    agent = start("edge", "--config", settings)
    agent.address()
    assert "nothing changed" in hung_up(agent)
    settings.write_text(f'{LISTEN}bundle = "{tmp_path / "new"}"\n')
    assert "bundle is" in hung_up(agent)
    assert "new drafts from now on, and keeps nothing until it has shown that it may" in agent.told()
    (tmp_path / "new" / "manifest.json").write_text("{}")
    assert "nothing changed" in hung_up(agent)
    assert "the drafter stays as it is: the manifest of" in agent.told()
    agent.signal(signal.SIGTERM)
    assert agent.finish().code == 0
