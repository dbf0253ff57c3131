"""Measures the protocol's own cost on a machine, with a client and a worker that are both on it.

Besides its models a machine runs Python and gRPC, which wake threads and pack messages. A session over loopback is a
sample of how fast it does so.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from cutline.protos.client import WorkerClient
from cutline.protos.codec import agent_from_wire, worker_to_wire
from cutline.protos.messages import Confirmed, Draft, Finished, Open, Opened, Reason, WorkerMessage
from cutline.protos.v1 import worker_pb2 as pb
from cutline.protos.v1 import worker_pb2_grpc

MESSAGES = 16  # a session
MIN_SESSIONS = 5


async def message_seconds(*, budget: float) -> float:
    """Seconds of one round trip over loopback: the median of the sessions within `budget` seconds."""
    server = grpc.aio.server()
    worker_pb2_grpc.add_WorkerServicer_to_server(_Echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    times, end = list[float](), time.monotonic() + budget
    try:
        async with WorkerClient(f"127.0.0.1:{port}") as client:
            await _session(client)  # connects
            while len(times) < MIN_SESSIONS or time.monotonic() < end:
                times.append(await _session(client) / MESSAGES)
    finally:
        await server.stop(None)
    return statistics.median(times)


async def _session(client: WorkerClient) -> float:
    """Seconds of MESSAGES round trips in a row."""
    opening = Open(model="", tokens=(0,), prompt_length=1, max_tokens=MESSAGES)
    began = ended = 0.0
    async with client.session(opening, (), timeout=60.0) as session:
        async for event in session.events():
            match event:
                case Opened():
                    began = time.perf_counter()
                    await session.offer(Draft(1, (0,)))
                case Confirmed(position) if position < MESSAGES:
                    await session.offer(Draft(position + 1, (0,)))
                case Confirmed():
                    ended = time.perf_counter()
    return ended - began


class _Echo(worker_pb2_grpc.WorkerServicer):
    """A worker without a model that confirms every draft."""

    async def Session(
        self, request_iterator: AsyncIterator[pb.AgentMessage], context: Any
    ) -> AsyncIterator[pb.WorkerMessage]:
        async for message in request_iterator:
            for answer in _answers(agent_from_wire(message)):
                yield worker_to_wire(answer)


def _answers(message: object) -> list[WorkerMessage]:
    match message:
        case Open():
            return [Opened("loopback")]
        case Draft(position, tokens) if position < MESSAGES:
            return [Confirmed(position, tokens, len(tokens))]
        case Draft(position, tokens):
            return [Confirmed(position, tokens, len(tokens)), Finished(Reason.LENGTH, 0, 0, 0.0)]
    return []
