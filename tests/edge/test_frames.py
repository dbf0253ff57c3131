from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from cutline.edge.changes import Changes
from cutline.edge.frames import Folder, Frame

LOOK = 0.02
SECONDS = 60  # that a look may take to be noticed on a busy machine


def picture(level: int) -> bytes:
    out = BytesIO()
    Image.new("L", (32, 24), level).save(out, "PNG")
    return out.getvalue()


def folder(path: Path, *, once: bool = False, changes: Changes | None = None) -> Folder:
    return Folder(path, name="here", changes=changes, once=once, look=LOOK)


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

        class Looks(threading.Event):
            count = 0

            def wait(self, timeout: float | None = None) -> bool:
                self.count += 1
                if self.count <= 20:
                    file.write(b"x")
                return False

        looks = Looks()
        assert next(folder(tmp_path).frames(looks)).image == b"x" * 20
    assert looks.count == 21


def test_a_folder_that_goes_away_for_a_while_is_no_error(watched: tuple[Path, list[str]]) -> None:
    path, seen = watched
    put(path / "a.png", b"a")
    until(seen, ["a"])
    away = path.with_name("away")
    path.rename(away)
    time.sleep(5 * LOOK)
    away.rename(path)
    put(path / "b.png", b"b")
    end = time.monotonic() + SECONDS
    while "b" not in seen and time.monotonic() < end:
        time.sleep(LOOK)
    assert "b" in seen


def test_a_still_scene_is_left_out(tmp_path: Path) -> None:
    for index, level in enumerate([100, 101, 100, 180, 181, 100]):
        put(tmp_path / f"{index}.png", picture(level))
    put(tmp_path / "9.png", b"no picture at all")
    changes = Changes()
    assert [frame.file for frame in taken(tmp_path, changes)] == ["0.png", "3.png", "5.png", "9.png"]
    assert changes.still == 3
