from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from cutline.edge.watch.frame_queue import FrameQueue
from cutline.edge.watch.frames import Frame


def frame(source: str, number: int) -> Frame:
    return Frame(id=f"{source}{number}", source=source, number=number, taken=0.0, image=b"")


def on_a_loop(test: Callable[[], None]) -> None:
    async def run() -> None:
        test()

    asyncio.run(run())


def test_a_live_source_drops_its_oldest_and_counts_them() -> None:
    def test() -> None:
        waiting = FrameQueue("ab", room=2)
        assert all(waiting.put(frame("a", number), live=True) for number in range(5))
        waiting.put(frame("b", 9), live=True)
        assert [one and one.id for one in (waiting.take(), waiting.take(), waiting.take())] == ["a3", "b9", "a4"]
        assert waiting.take() is None
        assert dict(waiting.dropped) == {"a": 3}

    on_a_loop(test)


def test_sources_take_turns() -> None:
    def test() -> None:
        waiting = FrameQueue("abc", room=10)
        for number in range(3):
            waiting.put(frame("a", number), live=True)
        waiting.put(frame("c", 0), live=True)
        assert [one.id for _ in range(4) if (one := waiting.take())] == ["a0", "c0", "a1", "a2"]

    on_a_loop(test)


def test_what_may_not_be_taken_stays() -> None:
    def test() -> None:
        waiting = FrameQueue("ab", room=10)
        waiting.put(frame("a", 0), live=True)
        waiting.put(frame("b", 0), live=True)
        taken = waiting.take(lambda one: one.source == "b")
        assert taken is not None
        assert taken.source == "b"
        assert waiting.take(lambda one: False) is None
        assert [one.id for one in waiting.close()] == ["a0"]

    on_a_loop(test)


def test_a_file_waits_for_room_and_loses_nothing() -> None:
    async def run() -> None:
        waiting = FrameQueue("a", room=1)
        ended = list[bool]()

        def feed() -> None:
            ended.extend(waiting.put(frame("a", number), live=False) for number in range(4))

        thread = threading.Thread(target=feed)
        thread.start()
        seen = list[int]()
        while len(seen) < 4:
            await asyncio.wait_for(waiting.news(), 60)
            while one := waiting.take():
                seen.append(one.number)
                await asyncio.sleep(0.01)
        await asyncio.to_thread(thread.join)
        assert seen == [0, 1, 2, 3]
        assert ended == [True] * 4
        assert waiting.dropped.total() == 0

    asyncio.run(run())


def test_closing_ends_who_waits_for_room_and_gives_back_what_is_left() -> None:
    async def run() -> None:
        waiting = FrameQueue("a", room=1)
        ended = list[bool]()
        thread = threading.Thread(
            target=lambda: ended.extend(waiting.put(frame("a", number), live=False) for number in range(2))
        )
        thread.start()
        await asyncio.wait_for(waiting.news(), 60)
        await asyncio.sleep(0.02)
        assert [one.number for one in waiting.close()] == [0]
        await asyncio.to_thread(thread.join)
        assert ended == [True, False]

    asyncio.run(run())
