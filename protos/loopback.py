"""What the protocol costs a machine, whatever link there is: sessions between a client and a worker that are both on it.

Time around models goes into Python and gRPC: threads that wake up, messages that are packed and read. It scales with
how fast a machine does such work, and this is a sample of it.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from cutline.protos.client import WorkerClient
from cutline.protos.messages import Confirmed, Draft, Finished, Open, Opened, Reason, agent_from_wire, worker_to_wire
from cutline.protos.v1 import worker_pb2 as pb
from cutline.protos.v1 import worker_pb2_grpc

MESSAGES = 16  # a session, each there and back


async def message_seconds(*, budget: float) -> float:
    """Seconds of one more message there and back, both ends here; the middle of what sessions within `budget` took."""
    server = grpc.aio.server()
    worker_pb2_grpc.add_WorkerServicer_to_server(_Echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with WorkerClient(f"127.0.0.1:{port}") as client:
            times, end = list[float](), time.monotonic() + budget
            while len(times) < 3 or time.monotonic() < end:
                times.append(await _session(client))
    finally:
        await server.stop(None)
    return statistics.median(times[1:])


async def _session(client: WorkerClient) -> float:
    """Seconds a message of one session."""
    opening = Open(model="", tokens=(0,), prompt_length=1, max_tokens=MESSAGES + 1)
    async with client.session(opening, (), timeout=60.0) as session:
        began = time.perf_counter()
        async for event in session.events():
            match event:
                case Opened():
                    began = time.perf_counter()
                    await session.offer(Draft(1, (0,)))
                case Confirmed(position) if position < MESSAGES:
                    await session.offer(Draft(position + 1, (0,)))
                case Confirmed():
                    return (time.perf_counter() - began) / MESSAGES
    raise AssertionError("the echo ended early")


class _Echo(worker_pb2_grpc.WorkerServicer):
    """A worker without a model: it confirms each draft at once."""

    async def Session(self, request_iterator: AsyncIterator[pb.AgentMessage], context: Any) -> AsyncIterator[pb.WorkerMessage]:
        async for message in request_iterator:
            match agent_from_wire(message):
                case Open():
                    yield worker_to_wire(Opened("loopback"))
                case Draft(position, tokens):
                    yield worker_to_wire(Confirmed(position, tokens, len(tokens)))
