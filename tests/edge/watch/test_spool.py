"""The spool against a model of it, with crashes between any two steps, and on full or failing disks."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cutline.edge.watch.frames import Frame
from cutline.edge.watch.spool import Spool
from cutline.errors import InputError

LIMIT = 2000  # bytes of frames


def frame(number: int, size: int = 10, source: str = "cam") -> Frame:
    image = bytes([number % 256]) * size
    return Frame(id=f"id{number}", source=source, number=number, taken=number / 2, image=image, file=None)


def opened(folder: Path, *, question: str = "What?", limit: int = LIMIT, journal: int = 1 << 20) -> Spool:
    return Spool(folder, question=question, limit=limit, journal=journal)


def answer(known: str) -> bytes:
    return msgspec.json.encode({"id": known, "answer": f"of {known}"})


def waiting(spool: Spool) -> list[Frame]:
    """All frames that wait, in order, without taking any away."""
    seen, last = list[Frame](), None
    for _ in range(len(spool)):
        one = spool.oldest(last)
        assert one is not None
        seen.append(one)
        last = one.id
    return seen


def answered(folder: Path) -> list[str]:
    """Ids in the journals, oldest first, read without the spool's own code."""
    lines = b"".join(
        file.read_bytes() for name in ("answers.1.jsonl", "answers.jsonl") if (file := folder / name).exists()
    )
    assert lines.endswith(b"\n") or not lines
    return [msgspec.json.decode(line)["id"] for line in lines.splitlines()]


class CrashError(BaseException):
    """The process ends here; nothing may catch it."""


@contextmanager
def failing(after: int, how: Callable[[], BaseException]) -> Iterator[list[int]]:
    """Fail at the `after`-th step that touches the disk; a write that fails has written half."""
    left = [after]
    real = {name: getattr(os, name) for name in ("write", "fsync", "open", "ftruncate")}
    real_paths = {name: getattr(Path, name) for name in ("replace", "unlink")}

    def step() -> bool:
        left[0] -= 1
        return left[0] < 0

    def write(descriptor: int, content: Any) -> int:
        if step():
            real["write"](descriptor, content[: len(content) // 2])
            raise how()
        return int(real["write"](descriptor, content))

    def stepped(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            if step():
                raise how()
            return call(*given, **named)

        return run

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "write", write)
        for name in ("fsync", "open"):
            patched.setattr(os, name, stepped(real[name]))
        for name, call in real_paths.items():
            patched.setattr(Path, name, stepped(call))
        yield left


class Crashing(RuleBasedStateMachine):
    """Frames are put, answered and forgotten; the process ends at any step and starts again."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="spool"))
        self.sizes: dict[str, int] = {}
        self.safe: list[str] = []  # put returned and no answer yet, oldest first
        self.done: list[str] = []
        self.maybe: set[str] = set()  # a crash came in between: there or not, but never twice
        self.made = 0

    @initialize()
    def begin(self) -> None:
        self.spool = opened(self.folder)

    def teardown(self) -> None:
        self.spool.close()
        shutil.rmtree(self.folder)

    @rule(size=st.integers(0, 700), after=st.none() | st.integers(0, 12))
    def put(self, size: int, after: int | None) -> None:
        self.made += 1
        one = frame(self.made, size)
        self.sizes[one.id] = size
        before = [kept.id for kept in waiting(self.spool)]
        if after is not None:
            with suppress(CrashError), failing(after, CrashError):
                self.spool.put(one)
                after = None
        if after is None and one.id not in self.spool:
            dropped = self.spool.put(one)
            assert all(source == "cam" for source in dropped)
        now = [kept.id for kept in waiting(self.spool)] if after is None else None
        if now is not None:
            assert now == [*before, one.id][-len(now) :]  # only the oldest may go
            self.safe = now
        else:
            self.restart()
            # The oldest may have gone to make room, and the new one may be there or not.
            now = [kept.id for kept in waiting(self.spool)]
            assert now in [[*before, one.id][cut:] for cut in range(len(before) + 1)] + [
                before[cut:] for cut in range(len(before) + 1)
            ]
            self.safe = now

    @precondition(lambda self: self.safe)
    @rule(data=st.data(), after=st.none() | st.integers(0, 8))
    def commit(self, data: st.DataObject, after: int | None) -> None:
        known = data.draw(st.sampled_from(self.safe))
        if after is None:
            self.spool.commit(known, answer(known))
        else:
            with suppress(CrashError), failing(after, CrashError):
                self.spool.commit(known, answer(known))
            self.restart()
            if known not in answered(self.folder):
                assert known in [one.id for one in waiting(self.spool)]  # not lost
                return
        self.safe.remove(known)
        self.done.append(known)

    @precondition(lambda self: self.done)
    @rule(data=st.data())
    def again(self, data: st.DataObject) -> None:
        """What was answered is neither kept nor answered again, as when a folder is read anew."""
        known = data.draw(st.sampled_from(self.done))
        assert known in self.spool
        assert self.spool.put(frame(int(known[2:]), self.sizes[known])) == []
        self.spool.commit(known, answer(known))

    @precondition(lambda self: self.safe)
    @rule(data=st.data())
    def put_again(self, data: st.DataObject) -> None:
        known = data.draw(st.sampled_from(self.safe))
        assert self.spool.put(frame(int(known[2:]), self.sizes[known])) == []

    @rule()
    def restart(self) -> None:
        self.spool.close()
        self.spool = opened(self.folder)

    @rule(after=st.integers(0, 6))
    def restart_in_vain(self, after: int) -> None:
        self.spool.close()
        with suppress(CrashError), failing(after, CrashError):
            opened(self.folder).close()
        self.spool = opened(self.folder)

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        kept = waiting(self.spool)
        assert [one.id for one in kept] == self.safe
        assert all(one == frame(one.number, self.sizes[one.id]) for one in kept)
        assert answered(self.folder) == self.done
        files = list((self.folder / "frames").iterdir())
        assert len(files) == len(self.safe)
        assert self.spool.size == sum(file.stat().st_size for file in files) <= LIMIT


Crashing.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestCrashing = Crashing.TestCase


def test_frames_come_back_as_they_were_in_their_order(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    frames = [frame(number, 100) for number in (3, 1, 2)]
    frames[1] = Frame(id="id1", source="é\n", number=1, taken=0.5, image=b"\n{}\n\x00", file="a b.png")
    for one in frames:
        assert spool.put(one) == []
    spool.close()
    spool = opened(tmp_path)
    assert waiting(spool) == frames
    assert spool.oldest("id2") == frames[0]  # around and around
    assert spool.oldest("gone") == frames[0]
    spool.close()


def test_the_oldest_make_room_and_are_counted(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.put(frame(1, 700, "a"))
    spool.put(frame(2, 700, "b"))
    assert not spool.has_room(frame(3, 1200))
    assert spool.put(frame(3, 1200, "c")) == ["a"] or len(spool) == 1
    assert frame(3).id in spool
    assert spool.size <= LIMIT
    assert spool.put(frame(4, LIMIT, "d")) == ["d"]  # what can never fit drops nothing else
    assert frame(3).id in spool
    spool.close()


def test_a_spool_has_one_process_and_one_question(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    with pytest.raises(InputError, match="in use by another process"):
        opened(tmp_path)
    spool.close()
    with pytest.raises(InputError, match="another question"):
        opened(tmp_path, question="Why?")
    opened(tmp_path).close()


def test_a_folder_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be used: "):
        opened(tmp_path / "file")


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.put(frame(1))
    spool.commit("other", answer("other"))

    def full() -> OSError:
        return OSError(errno.ENOSPC, "No space left on device")

    for after in range(4):
        with pytest.raises(OSError, match="No space left"), failing(after, full):
            spool.put(frame(2))
        assert frame(2).id not in spool
        if after < 3:  # opening, writing, syncing; after these the answer is safe
            with pytest.raises(OSError, match="No space left"), failing(after, full):
                spool.commit("id1", answer("id1"))
        assert answered(tmp_path) == ["other"]
        assert waiting(spool)[0].id == "id1"
    spool.close()


def test_a_damaged_frame_is_left_out(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    for number in (1, 2, 3):
        spool.put(frame(number, 100))
    first, second, _ = sorted((tmp_path / "frames").iterdir())
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    second.write_bytes(b"")
    assert spool.oldest() == frame(3, 100)
    assert len(spool) == 1
    spool.close()


def test_journals_are_bounded(tmp_path: Path) -> None:
    spool = opened(tmp_path, journal=1000)
    for number in range(200):
        spool.commit(f"id{number}", answer(f"id{number}"))
        assert sum(file.stat().st_size for file in tmp_path.glob("answers*")) < 2200
    assert "id199" in spool
    assert "id190" in spool
    assert "id0" not in spool
    known = answered(tmp_path)
    assert known == [f"id{number}" for number in range(200 - len(known), 200)]
    spool.close()
    spool = opened(tmp_path, journal=1000)
    assert all(one in spool for one in known)
    spool.close()


def test_a_line_cut_short_is_taken_back(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.put(frame(1))
    spool.commit("id0", answer("id0"))
    spool.close()
    with (tmp_path / "answers.jsonl").open("ab") as journal:
        journal.write(answer("id1")[:-3])
    spool = opened(tmp_path)
    assert answered(tmp_path) == ["id0"]
    assert [one.id for one in waiting(spool)] == ["id1"]
    spool.close()


def test_only_its_own_files_are_put_right(tmp_path: Path) -> None:
    theirs = [
        tmp_path / name
        for name in (
            "novel.draft",
            "sub/.novel.0123abcd.draft",
            "sub/frames/000000000001-id1.frame",
            "frames/.novel.draft",
            "frames/abc-x.frame",
            "frames/x.frame",
            "frames/٣-x.frame",
        )
    ]
    drafts = (".question.txt.0123abcd.draft", "frames/.000000000007-id7.frame.0123abcd.draft")
    ours = [tmp_path / name for name in drafts]
    for file in theirs + ours:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("a year's work")
    spool = opened(tmp_path)
    spool.put(frame(1))
    assert waiting(spool) == [frame(1)]
    assert all(file.read_text() == "a year's work" for file in theirs)
    assert not any(file.exists() for file in ours)
    spool.close()


def test_whether_there_is_room_is_found_without_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the byte, for any names."""
    for one in (frame(1, 100), frame(12, 0, "é\n"), frame(3, 999, "x" * 40)):
        spool = opened(tmp_path / one.id, limit=1 << 20)
        spool.put(one)
        size = spool.size
        spool.close()
        for limit, room in ((2 * size, True), (2 * size - 1, False)):
            spool = opened(tmp_path / one.id, limit=limit)
            with monkeypatch.context() as patched:
                patched.setattr("hashlib.sha256", None)
                assert spool.has_room(one) is room
            spool.close()


@pytest.mark.parametrize("journal", [1 << 20, 10])
@pytest.mark.parametrize("begun", [False, True])
def test_a_commit_that_failed_may_be_tried_again(tmp_path: Path, begun: bool, journal: int) -> None:
    """Whichever step the disk did not take: the answer is in the journal once, and its frame waits no more."""

    def full() -> OSError:
        return OSError(errno.ENOSPC, "No space left on device")

    for after in range(9):
        spool = opened(tmp_path / str(after), journal=journal)
        if begun:
            spool.commit("id0", answer("id0"))
        spool.put(frame(1))
        with suppress(OSError), failing(after, full):
            spool.commit("id1", answer("id1"))
        spool.commit("id1", answer("id1"))
        assert answered(tmp_path / str(after)).count("id1") == 1
        assert len(spool) == 0
        spool.close()
