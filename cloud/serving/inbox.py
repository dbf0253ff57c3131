"""The agent's side of a stream, read from beginning to end whatever becomes of the session.

gRPC in Python fails an agent's write, and with it all that the agent has not yet read, if the worker ends the stream
meanwhile. So a worker that has said its last message reads on for a moment, until the agent has ended its side.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Self

from google.protobuf.message import DecodeError

from cutline.core.request import MAX_IMAGE_BYTES
from cutline.errors import CutlineError, InputError, WorkerFailed
from cutline.protos.codec import agent_from_wire
from cutline.protos.messages import AgentMessage, ImageChunk
from cutline.protos.v1 import worker_pb2 as pb

log = logging.getLogger(__name__)

_WAITING = 8  # messages held, of 1 MiB at most; beyond that gRPC's flow control stops the agent


class Inbox:
    """An agent's messages, one by one. Use as an async context manager.

    Once all is said, the agent has `linger` seconds to end its side.
    """

    def __init__(self, wire: AsyncIterator[pb.AgentMessage], *, linger: float) -> None:
        self._wire = wire
        self._linger = linger
        self._waiting: asyncio.Queue[tuple[float, pb.AgentMessage | CutlineError | None]] = asyncio.Queue(_WAITING)
        self._draining = False
        self.came_at = 0.0  # on the monotonic clock: when the message that `next` gave last arrived

    async def __aenter__(self) -> Self:
        self._pump = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pump.cancel()

    async def next(self) -> AgentMessage | None:
        """The next message, or None once the agent has ended its side. Raises InputError, WorkerFailed."""
        self.came_at, message = await self._waiting.get()
        if isinstance(message, CutlineError):
            raise message
        return None if message is None else agent_from_wire(message)

    async def drain(self) -> None:
        """Take what still comes, and drop it, until the agent ends its side or has had time to."""
        self._draining = True
        while not self._waiting.empty():
            self._waiting.get_nowait()
        await asyncio.wait([self._pump], timeout=self._linger)

    async def _read(self) -> None:
        end: CutlineError | None = None
        try:
            async for message in self._wire:
                if not self._draining:
                    await self._waiting.put((time.monotonic(), message))
        except DecodeError:
            end = InputError("what came is no message of this protocol; is the agent of another version?")
        except Exception:
            log.exception("reading an agent's messages failed")
            end = WorkerFailed("the worker failed on this session; its log says more")
        if not self._draining:
            await self._waiting.put((time.monotonic(), end))


async def images_of(inbox: Inbox, count: int) -> tuple[bytes, ...]:
    """The files of so many images, which come in chunks. Raises InputError, WorkerFailed."""
    files: list[bytes] = []
    parts, size = bytearray(), 0
    while len(files) < count:
        message = await inbox.next()
        if not isinstance(message, ImageChunk):
            raise InputError(f"{count} images were announced, {len(files)} came")
        size += len(message.data)
        if size > MAX_IMAGE_BYTES:
            raise InputError(f"the images are over {MAX_IMAGE_BYTES >> 20} MiB; send smaller ones")
        parts += message.data
        if message.last:
            files.append(bytes(parts))
            parts.clear()
    return tuple(files)
