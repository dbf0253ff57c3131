"""The worker that would go on if the one that is asked fails: what it serves is known before that happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import pytest

from cutline.core.request import Mode
from cutline.edge.agent import Agent
from cutline.edge.generation.events import Event
from cutline.errors import CutlineError, ModelMismatch, WorkerFailed, WorkerUnavailable
from cutline.protos.messages import Description
from cutline.protos.v1 import worker_pb2 as pb
from cutline.testing.fleet import ScriptedFleet, Time
from cutline.testing.worker import DESCRIPTION, TRUTH, ScriptedWorker, ask, asking, ids

A, B, C = "127.0.0.1:1001", "127.0.0.1:1002", "127.0.0.1:1003"


async def served(workers: ScriptedFleet, address: str, model: str = DESCRIPTION.model) -> Description:
    return await workers.describe(workers._client(address), model=model)


async def turns() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def test_who_stands_by_is_asked_once_and_only_it() -> None:
    async def run() -> None:
        workers = ScriptedFleet(A, B, C, time=Time())
        assert workers.stand_by(but=[A]) == B
        assert workers.stand_by(but=[A]) == B
        await turns()
        assert workers.stand_by(but=[A]) == B
        assert await served(workers, B) == DESCRIPTION
        assert [workers.scripts[one].asked for one in (A, B, C)] == [0, 1, 0]
        await workers.close()

    asyncio.run(run())


def test_what_it_said_holds_for_that_connection_alone() -> None:
    async def run() -> None:
        workers = ScriptedFleet(A, B, time=Time())
        workers.stand_by(but=[A])
        await turns()
        workers.scripts[B].connection += 1  # it broke, and there was another before anybody looked
        await served(workers, B)
        assert workers.scripts[B].asked == 2
        workers.scripts[B].connected = False
        workers.stand_by(but=[A])
        await turns()
        assert workers.scripts[B].asked == 3
        workers.report(B, WorkerFailed("broke"))
        workers.report(B, None)
        await served(workers, B)
        assert workers.scripts[B].asked == 4, "who comes back may be another"
        await workers.close()

    asyncio.run(run())


def test_another_model_is_refused_though_it_was_asked_before() -> None:
    async def run() -> None:
        workers = ScriptedFleet(A, B, time=Time())
        workers.stand_by(but=[A])
        await turns()
        with pytest.raises(ModelMismatch):
            await served(workers, B, "another")
        await workers.close()

    asyncio.run(run())


@pytest.mark.parametrize("says", [None, WorkerUnavailable("gone")], ids=["silent", "gone"])
def test_one_that_does_not_answer_is_no_failure_and_ends_with_the_agent(says: CutlineError | None) -> None:
    async def run() -> None:
        workers = ScriptedFleet(A, B, time=Time())
        workers.scripts[B].says = says
        workers.stand_by(but=[A])
        await turns()
        assert workers.reachable
        client = workers.choose(first=B)
        assert client is not None
        assert client.address == B
        await workers.close()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_nobody_stands_by_offline() -> None:
    async def run() -> None:
        workers = ScriptedFleet(A, B, time=Time())
        workers.stand_by(but=[A])
        workers.offline = True
        assert workers.stand_by(but=[A]) is None
        await turns()
        assert workers.scripts[B].asked == 0
        await workers.close()

    asyncio.run(run())


class Patient(ScriptedWorker):
    """One that is told when it may meet its fate."""

    may: Callable[[], bool] | None = None

    async def _meet(
        self, fate: CutlineError | str, position: int, messages: AsyncIterator[pb.AgentMessage], context: Any
    ) -> AsyncGenerator[pb.WorkerMessage]:
        while self.may is None or not self.may():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        async for said in super()._meet(fate, position, messages, context):
            yield said


def test_going_on_elsewhere_takes_nothing_but_an_opening() -> None:
    first, second = Patient((6, "break")), ScriptedWorker()

    def during(agent: Agent, event: Event) -> None:
        del event
        other = agent.workers.addresses[1]
        first.may = lambda: agent.workers._described(other) is not None

    answer, _, addresses = ask([first, second], asking(Mode.CLOUD), during)
    assert ids(answer) == TRUTH
    assert [lost.next for lost in answer.lost] == [addresses[1]]
    assert (second.described, len(second.openings)) == (1, 1)
