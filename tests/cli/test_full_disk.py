"""Commands that write, where there is no room: what was there stays, one line says so, and the exit code is 12."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from cutline.cli.terminal import logs
from cutline.core import telemetry
from cutline.demo.bundles import DRAFTER
from cutline.models.bundle import Bundle
from cutline.models.hub import download
from cutline.testing.hub import SmallHub

Run = Callable[..., Any]
Full = Callable[[Path], AbstractContextManager[None]]

NO_ROOM = 12


@contextlib.contextmanager
def _limited(folder: Path) -> Iterator[None]:
    """Nobody in this process can make a file longer than some bytes: a write of more fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def _filled(folder: Path) -> Iterator[None]:
    """The file system that holds `folder` has no room left."""
    ballast = folder / ".ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    try:
        yield
    finally:
        ballast.unlink()


@pytest.fixture(params=["limited", "tmpfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Full]]:
    """A folder, and what takes the room in it away for as long as it is entered."""
    if request.param == "limited":
        yield tmp_path, _limited
        return
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount") is not None
    mount = ["mount", "-t", "tmpfs", "-o", "size=1M", "cutline-test", str(folder)]
    if not mounted or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a file system of its own needs root")
    try:
        yield folder, _filled
    finally:
        subprocess.run(["umount", str(folder)], check=True)  # noqa: S607


def content(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != ".ballast")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def check(run: Run, disk: tuple[Path, Full], *arguments: str | Path) -> None:
    """That a command says what it could not write, and nothing of what was there has changed."""
    folder, full = disk
    before = content(folder)
    with full(folder):
        ran = run(*arguments)
        after = content(folder)
    assert ran.code == NO_ROOM, ran.err
    assert ran.err.splitlines()[-1].startswith("cutline: cannot write ")
    assert "Traceback" not in ran.err
    assert "what was there is as it was" in ran.err
    assert after == before


def test_keys(run: Run, disk: tuple[Path, Full]) -> None:
    folder, _ = disk
    keys, tokens = folder / "keys", folder / "tokens.toml"
    check(run, disk, "keys", "init", keys)
    assert run("keys", "init", keys, "--device", "camera1").code == 0, "a try that failed is not in the way"
    assert run("keys", "token", tokens, "first").code == 0
    check(run, disk, "keys", "add-device", keys, "camera2")
    check(run, disk, "keys", "add-server", keys, "worker2")
    check(run, disk, "keys", "revoke", keys, "camera1")
    check(run, disk, "keys", "token", tokens, "second")
    check(run, disk, "keys", "token", tokens, "second", "--out", folder / "second.token")
    assert run("keys", "revoke", keys, "camera1").code == 0
    assert run("keys", "token", tokens, "second", "--out", folder / "second.token").code == 0


@pytest.mark.parametrize("name", ["plan.svg", "plan.png", "plan.pdf"])
def test_a_plot(run: Run, disk: tuple[Path, Full], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutline.cli.planning.plot._STEPS", 6)  # whatever is drawn, it does not fit
    plot = disk[0] / name
    plot.write_bytes(b"last year's")
    folder, full = disk
    with full(folder):
        ran = run("plan", "--plot", plot)
    assert ran.code == NO_ROOM
    assert "cutline: cannot write" in ran.err
    assert plot.read_bytes() == b"last year's"


def test_a_profile(run: Run, disk: tuple[Path, Full], worker: str) -> None:
    out = disk[0] / "link.toml"
    out.write_bytes(b"last year's")
    check(run, disk, "profile", "link", worker, "--seconds", "1", "--out", out)


def test_a_copy(run: Run, disk: tuple[Path, Full]) -> None:
    check(run, disk, "bundle", "copy", DRAFTER, disk[0] / "copy")


def test_a_calibration(run: Run, disk: tuple[Path, Full], worker: str) -> None:
    """Of a drafter whose big files lie elsewhere, so that the disk may be small."""
    folder, _ = disk
    bundle = folder / "drafter"
    bundle.mkdir()
    for file in DRAFTER.iterdir():
        shutil.copyfile(file, bundle / file.name)
    check(
        run,
        disk,
        "calibrate",
        "--bundle",
        bundle,
        "--worker",
        worker,
        "--cards",
        "1",
        "--price-cards",
        "0",
        "--groups",
        "one picture, picture first, first question",
    )
    Bundle.open(bundle)


@pytest.mark.parametrize("made", ["", "half"])
def test_a_report(run: Run, disk: tuple[Path, Full], made: str) -> None:
    report = disk[0] / "demo.html"
    if made:
        report.write_text("last year's")
    folder, full = disk
    with full(folder):
        ran = run("demo", "--images", "1", "--link", "ethernet", "--report", report)
    assert ran.code == NO_ROOM
    assert "cutline: cannot write" in ran.err
    assert (report.read_text() if report.exists() else "") == ("last year's" if made else "")


def test_an_audit_that_finds_no_room_is_said_once_and_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def record(number: int) -> logging.LogRecord:
        return logging.LogRecord("cutline.audit", logging.INFO, "", 0, f"event {number} {'x' * 40}", None, None)

    audit = logs.AuditFile(tmp_path / "audit", encoding="utf-8")
    with contextlib.closing(audit):
        with _limited(tmp_path):
            audit.emit(record(1))
            audit.emit(record(2))
        audit.emit(record(3))
        assert [one.getMessage() for one in caplog.records] == [
            f"the audit file {tmp_path / 'audit'} cannot be written: File too large"
        ]
        with _limited(tmp_path):
            audit.emit(record(4))
        assert len(caplog.records) == 2
    assert [line.split()[1] for line in (tmp_path / "audit").read_text().splitlines()] == ["1", "2", "3", "4"]
    assert capsys.readouterr().err == ""


def test_a_pull(run: Run, disk: tuple[Path, Full], monkeypatch: pytest.MonkeyPatch) -> None:
    """What came stays for the next attempt, which goes on; it is no model before all of it is there."""
    folder, full = disk
    weights = {"config.json": b"{}" * 100, "tokenizer.json": b"{}", "model.safetensors": bytes(range(256)) * 100}
    hub = SmallHub("maker/model", weights)
    monkeypatch.setenv("CUTLINE_HOME", str(folder))
    monkeypatch.setattr(telemetry, "_GIVEN", "")
    monkeypatch.setattr(download, "SPARE", -(1 << 40))  # so that the room is gone behind its back
    with hub.serving() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        with full(folder):
            ran = run("pull", "maker/model")
            assert (ran.code, ran.out) == (NO_ROOM, "")
            assert "make room and try again" in ran.err.splitlines()[-1]
            assert "weights" not in {one["kind"] for one in json.loads(run("list", "--json").out)["models"]}
        ran = run("pull", "maker/model")
        assert ran.code == 0, ran.err
    pulled = Path(ran.out.strip())
    assert {name: (pulled / name).read_bytes() for name in weights} == weights
