from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cutline.cli import profile
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.devices.link import LinkProfile, load_link
from cutline.devices.profile import DeviceProfile, load_profile
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.protos.client import WorkerClient
from cutline.protos.tensors import CHUNK

Run = Callable[..., Any]
PACKAGE = Path(__file__).resolve().parents[2] / ".dev"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fraction of the seconds that are usually spent on measuring."""
    for name in ("TARGET_SECONDS", "DRAFTER_SECONDS", "MESSAGE_SECONDS", "REST_SECONDS", "WORK_SECONDS"):
        monkeypatch.setattr(profile, name, 0.3)


RUN = """
import sys
from cutline.cli import main, profile
for name in ("TARGET_SECONDS", "DRAFTER_SECONDS", "MESSAGE_SECONDS", "REST_SECONDS", "WORK_SECONDS"):
    setattr(profile, name, 0.3)
sys.argv = ["cutline", "profile", "--threads", "1", "--out", sys.argv[1], "--json"]
try:
    main.main()
finally:
    print("imported:", *[name for name in ("torch", "transformers", "onnx") if name in sys.modules], file=sys.stderr)
"""


def test_a_device_is_profiled_without_torch_and_the_file_reads_back(tmp_path: Path) -> None:
    out = tmp_path / "my-board.toml"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.splitlines()[-1] == "imported:"
    printed = msgspec.json.decode(ran.stdout, type=DeviceProfile)
    read = load_profile(out)
    assert read.tables == printed.tables
    assert read.drafters == printed.drafters
    assert read.memory_bandwidth == pytest.approx(printed.memory_bandwidth)
    assert read.source == "measured"
    assert read.name == "my-board"
    assert read.cores == 1
    assert {"python", "onnxruntime"} <= read.versions.keys()
    target, drafter = Bundle.open(TARGET).manifest, Bundle.open(DRAFTER).manifest
    assert read.layer_table(target.identity, "edge") is not None
    assert read.layer_table(target.identity, "cloud") is None
    assert read.drafter_table(drafter.identity) is not None
    assert read.preprocess_seconds is not None
    for sensor, said in {"power": read.loaded_watts, "temperature": read.temperature_c}.items():
        assert (said is None) == (sensor in read.missing)


def test_a_worker_is_profiled_and_printed_as_toml(run: Run) -> None:
    ran = run("profile", "--as", "cloud", "--threads", "1")
    assert ran.code == 0, ran.err
    (table,) = tomllib.loads(ran.out)["tables"]
    assert table["runtime"] == "cloud"
    assert table["layers"].keys() == set(Bundle.open(TARGET).manifest.line.layers)
    assert "torch" in tomllib.loads(ran.out)["versions"]


def test_a_drafter_alone_needs_no_target(run: Run, bundle: Path) -> None:
    ran = run("profile", "--bundle", bundle, "--threads", "1", "--json")
    assert ran.code == 0, ran.err
    printed = msgspec.json.decode(ran.out, type=DeviceProfile)
    assert printed.tables == ()
    assert len(printed.drafters) == 1


def test_the_link_to_a_worker_is_measured(run: Run, worker: str, tmp_path: Path) -> None:
    out = tmp_path / "here.toml"
    ran = run("profile", "link", worker, "--seconds", "1", "--out", out)
    assert ran.code == 0, ran.err
    assert ran.out == f"wrote {out}\n"
    link = load_link(out)
    assert link.name == "here"
    assert link.rtt_ms < 500
    assert min(link.uplink_mbps, link.downlink_mbps) > 10
    assert "cutline profile link" in link.reference
    ran = run("profile", "link", worker, "--seconds", "1", "--json")
    assert msgspec.json.decode(ran.out, type=LinkProfile).source == "measured"


@pytest.mark.parametrize(("up", "down"), [(CHUNK + 1, 0), (0, CHUNK + 1)])
def test_a_probe_that_is_too_large_is_refused(worker: str, up: int, down: int) -> None:
    async def probe() -> None:
        async with WorkerClient(worker) as client:
            await client.probe(up=up, down=down)

    with pytest.raises(InputError, match=r"a probe takes .* at most"):
        asyncio.run(probe())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--as", "fog"), 2, "--as is fog; choose edge or cloud"),
        (("--device", "cuda"), 2, "--device is torch's"),
        (("--as", "cloud", "--device", "tpu"), 2, "--device tpu is not here"),
        (("--as", "cloud", "--bundle", "x"), 2, "--bundle"),
        (("--provider", "abacus"), 2, "abacus"),
        (("--threads", "0"), 2, "--threads is 0"),
        (("--image", "/nowhere.png"), 2, "cannot read /nowhere.png"),
        (("--bundle", "/nowhere"), 3, "no bundle at /nowhere"),
        (("--as", "cloud", "--target", "/nowhere"), 3, "no bundle at /nowhere"),
        (("--out", "/nowhere/x.toml"), 2, "--out /nowhere/x.toml"),
        (("lnik",), 2, "lnik"),
        (("link",), 2, "HOST:PORT"),
        (("--out", "x.toml", "link", "127.0.0.1:1"), 2, "stand after the word link"),
        (("link", "127.0.0.1:1"), 4, "no worker answers"),
        (("link", "nowhere"), 2, "nowhere"),
        (("link", "127.0.0.1:1", "--seconds", "0"), 2, "--seconds is 0"),
    ],
)
def test_bad_input_is_refused_in_one_line(run: Run, arguments: tuple[str, ...], code: int, words: str) -> None:
    assert words in run("profile", *arguments).failed(code)
