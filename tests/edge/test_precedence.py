"""Requests of a higher priority begin first, and those of a lower one do not wait for ever."""

from __future__ import annotations

import asyncio

import pytest

from cutline.core.request import Priority
from cutline.edge.precedence import Precedence

SECONDS = 30


def test_lower_ones_begin_when_none_above_is_left() -> None:
    async def run() -> list[str]:
        precedence, begun = Precedence(most=SECONDS), list[str]()
        leave = {name: asyncio.Event() for name in Priority}

        async def work(priority: Priority) -> None:
            async with precedence.turn(priority):
                begun.append(priority)
                await leave[priority].wait()

        tasks = [asyncio.create_task(work(Priority.INTERACTIVE))]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(work(one)) for one in (Priority.BACKGROUND, Priority.NORMAL, Priority.BACKGROUND)]
        tasks += [asyncio.create_task(work(Priority.INTERACTIVE))]
        for one in Priority:
            await asyncio.sleep(0.05)
            leave[one].set()
        await asyncio.wait_for(asyncio.gather(*tasks), SECONDS)
        return begun

    assert asyncio.run(run()) == ["interactive", "interactive", "normal", "background", "background"]


def test_nobody_waits_longer_than_the_most() -> None:
    async def run() -> None:
        precedence = Precedence(most=0.05)
        async with (
            precedence.turn(Priority.INTERACTIVE),
            asyncio.timeout(SECONDS),
            precedence.turn(Priority.BACKGROUND),
        ):
            pass

    asyncio.run(run())


def test_one_that_is_given_up_leaves_nothing_behind() -> None:
    async def run() -> None:
        precedence = Precedence(most=SECONDS)
        async with precedence.turn(Priority.NORMAL):
            waiting = asyncio.create_task(precedence.turn(Priority.BACKGROUND).__aenter__())
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.wait([waiting])
        with pytest.raises(ZeroDivisionError):
            async with precedence.turn(Priority.INTERACTIVE):
                raise ZeroDivisionError
        async with asyncio.timeout(SECONDS), precedence.turn(Priority.BACKGROUND):
            pass

    asyncio.run(run())


@pytest.mark.parametrize("one", Priority)
@pytest.mark.parametrize("other", Priority)
def test_a_tenant_has_no_more_than_it_may(one: Priority, other: Priority) -> None:
    assert one.at_most(other).rank == max(one.rank, other.rank)
