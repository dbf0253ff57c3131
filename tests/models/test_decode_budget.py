"""The memory that decoding may take, for all threads together."""

from __future__ import annotations

import threading

import pytest

from cutline.models.decode_budget import MemoryBudget


def test_who_finds_no_room_waits_for_it() -> None:
    budget, inside, out = MemoryBudget(100), threading.Event(), threading.Event()
    held = list[int]()

    def one() -> None:
        with budget.hold(60):
            held.append(budget.held)
            inside.set()
            out.wait(60)

    def other() -> None:
        inside.wait(60)
        with budget.hold(60):
            held.append(budget.held)

    threads = [threading.Thread(target=target) for target in (one, other)]
    threads[0].start()
    inside.wait(60)
    with budget.hold(40):  # there is room beside the first
        assert budget.held == 100
        threads[1].start()
    out.set()
    for thread in threads:
        thread.join(60)
    assert held == [60, 60]
    assert budget.held == 0


def test_never_more_is_held_than_there_is() -> None:
    budget, most, lock = MemoryBudget(100), list[int](), threading.Lock()

    def hold(size: int) -> None:
        with budget.hold(size), lock:
            most.append(budget.held)

    threads = [threading.Thread(target=hold, args=(size,)) for size in (30, 99, 1, 50, 51, 500) * 20]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(most) == len(threads)
    assert max(most) <= 100
    assert budget.held == 0


def test_an_error_lets_go() -> None:
    budget = MemoryBudget(100)
    with pytest.raises(ValueError, match="damaged"), budget.hold(100):
        raise ValueError("damaged")
    assert budget.held == 0
