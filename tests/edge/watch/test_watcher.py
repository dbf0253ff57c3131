"""Watching with sources and an agent made for these tests."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cutline.core.backoff import Backoff
from cutline.core.request import Mode, Request
from cutline.edge.generation.result import Answer, Decision, Gated, Provenance, Token
from cutline.edge.watch.frames import Frame, FrameSource
from cutline.edge.watch.spool import Spool
from cutline.edge.watch.watcher import FrameAnswer, Watch, shares
from cutline.errors import (
    CutlineError,
    ImageError,
    InputError,
    ModelMismatch,
    PromptError,
    WorkerBusy,
    WorkerFailed,
    WorkerUnavailable,
)
from cutline.testing.agent import spoken

WORKER = "192.0.2.7:50051"
AWAY = WorkerUnavailable(f"no worker answers at {WORKER}")
SECONDS = 60  # that a watch may take for what should take parts of one, on a machine that does much else


def frames(source: str, count: int, start: int = 1) -> list[Frame]:
    return [
        Frame(id=f"{source}-{number}", source=source, number=number, taken=number, image=f"{source}{number}".encode())
        for number in range(start, start + count)
    ]


class Listed:
    """A source of given frames; `live` ones come all at once, and `lasting` ones do not end by themselves."""

    def __init__(self, given: Sequence[Frame], *, live: bool = False, lasting: bool = False) -> None:
        self.name = given[0].source
        self.live = live
        self.still = self.unreadable = self.filtered = 0
        self.taken = threading.Event()  # all of its frames
        self._given = given
        self._lasting = lasting

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        yield from self._given
        self.taken.set()
        if self._lasting:
            stop.wait()


class Broken(Listed):
    """One that breaks after its frames."""

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        yield from self._given
        raise InputError("the video film does not read: Invalid data")


class Fake:
    """An agent that answers with what it sees; `failing` says what goes wrong with an image, the `count`-th asked."""

    def __init__(
        self, failing: Callable[[str, int], CutlineError | None] = lambda image, count: None, *, seconds: float = 0.0
    ) -> None:
        self.asked: list[str] = []
        self.began = asyncio.Event()
        self._failing = failing
        self._seconds = seconds

    async def answer(self, question: Request) -> Answer:
        image = question.images[0].decode()
        self.asked.append(image)
        self.began.set()
        await asyncio.sleep(self._seconds)
        error = self._failing(image, len(self.asked))
        if error is not None:
            raise error
        return answered(f"a picture of {image}", worker=None if question.mode is Mode.EDGE else WORKER)


class Gating(Fake):
    """One whose gate says so, and that reads one picture alone."""

    def __init__(self, gate: Gated) -> None:
        super().__init__(lambda image, count: ImageError("no picture") if count > 1 else None)
        self._gate = gate

    async def answer(self, question: Request) -> Answer:
        return msgspec.structs.replace(await super().answer(question), gate=self._gate)


def answered(text: str, *, worker: str | None) -> Answer:
    origins = [Provenance.EDGE] * 2 if worker is None else [Provenance.DRAFT, Provenance.CLOUD, Provenance.DRAFT]
    return msgspec.structs.replace(
        spoken(text),
        tokens=[Token(1, "x", origin) for origin in origins],
        mode=Mode.EDGE,
        latency_ms=1.5,
        exact=False,
        worker=worker,
        cut=None,
        complete=True,
    )


class Ran:
    """How a watch went: its lines, what it told, itself."""

    def __init__(self) -> None:
        self.lines: list[FrameAnswer] = []
        self.told: list[str] = []
        self.watch: Watch

    def write(self, line: bytes) -> None:
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        self.lines.append(msgspec.json.decode(line, type=FrameAnswer))

    @property
    def answers(self) -> list[str | None]:
        return [line.answer for line in self.lines]


def run(
    sources: Sequence[FrameSource],
    agent: Callable[[], Fake] = Fake,
    *,
    mode: Mode = Mode.CLOUD,
    spool: Spool | None = None,
    room: int = 4,
    wait: float = 0.01,
    meanwhile: Callable[[asyncio.Event, Fake, Ran], Any] | None = None,
    ran: Ran | None = None,
) -> Ran:
    ran = ran or Ran()
    question = Request.about(b"", "What is there?", mode=mode)

    async def go() -> None:
        stop, asked = asyncio.Event(), agent()
        ran.watch = Watch(
            asked,
            sources,
            question,
            write=ran.write,
            room=room,
            spool=spool,
            notify=ran.told.append,
            backoff=partial(Backoff, first=wait),
        )
        beside = asyncio.create_task(meanwhile(stop, asked, ran)) if meanwhile else None
        await asyncio.wait_for(ran.watch.run(stop), SECONDS)
        if beside is not None:
            await beside

    asyncio.run(go())
    return ran


async def until(true: Callable[[], bool]) -> None:
    for _ in range(SECONDS * 100):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Callable[..., Spool]]:
    """Opens the spool of this test, again and again."""
    opened = list[Spool]()

    def reopen(limit: int = 1 << 20) -> Spool:
        for one in opened:
            one.close()
        opened[:] = [Spool(tmp_path / "spool", question="What is there?", limit=limit)]
        return opened[0]

    yield reopen
    for one in opened:
        one.close()


def pictures(*images: str) -> list[str | None]:
    return [f"a picture of {image}" for image in images]


def test_every_frame_of_a_folder_is_asked_about_in_order() -> None:
    ran = run([Listed(frames("a", 30))], mode=Mode.EDGE, room=2)
    assert ran.answers == pictures(*(f"a{number}" for number in range(1, 31)))
    line = ran.lines[6]
    assert (line.source, line.frame, line.id, line.time.timestamp()) == ("a", 7, "a-7", 7.0)
    assert (line.provenance, line.latency_ms, line.dropped, line.spooled) == ({Provenance.EDGE: 1.0}, 1.5, 0, False)
    assert ran.watch.answered == 30
    assert ran.told == []


def test_a_line_says_what_the_gate_says_as_the_api_does() -> None:
    gate = Gated(group="one picture", calibrated=True, decision=Decision.KEPT, promised=0.02)
    ran = Ran()
    run([Listed(frames("a", 2))], lambda: Gating(gate), mode=Mode.AUTO, ran=ran)
    assert [line.gate for line in ran.lines] == [gate, None]
    assert ran.lines[1].error is not None


def test_a_live_source_is_asked_about_its_newest() -> None:
    ran = run([Listed(frames("a", 100), live=True)], lambda: Fake(seconds=0.05), room=3)
    asked = [line.frame for line in ran.lines]
    assert asked[-3:] == [98, 99, 100]
    assert len(asked) < 20
    assert ran.lines[-1].dropped == 100 - len(asked) == ran.watch.dropped


def test_a_busy_source_does_not_hide_another() -> None:
    ran = run([Listed(frames("a", 20)), Listed(frames("b", 3))], lambda: Fake(seconds=0.01), room=2)
    assert len(ran.lines) == 23
    assert max(index for index, line in enumerate(ran.lines) if line.source == "b") < 12


def test_provenance_is_a_share_of_tokens() -> None:
    assert shares(answered("x", worker=WORKER)) == {Provenance.DRAFT: 0.6667, Provenance.CLOUD: 0.3333}


@pytest.mark.parametrize("error", [ImageError("the image is truncated"), WorkerFailed("the worker broke")])
def test_what_is_wrong_with_one_frame_is_its_answer(error: CutlineError) -> None:
    ran = run([Listed(frames("a", 3))], lambda: Fake(lambda image, count: error if image == "a2" else None))
    assert [line.error for line in ran.lines] == [None, str(error), None]
    assert ran.lines[1].answer is None
    assert ran.lines[1].provenance == {}
    assert ran.watch.answered == 2
    assert ran.watch.dropped == 0


@pytest.mark.parametrize("error", [PromptError("too long"), ModelMismatch("another model"), InputError("no worker")])
def test_what_is_wrong_with_all_of_them_ends_it(error: CutlineError, spool: Callable[..., Spool]) -> None:
    kept = spool()
    with pytest.raises(type(error), match=str(error)):
        run([Listed(frames("a", 3))], lambda: Fake(lambda image, count: error), spool=kept)
    assert "a-1" in kept  # and it is asked about when that was put right


def test_a_picture_that_takes_too_much_of_the_context_later_on_is_refused_alone() -> None:
    refused = PromptError("the question is too long")
    ran = run([Listed(frames("a", 3))], lambda: Fake(lambda image, count: refused if count == 2 else None))
    assert [line.error for line in ran.lines] == [None, str(refused), None]
    assert ran.watch.dropped == 0


UNREAD = InputError("cannot read the token file /run/token: No such file or directory")


def test_a_token_that_does_not_read_for_a_moment_is_no_frames_fault(spool: Callable[..., Spool]) -> None:
    async def until_all(stop: asyncio.Event, agent: Fake, ran: Ran) -> None:
        await until(lambda: len(ran.lines) == 6)
        stop.set()

    failing = lambda image, count: UNREAD if 3 <= count <= 5 else None  # noqa: E731
    ran = run([Listed(frames("a", 6), lasting=True)], lambda: Fake(failing), spool=spool(), meanwhile=until_all)
    assert sorted(line.frame for line in ran.lines) == [1, 2, 3, 4, 5, 6]
    assert all(line.error is None for line in ran.lines)
    assert ran.told == [f"{UNREAD} Frames wait in the spool.", f"the worker at {WORKER} is back"]


def test_without_a_spool_a_token_that_does_not_read_costs_frames_and_says_so() -> None:
    ran = run([Listed(frames("a", 4))], lambda: Fake(lambda image, count: UNREAD if count in (2, 3) else None))
    assert [line.error for line in ran.lines] == [None, str(UNREAD), str(UNREAD), None]
    assert ran.watch.dropped == 2


def test_without_a_spool_a_worker_that_is_away_costs_frames_and_says_so() -> None:
    ran = run([Listed(frames("a", 4))], lambda: Fake(lambda image, count: AWAY if count in (2, 3) else None))
    assert [line.error for line in ran.lines] == [None, str(AWAY), str(AWAY), None]
    assert [line.dropped for line in ran.lines] == [0, 1, 2, 2]
    assert ran.told == [str(AWAY), f"the worker at {WORKER} is back"]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("mode", [Mode.CLOUD, Mode.DRAFT, Mode.AUTO])
def test_with_a_spool_nothing_is_lost_or_doubled(mode: Mode, live: bool, spool: Callable[..., Spool]) -> None:
    def failing(image: str, count: int) -> CutlineError | None:
        return (AWAY if count % 2 else WorkerBusy("no room")) if 3 <= count <= 9 else None

    async def until_all(stop: asyncio.Event, agent: Fake, ran: Ran) -> None:
        await until(lambda: len(ran.lines) == 12)
        stop.set()

    kept = spool()
    source = Listed(frames("a", 12), live=live, lasting=True)
    ran = run([source], lambda: Fake(failing), mode=mode, spool=kept, room=12, meanwhile=until_all)
    assert sorted(line.frame for line in ran.lines) == list(range(1, 13))
    assert any(line.spooled for line in ran.lines)
    assert all(line.error is None for line in ran.lines)
    assert ran.watch.dropped == len(kept) == 0
    assert ran.told[0].startswith("no worker answers")
    assert ran.told[-1] == f"the worker at {WORKER} is back"


def test_while_the_worker_is_away_it_is_not_asked_about_every_frame(spool: Callable[..., Spool]) -> None:
    kept = spool()
    asked = list[Fake]()

    def agent() -> Fake:
        asked.append(Fake(lambda image, count: AWAY))
        return asked[0]

    ran = run([Listed(frames("a", 50))], agent, spool=kept, wait=60.0)
    assert asked[0].asked == ["a1"]
    assert ran.lines == []
    assert len(kept) == 50


def test_alone_the_device_still_answers_what_it_can(spool: Callable[..., Spool]) -> None:
    """In mode auto the gate lets some answers stand, whatever the worker does."""
    kept = spool()
    ran = run(
        [Listed(frames("a", 10))],
        lambda: Fake(lambda image, count: AWAY if image in ("a2", "a5") else None),
        mode=Mode.AUTO,
        spool=kept,
        wait=60.0,
    )
    assert len(ran.lines) == 8
    assert "a-2" in kept
    assert len(kept) == 2


def test_the_next_start_goes_on_where_the_last_one_ended(spool: Callable[..., Spool]) -> None:
    away, given = spool(), frames("a", 10)
    first = run([Listed(given)], lambda: Fake(lambda image, count: AWAY if count > 4 else None), spool=away)
    assert [line.frame for line in first.lines] == [1, 2, 3, 4]
    again = spool()
    second = run([Listed(given)], spool=again)  # the folder is read from its beginning
    assert sorted(line.frame for line in second.lines) == [5, 6, 7, 8, 9, 10]
    assert all(line.spooled for line in second.lines)
    assert len(again) == 0
    assert run([Listed(given)], spool=spool()).lines == []


def test_a_full_spool_makes_files_wait_and_cameras_lose_their_oldest(spool: Callable[..., Spool]) -> None:
    back = threading.Event()

    async def later(stop: asyncio.Event, agent: Fake, ran: Ran) -> None:
        await agent.began.wait()
        await until(sources[1].taken.is_set)
        back.set()
        await until(lambda: len(ran.lines) + ran.watch.dropped == 60)
        stop.set()

    kept = spool(limit=1500)
    sources = [Listed(frames("file", 30), lasting=True), Listed(frames("cam", 30), live=True, lasting=True)]
    ran = run(
        sources,
        lambda: Fake(lambda image, count: None if back.is_set() else AWAY),
        spool=kept,
        room=3,
        meanwhile=later,
    )
    seen = [line.id for line in ran.lines]
    assert len(set(seen)) == len(seen)
    assert ran.watch.dropped > 0
    assert kept.size <= 1500
    assert "cam-30" in seen


def test_a_file_waits_while_the_spool_is_full_also_before_a_worker_was_found_to_be_gone(
    spool: Callable[..., Spool],
) -> None:
    async def until_all(stop: asyncio.Event, agent: Fake, ran: Ran) -> None:
        await until(lambda: len(ran.lines) + ran.watch.dropped == 4)
        stop.set()

    kept = spool(limit=200)
    kept.put(frames("old", 1)[0])
    source = Listed(frames("new", 3), lasting=True)
    assert not kept.has_room(frames("new", 1)[0])
    ran = run([source], lambda: Fake(lambda i, count: AWAY if count <= 2 else None), spool=kept, meanwhile=until_all)
    assert sorted(line.id for line in ran.lines) == ["new-1", "new-2", "new-3", "old-1"]


def full(call: Callable[..., Any], times: int) -> Callable[..., Any]:
    """`call`, before which the disk is full so many times."""
    left = [times]

    def run(*given: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return call(*given)

    return run


FULL = "the spool cannot be written: No space left on device; nothing is asked until it can"


@pytest.mark.parametrize("spooled", [False, True])
def test_an_answer_that_the_disk_does_not_take_is_written_once_it_does(
    spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch, spooled: bool
) -> None:
    asked = list[Fake]()

    def agent() -> Fake:
        asked.append(Fake())
        return asked[0]

    async def until_all(stop: asyncio.Event, agent: Fake, ran: Ran) -> None:
        await until(lambda: len(ran.lines) >= 2)
        stop.set()

    kept, given = spool(), frames("a", 2)
    if spooled:
        for one in given:
            kept.put(one)
    monkeypatch.setattr(kept, "commit", full(kept.commit, 4))
    ran = run([Listed(given, lasting=True)], agent, spool=kept, meanwhile=until_all)
    assert [line.id for line in ran.lines] == ["a-1", "a-2"]
    assert asked[0].asked == ["a1", "a2"]
    assert ran.told == [FULL, "the spool can be written again"]


@pytest.mark.parametrize("spooled", [False, True])
def test_what_the_disk_never_takes_is_not_written_and_its_frame_is_kept(
    spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch, spooled: bool
) -> None:
    async def stop_soon(stop: asyncio.Event, agent: Fake, ran: Ran) -> None:
        await until(lambda: len(ran.told) > 0)
        await asyncio.sleep(0.2)
        stop.set()

    kept, given = spool(), frames("a", 1)
    if spooled:
        kept.put(given[0])
    monkeypatch.setattr(kept, "commit", full(kept.commit, 10**9))
    ran = run([Listed(given, lasting=True)], spool=kept, meanwhile=stop_soon)
    assert (ran.lines, ran.watch.answered, ran.watch.dropped) == ([], 0, 0)
    # What was not in it yet had room. What was, is not written again, though its source may have given it meanwhile.
    assert ran.told == ([FULL] if spooled else [FULL, "the spool can be written again"])
    assert kept.oldest() == given[0]


def test_frames_that_the_disk_does_not_take_wait_for_it(
    spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def until_all(stop: asyncio.Event, agent: Fake, ran: Ran) -> None:
        await until(lambda: len(ran.lines) + ran.watch.dropped == 3)
        stop.set()

    kept = spool()
    monkeypatch.setattr(kept, "put", full(kept.put, 4))
    source = Listed(frames("a", 3), lasting=True)
    ran = run([source], lambda: Fake(lambda i, count: AWAY if count < 3 else None), spool=kept, meanwhile=until_all)
    assert sorted(line.frame for line in ran.lines) == [1, 2, 3]
    assert ran.told.count(FULL) == 1


def test_a_frame_that_no_worker_ever_answers_does_not_hold_up_the_others(spool: Callable[..., Spool]) -> None:
    async def until_all(stop: asyncio.Event, agent: Fake, ran: Ran) -> None:
        await until(lambda: len(ran.lines) == 5)
        stop.set()

    kept = spool()
    bad = WorkerUnavailable("the worker did not answer in time")
    source = Listed(frames("a", 6), lasting=True)
    ran = run([source], lambda: Fake(lambda i, c: bad if i == "a1" else None), spool=kept, meanwhile=until_all)
    assert sorted(line.frame for line in ran.lines) == [2, 3, 4, 5, 6]
    assert "a-1" in kept


def test_stopping_keeps_what_was_not_answered(spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutline.edge.watch.watcher.STOP_SECONDS", 0.05)

    async def stop_soon(stop: asyncio.Event, agent: Fake, ran: Ran) -> None:
        await agent.began.wait()
        await until(source.taken.is_set)
        stop.set()

    kept = spool()
    source = Listed(frames("a", 3), live=True, lasting=True)
    ran = run([source], lambda: Fake(seconds=1000), spool=kept, meanwhile=stop_soon)
    assert ran.lines == []
    assert {f"a-{number}" for number in (1, 2, 3)} == {one for one in ("a-1", "a-2", "a-3") if one in kept}
    monkeypatch.undo()
    assert sorted(line.frame for line in run([Listed(frames("b", 1))], spool=spool()).lines) == [1, 1, 2, 3]


def test_an_answer_that_comes_soon_after_the_stop_counts() -> None:
    async def stop_at_once(stop: asyncio.Event, agent: Fake, ran: Ran) -> None:
        await agent.began.wait()
        stop.set()

    ran = run([Listed(frames("a", 3), lasting=True)], lambda: Fake(seconds=0.1), meanwhile=stop_at_once)
    assert ran.answers == pictures("a1")
    assert ran.watch.dropped == 2


def test_a_source_that_breaks_ends_it_when_the_others_have_ended() -> None:
    ran = Ran()
    with pytest.raises(InputError, match="the video film does not read"):
        run([Broken(frames("film", 2)), Listed(frames("a", 5))], lambda: Fake(seconds=0.02), ran=ran)
    assert len(ran.lines) == 7


def test_nobody_reads_any_more() -> None:
    class Closed(Ran):
        def write(self, line: bytes) -> None:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run([Listed(frames("a", 3), lasting=True)], ran=Closed())


def test_who_does_not_read_holds_up_no_stop(spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutline.edge.watch.watcher.STOP_SECONDS", 0.05)
    read, writing = threading.Event(), threading.Event()

    class Paused(Ran):
        def write(self, line: bytes) -> None:
            writing.set()
            read.wait(SECONDS)

    async def stop_soon(stop: asyncio.Event, agent: Fake, ran: Ran) -> None:
        await until(writing.is_set)
        stop.set()

    kept = spool()
    began = time.monotonic()
    source = Listed(frames("a", 3), live=True, lasting=True)
    ran = run([source], spool=kept, meanwhile=stop_soon, ran=Paused())
    assert time.monotonic() - began < SECONDS / 2
    read.set()
    assert ran.watch.unread
    assert all(f"a-{number}" in kept for number in (1, 2, 3))
    assert len(kept) == 2  # the other is in the journal
