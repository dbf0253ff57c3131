"""The Worker service: turns streams into sessions of the engine, and its events into messages."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any

import grpc
import numpy as np

from cutline.cloud.engine import Engine
from cutline.cloud.session import Event, Request
from cutline.errors import CutlineError, InputError, ModelMismatch
from cutline.models.bundle import Manifest
from cutline.models.images import decode_image, preprocess
from cutline.models.sampling import Sampling
from cutline.protos.messages import (
    AgentMessage,
    Boundary,
    Cancel,
    Description,
    Draft,
    Finished,
    ImageChunk,
    Open,
    agent_from_wire,
    description_to_wire,
    worker_to_wire,
)
from cutline.protos.status import status_of
from cutline.protos.v1 import worker_pb2 as pb
from cutline.protos.v1 import worker_pb2_grpc

log = logging.getLogger(__name__)

MAX_IMAGES = 16
MAX_IMAGE_BYTES = 32 << 20  # of all a session's images together
CUTS = ("image", "decoder.0")

Messages = AsyncIterator[AgentMessage]


class WorkerServicer(worker_pb2_grpc.WorkerServicer):
    """Serves one bundle's target through `engine`. `context` is how many tokens a session may hold."""

    def __init__(self, engine: Engine, manifest: Manifest, *, context: int) -> None:
        self._engine = engine
        self._manifest = manifest
        self._context = context

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.Description:
        """What this worker serves."""
        manifest = self._manifest
        description = Description(
            model=manifest.identity,
            name=manifest.name,
            version=version("cutline"),
            vision_layers=manifest.line.vision,
            decoder_layers=manifest.line.decoder,
            context=self._context,
            sessions=self._engine.sessions,
            max_sessions=self._engine.max_sessions,
        )
        return description_to_wire(description)

    async def Session(
        self, request_iterator: AsyncIterator[pb.AgentMessage], context: Any
    ) -> AsyncIterator[pb.WorkerMessage]:
        """One conversation, until the answer is complete, the agent cancels, or something is wrong."""
        messages = (agent_from_wire(message) async for message in request_iterator)
        try:
            async for message in self._converse(messages):
                yield message
        except CutlineError as error:
            log.info("session refused or failed: %s", error)
            await context.abort(status_of(error), str(error))
        except Exception:
            log.exception("a session failed")
            await context.abort(grpc.StatusCode.INTERNAL, "the worker failed on this session; its log says more")

    async def _converse(self, messages: Messages) -> AsyncIterator[pb.WorkerMessage]:
        request = await self._request(messages)
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        name = self._engine.open(request, lambda event: _hand_over(loop, events, event))
        reader = asyncio.create_task(self._read_drafts(name, messages, events))
        try:
            while (event := await events.get()) is not None:
                if isinstance(event, CutlineError):
                    raise event
                yield worker_to_wire(event)
                if isinstance(event, Finished):
                    return
        finally:
            self._engine.close(name)
            reader.cancel()

    async def _request(self, messages: Messages) -> Request:
        """Read the opening and the images or the boundary that follow it. Raises InputError, ModelMismatch."""
        opening = await anext(messages, None)
        if not isinstance(opening, Open):
            raise InputError("the first message of a session must open it")
        self._check(opening)
        tiles, image_rows = None, None
        if opening.cut == "decoder.0":
            image_rows = await _boundary(messages, self._manifest.decoder.width)
        elif opening.images:
            files = await _images(messages, opening.images)
            tiles = await asyncio.to_thread(self._tiles, files)
        expected = opening.tokens[: opening.prompt_length].count(self._manifest.image_token)
        if image_rows is not None:
            rows = len(image_rows)
        else:
            rows = 0 if tiles is None else len(tiles) * self._manifest.image.tokens
        if rows != expected:
            raise InputError(f"the prompt holds {expected} image tokens, but the images sent give {rows}")
        return Request(
            tokens=opening.tokens,
            prompt_length=opening.prompt_length,
            max_tokens=opening.max_tokens,
            sampling=Sampling(
                temperature=opening.temperature, top_k=opening.top_k, top_p=opening.top_p, seed=opening.seed
            ),
            effort=opening.effort,
            draft=opening.draft,
            tiles=tiles,
            image_rows=image_rows,
        )

    def _check(self, opening: Open) -> None:
        manifest = self._manifest
        if opening.model != manifest.identity:
            raise ModelMismatch(
                f"this worker serves {manifest.name} ({manifest.identity[:12]}), "
                f"the agent was made for {opening.model[:12] or 'no model'}; connect it to a worker of that model"
            )
        if opening.cut not in CUTS:
            raise InputError(f"this worker cannot begin at {opening.cut[:40]!r}; cuts: {', '.join(CUTS)}")
        if opening.images > MAX_IMAGES:
            raise InputError(f"{opening.images} images are too many; send {MAX_IMAGES} at most")
        if len(opening.tokens) >= self._context:
            raise InputError(f"{len(opening.tokens)} tokens leave no room in a context of {self._context}")
        if len(opening.tokens) >= opening.prompt_length + opening.max_tokens:
            raise InputError("max_tokens leaves nothing to answer")
        vocabulary = manifest.decoder.vocabulary
        if max((*opening.tokens, *opening.draft)) >= vocabulary:
            raise InputError(f"a token is outside the vocabulary of {vocabulary}")

    def _tiles(self, files: list[bytes]) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.concatenate([preprocess(decode_image(file), self._manifest.image).tiles for file in files])

    async def _read_drafts(self, name: str, messages: Messages, events: asyncio.Queue[Event | None]) -> None:
        """Pass drafts on to the engine until the agent cancels, ends its side, or sends what does not belong."""
        try:
            async for message in messages:
                match message:
                    case Draft(position, tokens):
                        if max(tokens, default=0) >= self._manifest.decoder.vocabulary:
                            raise InputError("a drafted token is outside the vocabulary")
                        self._engine.offer(name, position, tokens)
                    case Cancel():
                        await events.put(None)
                        return
                    case _:
                        raise InputError(f"a session that is open takes drafts, not {type(message).__name__}")
        except CutlineError as error:
            await events.put(error)


def _hand_over(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event | None], event: Event) -> None:
    """Called by the engine's thread; the loop may have closed when the server stops first."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(events.put_nowait, event)


async def _images(messages: Messages, count: int) -> list[bytes]:
    files: list[bytes] = []
    parts, size = bytearray(), 0
    while len(files) < count:
        message = await anext(messages, None)
        if not isinstance(message, ImageChunk):
            raise InputError(f"{count} images were announced, {len(files)} came")
        size += len(message.data)
        if size > MAX_IMAGE_BYTES:
            raise InputError(f"the images are over {MAX_IMAGE_BYTES >> 20} MiB; send smaller ones")
        parts += message.data
        if message.last:
            files.append(bytes(parts))
            parts.clear()
    return files


async def _boundary(messages: Messages, width: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    parts: list[np.ndarray[Any, np.dtype[np.float32]]] = []
    size = 0
    while True:
        message = await anext(messages, None)
        if not isinstance(message, Boundary):
            raise InputError("a session at this cut sends its boundary after it opens")
        if message.rows.shape[1] != width:
            raise InputError(f"boundary rows are {message.rows.shape[1]} wide, this model's are {width}")
        size += message.rows.nbytes
        if size > MAX_IMAGE_BYTES:
            raise InputError(f"the boundary is over {MAX_IMAGE_BYTES >> 20} MiB")
        parts.append(message.rows.astype(np.float32))
        if message.last:
            return np.concatenate(parts)
