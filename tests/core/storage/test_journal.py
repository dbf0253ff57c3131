"""What is in a journal outlives whatever ends the process, and is never taken for another work's."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cutline.core.storage.journal import open_journal
from cutline.errors import InputError, StorageError

PACKAGE = Path(__file__).resolve().parents[2] / ".dev"


def results(path: Path, inputs: str = "one") -> dict[str, bytes | None]:
    with open_journal(path, inputs=inputs) as journal:
        return {key: journal.get(key) for key in journal.names}


def begun(path: Path) -> bytes:
    with open_journal(path, inputs="one") as journal:
        journal.put("a", {"b": [1, 2.5, None]})
        journal.put("ü\n", "ü\n")
        assert journal.get("a") == b'{"b":[1,2.5,null]}'
        assert journal.get("c") is None
    return path.read_bytes()


def test_results_are_found_by_the_next_attempt_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    whole = begun(path)
    assert results(path) == {"a": b'{"b":[1,2.5,null]}', "ü\n": '"ü\\n"'.encode()}
    with open_journal(path, inputs="one") as journal:
        assert journal.found == 2
        journal.put("a", 3)  # the last one counts
    assert results(path)["a"] == b"3"
    assert path.read_bytes().startswith(whole)
    assert results(path, inputs="another") == {}
    assert results(path) == {}, "which was dropped for the other work"


def test_a_kill_at_any_byte_costs_the_line_that_it_cut(tmp_path: Path) -> None:
    whole = begun(tmp_path / "whole")
    lines = whole.splitlines(keepends=True)
    for cut in range(len(whole) + 1):
        path = tmp_path / "cut"
        path.write_bytes(whole[:cut])
        complete = whole[:cut].count(b"\n")
        found = results(path)
        assert len(found) == max(0, complete - 1)
        assert path.read_bytes() == b"".join(lines[: max(1, complete)])
        with open_journal(path, inputs="one") as journal:
            journal.put("next", 1)
        assert list(results(path)) == [*found, "next"]


KILLED = """
import os, signal, sys
from pathlib import Path
from cutline.core.storage.journal import open_journal
with open_journal(Path(sys.argv[1]), inputs="one") as journal:
    journal.put("a", 1)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_result_that_was_put_outlives_a_kill(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "journal")], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert results(tmp_path / "journal") == {"a": b"1"}


def test_where_there_is_no_room_all_before_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    whole = begun(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_journal(path, inputs="one") as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 5, before[1]))
        try:
            with pytest.raises(StorageError, match=r"cannot write .*journal: File too large"):
                journal.put("c", "d")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert path.read_bytes() == whole
        assert journal.get("c") is None
        journal.put("c", "d")
    assert list(results(path)) == ["a", "ü\n", "c"]


def test_a_journal_is_one_processes(tmp_path: Path) -> None:
    with open_journal(tmp_path / "journal", inputs="one"), pytest.raises(InputError, match="another process works on"):
        results(tmp_path / "journal")
    assert results(tmp_path / "journal") == {}


def test_a_journal_that_is_finished_is_gone(tmp_path: Path) -> None:
    with open_journal(tmp_path / "journal", inputs="one") as journal:
        journal.put("a", 1)
        journal.finish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"\xff\n", b"[" * 9999 + b"\n", b"{}\n", b'{"key": 1}\n'], ids=lambda one: repr(one[:5])
)
def test_a_line_that_does_not_read_ends_what_counts(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal"
    whole = begun(path)
    path.write_bytes(whole + content + b'{"key":"later","result":1}\n')
    assert len(results(path)) == 2
    assert path.read_bytes() == whole
    path.write_bytes(content + whole)
    assert results(path) == {}


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_of_ours_is_not_written_into(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "journal", tmp_path / "other"
    other.write_bytes(b"somebody's")
    match kind:
        case "link":
            path.symlink_to(other)
        case "pipe":
            os.mkfifo(path)
        case _:
            path.mkdir()
    with pytest.raises(InputError):
        results(path)
    assert other.read_bytes() == b"somebody's"
