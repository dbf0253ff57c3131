"""What runs on a device imports nothing heavy: proven in a fresh interpreter, where import-linter only reads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cutline.cli.process.children import agent_process
from cutline.demo.bundles import DRAFTER

PACKAGE = Path(__file__).resolve().parent.parent / ".dev" / "cutline"
DEVICE_ROOMS = ("cli", "devices", "edge", "errors", "models", "partitioner", "protos")
EXPORTER = "cutline.models.export"
# The first row does not come with a bare install; the second costs a small board 0.2 to 0.3 s each.
HEAVY = ("av", "torch", "transformers", "onnx", "onnxscript", "onnxruntime_genai", "matplotlib", "sklearn", "scipy")
SLOW = ("fastapi", "huggingface_hub", "pydantic_settings")

PROBE = """
import importlib, sys
heavy, modules = sys.argv[1].split(","), sys.argv[2:]
for module in modules:
    importlib.import_module(module)
    if brought := [name for name in heavy if name in sys.modules]:
        sys.exit(f"{module} imports {', '.join(brought)}")
"""


def modules(room: str) -> list[str]:
    """Every module of a room, the exporter left out."""
    found = (path.relative_to(PACKAGE).with_suffix("") for path in (PACKAGE / room).rglob("*.py"))
    dotted = (".".join(("cutline", *path.parts)).removesuffix(".__init__") for path in found)
    return sorted(name for name in dotted if not f"{name}.".startswith(f"{EXPORTER}."))


def probe(room: str, heavy: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROBE, ",".join(heavy), *modules(room)]
    environment = {"PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("room", DEVICE_ROOMS)
def test_a_room_of_the_device_imports_nothing_heavy(room: str) -> None:
    assert f"cutline.{room}" in modules(room)
    ran = probe(room, HEAVY + SLOW)
    assert ran.returncode == 0, ran.stderr


def test_the_probe_sees_what_is_imported() -> None:
    ran = probe("models", ("hashlib",))
    assert ran.returncode == 1
    assert ran.stderr.strip().endswith("imports hashlib")


RUN = """
import sys
from cutline.cli.main import main
heavy, sys.argv = sys.argv[1].split(","), ["cutline", *sys.argv[2:]]
try:
    main()
finally:
    print("imported:", *[name for name in heavy if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize("command", ["ask", "edge"])
def test_a_command_of_the_device_runs_without_anything_heavy(command: str) -> None:
    """Lazy imports included: the commands answer a question, and what was imported is looked at afterwards."""
    card = str(PACKAGE / "demo" / "examples" / "card1.png")
    asking = ["ask", card, "Describe the card.", "--mode", "edge"]
    if command == "edge":
        with agent_process(DRAFTER, "127.0.0.1:1") as address:
            loaded = Path(f"/proc/{child_named('edge').pid}/maps").read_text()
            asking += ["--agent", f"http://{address}"]
            ran = run(asking)
            assert "torch" not in loaded
            assert "onnxruntime" in loaded
    else:
        ran = run(asking)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("The card shows")
    assert ran.stderr.splitlines()[-1] == "imported:"


def test_a_model_by_name_is_opened_without_what_pulls_it(tmp_path: Path) -> None:
    shutil.copytree(DRAFTER, tmp_path / "bundles" / "team--digits--drafter")
    card = str(PACKAGE / "demo" / "examples" / "card1.png")
    asked = ["ask", card, "Describe the card.", "--mode", "edge", "--model", "team/digits"]
    ran = run(asked, "httpx", "cutline.models.hub.download", home=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("The card shows")
    assert ran.stderr.splitlines()[-1] == "imported:"


def test_a_bundle_is_pulled_without_the_library_of_a_hub() -> None:
    ran = run(["pull", "http://127.0.0.1:1/digits"])
    assert ran.returncode == 4, ran.stderr
    assert ran.stderr.splitlines()[-1] == "imported:"


def test_watching_a_folder_runs_without_anything_heavy() -> None:
    cards = str(PACKAGE / "demo" / "examples")
    ran = run(["watch", "--source", cards, "--ask", "Describe the card.", "--mode", "edge", "--once"])
    assert ran.returncode == 0, ran.stderr
    assert "The card shows" in ran.stdout
    assert ran.stderr.splitlines()[-1] == "imported:"


def test_the_doctor_looks_without_anything_heavy() -> None:
    """Nor does it load what it may find broken: ONNX Runtime is tried in processes of its own."""
    ran = run(["doctor"], "onnxruntime")
    assert ran.returncode in (0, 8), ran.stderr
    assert ran.stderr.splitlines()[-1] == "imported:"


@pytest.mark.parametrize("arguments", [["plan"], ["bundle", "show", str(DRAFTER)]])
def test_a_command_that_only_computes_imports_nothing_heavy(arguments: list[str]) -> None:
    ran = run(arguments)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.splitlines()[-1] == "imported:"


def run(arguments: list[str], *more: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, ",".join(HEAVY + SLOW + more), *arguments]
    environment = {"PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    environment |= {} if home is None else {"CUTLINE_HOME": str(home)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def child_named(word: str) -> psutil.Process:
    return next(child for child in psutil.Process().children(recursive=True) if word in child.cmdline())
