"""Folders where ranks meet: removed at the end, or by who starts next where the end was a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cutline.cloud.serving.rendezvous import rendezvous

PACKAGE = Path(__file__).resolve().parents[3] / ".dev"

SCRIPT = """
from cutline.cloud.serving.rendezvous import rendezvous
with rendezvous() as folder:
    (folder / "store").write_text("")
    print(folder, flush=True)
    input()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # it is found anew
    return tmp_path


def test_what_a_killed_worker_left_is_removed_and_what_another_one_holds_is_not(temporary: Path) -> None:
    command, environment = [sys.executable, "-c", SCRIPT], os.environ | {"PYTHONPATH": str(PACKAGE)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        assert left.parent == temporary
        with rendezvous() as ours:
            assert {left, ours} == set(temporary.iterdir())
        assert not ours.exists()
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert (left / "store").exists()
    with rendezvous() as ours:
        assert [ours] == list(temporary.iterdir())
    assert list(temporary.iterdir()) == []


def test_only_its_owner_reaches_it(temporary: Path) -> None:
    with rendezvous() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700


def test_what_only_looks_like_a_folder_of_ranks_is_left_alone(temporary: Path) -> None:
    precious = temporary / "precious"
    precious.mkdir()
    link = temporary / "cutline-ranks-link"
    link.symlink_to(precious)
    file = temporary / "cutline-ranks-file"
    file.write_text("mine")
    with rendezvous():
        assert link.is_symlink()
        assert precious.is_dir()
        assert file.read_text() == "mine"
