"""No command looks up or connects to anybody who was not named to it, or writes below a home folder.

Libraries that report to their makers keep quiet where they see a CI system or a test, so these variables are taken out
of the environment. Look-ups and connections are counted in the C library, where all that a process makes pass.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.publish import EXAMPLES

QUIETING = re.compile(
    r"CI|CONTINUOUS_INTEGRATION|BUILD_.*|GITHUB_.*|GITLAB_.*|PYTEST_.*|ORT_.*|HF_.*|RAY_.*|DO_NOT_TRACK|TF_BUILD"
)
NOWHERE = "127.0.0.1:1"
PICTURE = str(EXAMPLES / "card1.png")
COMMANDS = {
    "help": ["--help"],
    "ask": ["ask", PICTURE, "Read the digits.", "--mode", "edge"],
    "ask, no worker": ["ask", PICTURE, "Describe the card.", "--worker", NOWHERE, "--mode", "auto", "--timeout", "3"],
    "bundle": ["bundle", "show", str(TARGET)],
    "doctor": ["doctor"],
    "health": ["health", NOWHERE],
    "plan": ["plan", "--edge", "raspberry-pi-5", "--cloud", "l4", "--link", "4g"],
    "keys": ["keys", "init", "keys"],
    "list": ["list"],
    "ask, a model that is not here": ["ask", PICTURE, "Describe the card.", "--model", "maker/model"],
    "export, a model that is not here": ["export", "maker/model", "--role", "drafter"],
    "watch": ["watch", "--source", str(EXAMPLES), "--ask", "Read the digits.", "--mode", "edge", "--once"],
}
LIBRARIES = "onnxruntime", "onnxruntime_genai", "transformers"
IMPORTED = """
import importlib, sys, time
importlib.import_module(sys.argv[1])
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[2])
for name in sys.argv[3:]:
    importlib.import_module(name)
"""


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that counts look-ups."""
    built = tmp_path_factory.mktemp("lookups") / "lookups.so"
    source, compiler = Path(__file__).with_name("lookups.c"), shutil.which("gcc")
    assert compiler is not None
    subprocess.run([compiler, "-shared", "-fPIC", "-o", built, source, "-ldl"], check=True)
    return built


@pytest.fixture
def watched(tmp_path: Path, counter: Path) -> Iterator[dict[str, str]]:
    """The environment of a process that sees neither a CI system nor a test; what it did must be nothing."""
    home, lookups = tmp_path / "home", tmp_path / "lookups"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not QUIETING.fullmatch(name)}
    yield kept | {"HOME": str(home), "LOOKUPS": str(lookups), "LD_PRELOAD": str(counter)}
    names = set(lookups.read_text().split()) if lookups.exists() else set()
    assert names <= {"127.0.0.1", "::1", "::ffff:127.0.0.1", "localhost"}
    assert [str(path) for path in home.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_command_looks_nobody_up(command: list[str], watched: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cutline.cli", *command], env=watched, cwd=tmp_path, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    assert done.stdout or done.stderr


@pytest.mark.parametrize(
    "command", [["cloud", "--bundle", str(TARGET)], ["edge", "--bundle", str(DRAFTER), "--offline"]]
)
def test_a_server_looks_nobody_up(command: list[str], watched: dict[str, str]) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "cutline.cli", *command, "--insecure", "--listen", "127.0.0.1:0", "--threads", "1"],
        env=watched,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with server:
        assert server.stdout is not None
        line = server.stdout.readline()
        server.terminate()
    assert " listens at " in line


@pytest.mark.parametrize("room", ["cutline.edge.agent", "cutline.devices.measurement.rates", "cutline.models.export"])
def test_a_room_keeps_its_libraries_quiet(room: str, watched: dict[str, str]) -> None:
    """Also where Cutline is a library of someone else's program."""
    graph = str(DRAFTER / "decoder.onnx")
    subprocess.run([sys.executable, "-c", IMPORTED, room, graph, *LIBRARIES], env=watched, check=True)


def test_the_counter_counts(watched: dict[str, str], tmp_path: Path) -> None:
    asked = """
import socket
try: socket.getaddrinfo('name.invalid', 1)
except OSError: pass
socket.socket(type=socket.SOCK_DGRAM).connect(('192.0.2.1', 9))  # for documents alone, and nothing is sent
"""
    subprocess.run([sys.executable, "-c", asked], env=watched, check=True)
    lookups = tmp_path / "lookups"
    assert lookups.read_text() == "name.invalid\n192.0.2.1\n"
    lookups.unlink()
