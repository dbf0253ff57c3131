"""Files are whole or not there, whatever fails while they are written."""

from __future__ import annotations

import ast
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cutline.core.storage.files import extend_file, is_draft, remove_drafts, write_file, write_new
from cutline.errors import InputError, StorageError

ROOT = Path(__file__).resolve().parents[3]
STEPS = 40  # that touch the disk, more than any of these writes takes

Before = dict[str, bytes]


class CrashError(BaseException):
    """The process ends here; nothing may catch it."""


def full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def failing(after: int, how: Callable[[], BaseException]) -> Iterator[list[int]]:
    """Fail at the `after`-th step that makes something on the disk; a write that fails has written half."""
    left = [after]

    def stepped(call: Callable[..., Any], *, halves: bool = False) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] < 0 and halves:
                call(given[0], given[1][: len(given[1]) // 2])
            if left[0] < 0:
                raise how()
            return call(*given, **named)

        return run

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "write", stepped(os.write, halves=True))
        for name in ("open", "fsync", "link", "fchmod"):
            patched.setattr(os, name, stepped(getattr(os, name)))
        patched.setattr(Path, "replace", stepped(Path.replace))
        yield left


def found(folder: Path) -> Before:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def write_one(folder: Path) -> None:
    write_file(folder / "one", b"new content")


def extend_one(folder: Path) -> None:
    extend_file(folder / "one", "new\n")


def write_two(folder: Path) -> None:
    write_new({folder / "a.key": b"secret", folder / "a.crt": b"shown"})


@pytest.mark.parametrize(
    ("write", "after"),
    [
        (write_one, {"one": b"new content"}),
        (extend_one, {"one": b"old\nnew\n"}),
        (write_two, {"one": b"old\n", "a.key": b"secret", "a.crt": b"shown"}),
    ],
)
@pytest.mark.parametrize("crash", [False, True], ids=["full", "crash"])
def test_a_write_that_fails_anywhere_leaves_what_was_there(
    tmp_path: Path, write: Callable[[Path], None], after: Before, crash: bool
) -> None:
    last = False
    for step in range(STEPS):
        folder = tmp_path / str(step)
        folder.mkdir()
        (folder / "one").write_bytes(b"old\n")
        before = found(folder)
        with suppress(CrashError), failing(step, CrashError if crash else full) as left:
            try:
                write(folder)
                assert left[0] >= 0, "a failure was passed over in silence"
            except StorageError:
                assert not crash
        last = left[0] >= 0
        whole = {name: content for name, content in found(folder).items() if not is_draft(name)}
        if not crash:
            assert whole == found(folder), "what was begun is removed"
        if write is write_two and crash:  # a kill may come between the two, each of which is whole
            assert whole.items() <= after.items()
        else:
            assert whole in (before, after)
        remove_drafts(folder)
        assert found(folder) == whole
        if last:
            assert whole == after
            break
    assert last


def test_a_new_file_has_the_rights_it_should_and_an_old_one_keeps_its_own(tmp_path: Path) -> None:
    def mode(name: str) -> int:
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    write_file(tmp_path / "open", b"")
    write_file(tmp_path / "secret", b"", private=True)
    extend_file(tmp_path / "list", "a\n")
    write_new({tmp_path / "key": b""})
    assert [mode(name) for name in ("open", "secret", "list", "key")] == [0o644, 0o600, 0o600, 0o600]
    (tmp_path / "secret").chmod(0o640)
    write_file(tmp_path / "secret", b"more", private=True)
    assert mode("secret") == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_stays_its_owners_when_root_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    extend_file(file, "a\n")
    os.chown(file, 12345, 23456)
    extend_file(file, "b\n")
    known = file.stat()
    assert (known.st_uid, known.st_gid, stat.S_IMODE(known.st_mode)) == (12345, 23456, 0o600)


def test_nothing_is_written_over_that_must_be_new(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"old")
    with pytest.raises(InputError, match=r"b is there already; move it away first"):
        write_new({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert found(tmp_path) == {"b": b"old"}


def test_a_link_stays_one_and_what_is_no_file_is_written_into(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    write_file(tmp_path / "link", b"content")
    assert (tmp_path / "link").readlink() == Path("file")
    assert (tmp_path / "file").read_bytes() == b"content"
    os.mkfifo(tmp_path / "pipe")
    heard = list[bytes]()
    reader = threading.Thread(target=lambda: heard.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_file(tmp_path / "pipe", b"content")
    reader.join()
    assert heard == [b"content"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    write_file(Path("/dev/null"), b"content")
    with pytest.raises(StorageError, match="cannot write /dev/full: No space left"):
        write_file(Path("/dev/full"), b"content")
    assert all(stat.S_ISCHR(Path(name).stat().st_mode) for name in ("/dev/null", "/dev/full"))


def test_the_name_of_an_open_pipe_is_written_into() -> None:
    """As of /dev/stdout in a pipe, which is a link to something that has no path."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as read, os.fdopen(writing, "wb"):
        write_file(Path(f"/dev/fd/{writing}"), b"content")
        assert os.read(read.fileno(), 100) == b"content"


@pytest.mark.parametrize("name", ["none/file", "folder", "file/below", "n" * 300])
def test_a_place_that_cannot_be_is_what_was_given(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=name):
        write_file(tmp_path / name, b"")
    with pytest.raises(InputError, match=name):
        write_new({tmp_path / name: b""})
    assert sorted(found_names(tmp_path)) == ["file", "folder"]


def test_a_long_name_may_be_written(tmp_path: Path) -> None:
    write_file(tmp_path / ("é" * 120), b"content")
    assert found(tmp_path) == {"é" * 120: b"content"}


def test_two_that_add_lines_at_once_both_do(tmp_path: Path) -> None:
    def add(number: int) -> None:
        for index in range(20):
            extend_file(tmp_path / "list", f"{number} {index}\n")

    threads = [threading.Thread(target=add, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (tmp_path / "list").read_text().splitlines()
    assert sorted(lines) == sorted(f"{number} {index}" for number in range(4) for index in range(20))


def test_lines_are_never_joined_to_half_a_line(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("a = 1")
    extend_file(tmp_path / "list", "b = 2\n")
    assert (tmp_path / "list").read_text() == "a = 1\nb = 2\n"


# What may be written otherwise, and why that is whole all the same.
OTHERWISE = {
    "core/storage/files.py": "here it is done",
    "cli/terminal/logs.py": "a log is only ever added to",
    "demo/train.py": "a model's own folder, made anew from the start",
    "protos/channel/credentials.py": "in memory, for OpenSSL",
    "edge/watch/spool.py": "its journal is only ever added to, and cut back where that fails",
    "models/hub/download.py": "parts of a file, under a name of their own until all of it is there and verified",
    "models/bundle.py": "a copy, verified and synced before it takes its place",
    "models/export/decoder.py": "in the work folder of an export, synced before it takes its place",
    "models/export/make.py": "likewise",
    "models/export/encoders/make.py": "likewise",
    "models/export/work.py": "its lock",
    "evaluation/records.py": "answers are only ever added to, by lines, and a torn one is cut back",
    "learning/learner.py": "the copies of a folder, in the work folder, which is renamed once whole",
}


def test_every_room_writes_by_these_means() -> None:
    """No other module of what serves people opens a file to write, or has a library do so."""
    writers = set[str]()
    for file in (file for room in (ROOT / ".dev" / "cutline").iterdir() for file in room.rglob("*.py")):
        name = file.relative_to(ROOT / ".dev" / "cutline").as_posix()
        if name.startswith(("bench/", "protos/v1/", "testing/")):
            continue
        if any(_writes(node) for node in ast.walk(ast.parse(file.read_text()))):
            writers.add(name)
    assert writers == set(OTHERWISE)


def _writes(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if called in {"write_text", "write_bytes", "save_file", "copyfile", "copy2"}:
        return True
    words = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    flags = [one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)]
    return called in {"open", "fdopen"} and (
        "O_CREAT" in flags or any(set(word) & set("wax") and len(word) <= 3 for word in words)
    )


def found_names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]
