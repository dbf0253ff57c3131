from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from stat import S_ISREG
from typing import Any

import pytest
from PIL import Image

from cutline.edge.watch.change_detection import Changes
from cutline.edge.watch.frames import Folder, Frame, Notify
from cutline.edge.watch.sources import open_sources
from cutline.edge.watch.spool import Spool
from cutline.errors import InputError

LOOK = 0.02
SECONDS = 60  # that a look may take to be noticed on a busy machine


def picture(level: int) -> bytes:
    out = BytesIO()
    Image.new("L", (32, 24), level).save(out, "PNG")
    return out.getvalue()


def folder(
    path: Path, *, once: bool = False, changes: Changes | None = None, notify: Notify = lambda line: None
) -> Folder:
    return Folder(path, name="here", changes=changes, once=once, notify=notify, poll=LOOK)


def taken(path: Path, changes: Changes | None = None) -> list[Frame]:
    return list(folder(path, once=True, changes=changes).frames(threading.Event()))


def put(file: Path, content: bytes) -> None:
    """As one does who wants no half a file to be seen."""
    draft = file.parent / f".{file.name}"
    draft.write_bytes(content)
    draft.replace(file)


def test_what_lies_there_is_taken_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.webp", "notes.txt", ".hidden.png"):
        put(tmp_path / name, name.encode())
    (tmp_path / "d.png").mkdir()
    frames = taken(tmp_path)
    assert [(frame.file, frame.image, frame.number) for frame in frames] == [
        ("a.JPG", b"a.JPG", 1),
        ("b.png", b"b.png", 2),
        ("c.webp", b"c.webp", 3),
    ]
    assert len({frame.id for frame in frames}) == 3
    assert {frame.source for frame in frames} == {"here"}


def test_a_file_has_the_same_id_again_until_it_changes(tmp_path: Path) -> None:
    put(tmp_path / "a.png", b"1")
    (first,) = taken(tmp_path)
    assert taken(tmp_path) == [first]
    put(tmp_path / "a.png", b"2")
    os.utime(tmp_path / "a.png", (1, 1))
    (changed,) = taken(tmp_path)
    assert changed.id != first.id
    assert changed.taken == 1.0


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[Path, list[str]]]:
    """A folder, and the contents that are taken from it meanwhile."""
    stop, seen = threading.Event(), list[str]()

    def watch() -> None:
        seen.extend(frame.image.decode() for frame in folder(tmp_path).frames(stop) if not note(frame))

    def note(frame: Frame) -> bool:
        seen.append(frame.image.decode())
        return True

    thread = threading.Thread(target=watch)
    thread.start()
    yield tmp_path, seen
    stop.set()
    thread.join(SECONDS)
    assert not thread.is_alive()


def until(seen: list[str], expected: list[str]) -> None:
    end = time.monotonic() + SECONDS
    while seen != expected and time.monotonic() < end:
        time.sleep(LOOK)
    assert seen == expected


def test_what_comes_later_is_taken_once_and_again_when_it_changes(watched: tuple[Path, list[str]]) -> None:
    path, seen = watched
    put(path / "b.png", b"b")
    until(seen, ["b"])
    put(path / "a.png", b"a")
    until(seen, ["b", "a"])
    put(path / "b.png", b"changed")
    until(seen, ["b", "a", "changed"])
    (path / "a.png").unlink()
    time.sleep(5 * LOOK)
    put(path / "a.png", b"anew")
    until(seen, ["b", "a", "changed", "anew"])


def test_a_file_is_left_alone_while_it_grows(tmp_path: Path) -> None:
    with (tmp_path / "slow.png").open("wb", buffering=0) as file:

        class Growing(threading.Event):
            count = 0

            def wait(self, timeout: float | None = None) -> bool:
                self.count += 1
                if self.count <= 20:
                    file.write(b"x")
                return False

        looks = Growing()
        assert next(folder(tmp_path).frames(looks)).image == b"x" * 20
    assert looks.count == 21


class Looks(threading.Event):
    """A stop after which nothing waits: before each look something happens, and at last it stops."""

    def __init__(self, *happening: Callable[[], object]) -> None:
        super().__init__()
        self._happening = list(happening)

    def wait(self, timeout: float | None = None) -> bool:
        if not self._happening:
            return True
        self._happening.pop(0)()
        return False


def nothing() -> None:
    pass


def seen(given: Folder, *happening: Callable[[], object]) -> list[str | None]:
    """The files that it takes."""
    return [frame.file for frame in given.frames(Looks(nothing, *happening, nothing, nothing))]


def unmounted(path: Path) -> tuple[Callable[[], object], Callable[[], object]]:
    """Moves a folder out of the way, so that an empty one is there; and back."""
    away = path.with_name("away")

    def leave() -> None:
        path.rename(away)
        path.mkdir()

    def back() -> None:
        path.rmdir()
        away.rename(path)

    return leave, back


def test_a_folder_that_goes_away_for_a_while_is_told_of_and_read_no_second_time(tmp_path: Path) -> None:
    path, told = tmp_path / "here", list[str]()
    path.mkdir()
    put(path / "a.png", b"a")
    away = path.with_name("away")

    def back() -> None:
        away.rename(path)
        put(path / "b.png", b"b")

    looks = (lambda: path.rename(away), nothing, back)
    assert seen(folder(path, notify=told.append), *looks) == ["a.png", "b.png"]
    assert told == ["here: No such file or directory; trying again", "here is back"]


def test_a_disk_that_is_unmounted_for_a_while_leaves_an_empty_folder(tmp_path: Path) -> None:
    path = tmp_path / "here"
    path.mkdir()
    for name in "abc":
        put(path / f"{name}.png", name.encode())
    leave, back = unmounted(path)
    assert seen(folder(path), leave, nothing, back) == ["a.png", "b.png", "c.png"]


def test_a_file_that_vanishes_while_the_folder_is_listed_takes_no_other_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        put(tmp_path / f"{name}.png", name.encode())
    stat = Path.stat

    def vanishing(path: Path, **given: bool) -> os.stat_result:
        if path.name == "b.png" and vanished:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return stat(path, **given)

    vanished = list[bool]()
    monkeypatch.setattr(Path, "stat", vanishing)
    monkeypatch.setattr(Path, "is_file", lambda path: S_ISREG(vanishing(path).st_mode))
    looks = (lambda: vanished.append(True), nothing, vanished.clear)
    assert seen(folder(tmp_path), *looks) == ["a.png", "b.png", "c.png"]


def test_what_is_away_is_forgotten_where_it_is_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutline.edge.watch.frames.MAX_REMEMBERED", 2)
    path = tmp_path / "here"
    path.mkdir()
    for name in "abc":
        put(path / f"{name}.png", name.encode())
    leave, back = unmounted(path)
    assert seen(folder(path), leave, back) == ["a.png", "b.png", "c.png", "a.png"]


def test_with_once_a_folder_that_cannot_be_listed_ends_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the folder here cannot be listed: No such file or directory"):
        taken(tmp_path / "gone")


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of files that fail when they are read."""
    names, opened = set[str](), Path.open

    def failing(path: Path, *given: Any, **named: Any) -> Any:
        if path.name in names:
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, *given, **named)

    monkeypatch.setattr(Path, "open", failing)
    return names


def test_a_file_that_cannot_be_read_is_told_of_counted_and_tried_again(tmp_path: Path, unreadable: set[str]) -> None:
    told, unread = list[str](), list[int]()
    for name in "abc":
        put(tmp_path / f"{name}.png", name.encode())
    unreadable.add("b.png")
    given = folder(tmp_path, notify=told.append)
    looks = (nothing, lambda: unread.append(given.unreadable), unreadable.clear)
    assert seen(given, *looks) == ["a.png", "c.png", "b.png"]
    assert told == ["here: b.png cannot be read: Input/output error; trying again"]
    assert (unread, given.unreadable) == ([1], 0)


def test_with_once_what_cannot_be_read_is_not_waited_for(tmp_path: Path, unreadable: set[str]) -> None:
    put(tmp_path / "a.png", b"a")
    put(tmp_path / "b.png", b"b")
    unreadable.add("b.png")
    given = folder(tmp_path, once=True)
    assert [frame.file for frame in given.frames(threading.Event())] == ["a.png"]
    assert given.unreadable == 1


def test_a_still_scene_is_left_out(tmp_path: Path) -> None:
    for index, level in enumerate([100, 101, 100, 180, 181, 100]):
        put(tmp_path / f"{index}.png", picture(level))
    put(tmp_path / "9.png", b"no picture at all")
    changes = Changes()
    assert [frame.file for frame in taken(tmp_path, changes)] == ["0.png", "3.png", "5.png", "9.png"]
    assert changes.still == 3


def test_a_name_that_is_no_text_is_shown_as_text_and_keeps_no_other_from_being_taken(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9t\xe9"))
    folder.mkdir()
    for name in (b"a.png", b"b\xff.png", b"c.png"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"card")
    (source,) = open_sources([str(folder)], every=1.0, threshold=None, once=True)
    found = list(source.frames(threading.Event()))
    assert [frame.file for frame in found] == ["a.png", r"b\xff.png", "c.png"]
    assert {frame.source for frame in found} == {f"{tmp_path}/\\xe9t\\xe9"}
    spool = Spool(tmp_path / "spool", question="What?", limit=10**6)
    for frame in found:
        spool.put(frame)
    assert spool.oldest() == found[0]
