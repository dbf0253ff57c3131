"""What an agent knows of the way to a worker from its sessions, and whose silence it tells of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from cutline.core.request import Mode
from cutline.edge.agent import Agent
from cutline.edge.api.introspection import state_of
from cutline.edge.api.metrics import Totals
from cutline.edge.generation.detokenizer import Transcript
from cutline.edge.generation.generation import Generation
from cutline.edge.generation.result import Decision
from cutline.edge.offload.route import Route
from cutline.edge.offload.worker_pool import Workers
from cutline.edge.request_planner import RequestPlanner
from cutline.errors import InputError, WorkerUnavailable
from cutline.models.vocabulary import Vocabulary
from cutline.protos.codec import worker_to_wire
from cutline.protos.messages import Confirmed, Finished, Opened, Reason
from cutline.protos.v1 import worker_pb2 as pb
from cutline.testing.worker import BUNDLE, NEVER, TRUTH, ScriptedWorker, asking, serving

VOCABULARY = Vocabulary.open(BUNDLE)
TRIP, PREPARED, QUEUED = 0.25, 0.5, 0.25  # seconds


class FarWorker(ScriptedWorker):
    """Opens every session after all these seconds, of which it says that it prepared and that it was busy."""

    async def _converse(
        self, messages: AsyncIterator[pb.AgentMessage], context: Any
    ) -> AsyncGenerator[pb.WorkerMessage]:
        opening = (await anext(aiter(messages))).open
        await asyncio.sleep(TRIP + PREPARED + QUEUED)
        yield worker_to_wire(Opened("it", prepare_seconds=PREPARED, queue_seconds=QUEUED))
        yield worker_to_wire(Confirmed(opening.prompt_length, TRUTH, 0))
        yield worker_to_wire(Finished(Reason.STOP, 1, 0, 0.0))


def test_the_link_is_known_from_the_first_session_on() -> None:
    async def run() -> None:
        async with serving(FarWorker()) as address, Agent(BUNDLE, worker=address, threads=1) as agent:
            assert state_of(agent.state(), Totals(), switchable=True).link is None
            await agent.answer(asking(Mode.CLOUD))
            (state,) = agent.state().workers
            assert state.queue_ms == pytest.approx(QUEUED * 1e3)
            assert state.rtt_ms is not None, "it had connected when it asked what the worker serves"
            assert TRIP * 1e3 <= state.rtt_ms + 1.0 < (TRIP + PREPARED) * 1e3
            link = state_of(agent.state(), Totals(), switchable=True).link
            assert link is not None
            assert link.rtt_ms == state.rtt_ms

    asyncio.run(run())


def test_silence_is_that_of_the_worker_which_was_lost() -> None:
    route, progress = (
        Route(0.0, NEVER.said("any", Decision.PASSED)),
        Generation(0.0, Transcript(VOCABULARY)),
    )
    session: Any = SimpleNamespace(address="a", heard=time.monotonic() - 5.0)
    route.sessions.append(session)
    for worker in ("b", "a"):
        route.lose(worker, WorkerUnavailable("nothing was heard"), 0)
        route.tell_lost(progress, None)
    assert route.lost[0].silent_ms == 0.0
    assert route.lost[1].silent_ms >= 5000.0


class Locked(Workers):
    """Workers whose keys no longer read."""

    def choose(self, **_: Any) -> Any:
        raise InputError("the token file is gone")


def test_keys_that_no_longer_read_are_left_for_a_session_to_tell() -> None:
    async def run() -> None:
        planner: Any = SimpleNamespace(upstream=False)
        async with Agent(BUNDLE, worker=Locked(("127.0.0.1:1",)), threads=1) as agent:
            planning = RequestPlanner(planner, agent._backends)
            planning.open()
            assert planning.meeting is not None
            await planning.meeting

    asyncio.run(run())
