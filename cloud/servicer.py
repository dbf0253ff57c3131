"""The Worker service: turns streams into sessions of the engine, and its events into messages."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutline.cloud.engine import Engine
from cutline.cloud.inbox import Inbox
from cutline.cloud.session import Event, Request
from cutline.errors import CutlineError, InputError, ModelMismatch, WorkerFailed
from cutline.models.bundle import Manifest
from cutline.models.images import decode_image, preprocess
from cutline.models.sampling import Sampling
from cutline.protos.messages import (
    Boundary,
    Cancel,
    Confirmed,
    Description,
    Draft,
    Finished,
    ImageChunk,
    Open,
    Opened,
    description_to_wire,
    worker_to_wire,
)
from cutline.protos.status import status_of
from cutline.protos.v1 import worker_pb2 as pb
from cutline.protos.v1 import worker_pb2_grpc

log = logging.getLogger(__name__)

MAX_IMAGES = 16
MAX_IMAGE_BYTES = 32 << 20  # of all a session's images together
MAX_BOUNDARY_BYTES = 128 << 20  # as float32, whatever the format on the wire
OPENING_SECONDS = 60.0  # for a session's images or boundary to arrive in

BoundaryRows = NDArray[np.float32]  # (n, width)


class WorkerServicer(worker_pb2_grpc.WorkerServicer):
    """Serves one bundle's target through `engine`. `context` is how many tokens a session may hold."""

    def __init__(self, engine: Engine, manifest: Manifest, *, context: int) -> None:
        self._engine = engine
        self._manifest = manifest
        self._context = context
        self._version = _version()

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.Description:
        """What this worker serves."""
        manifest = self._manifest
        description = Description(
            model=manifest.identity,
            name=manifest.name,
            version=self._version,
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
        failure: CutlineError | None = None
        async with Inbox(request_iterator) as inbox:
            try:
                async with contextlib.aclosing(self._converse(inbox)) as events:
                    async for event in events:
                        yield worker_to_wire(event)
            except CutlineError as error:
                log.info("session refused or failed: %s", error)
                failure = error
            except Exception:
                log.exception("a session failed")
                failure = WorkerFailed("the worker failed on this session; its log says more")
            if failure is not None:
                yield worker_to_wire(failure)
            await inbox.drain()
        if failure is not None:
            await context.abort(status_of(failure), str(failure))

    async def _converse(self, inbox: Inbox) -> AsyncGenerator[Opened | Confirmed | Finished]:
        """The events of one session. Raises CutlineError."""
        try:
            async with asyncio.timeout(OPENING_SECONDS):
                opening, images = await self._read_opening(inbox)
        except TimeoutError:
            raise InputError(f"the session's opening took over {OPENING_SECONDS:.0f} seconds to arrive") from None
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        early: list[Draft] = []
        room = self._context

        def keep(draft: Draft) -> None:
            nonlocal room
            room -= len(draft.tokens)
            if room < 0:  # until something is confirmed, nothing is drafted twice
                raise InputError(f"over {self._context} tokens were drafted before the session was open")
            early.append(draft)

        take: Callable[[Draft], None] = keep
        reader = asyncio.create_task(self._read_drafts(inbox, lambda draft: take(draft), events))
        name: str | None = None
        try:
            # Drafts that come while the images are prepared join the session's first pass.
            request = await asyncio.to_thread(self._request, opening, images)
            loop = asyncio.get_running_loop()
            name = self._engine.open(request, early, lambda event: _hand_over(loop, events, event))
            take = functools.partial(self._engine.offer, name)
            while (event := await events.get()) is not None:
                if isinstance(event, CutlineError):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            reader.cancel()
            if name is not None:
                self._engine.close(name)

    async def _read_opening(self, inbox: Inbox) -> tuple[Open, list[bytes] | BoundaryRows]:
        """The opening, and the images (files) or the boundary that follow it.

        Raises InputError, ModelMismatch, and WorkerBusy before anything is uploaded in vain.
        """
        opening = await inbox.next()
        if not isinstance(opening, Open):
            raise InputError("the first message of a session must open it")
        self._check(opening)
        if (busy := self._engine.busy()) is not None:
            raise busy
        if opening.cut == "image":
            return opening, await _images(inbox, opening.images)
        tiles, rest = divmod(self._image_tokens(opening), self._manifest.image.tokens)
        if rest:
            raise InputError(f"the prompt's image tokens are {rest} more than whole tiles have")
        rows, width = self._engine.boundary_shape(opening.cut)
        return opening, await _boundary(inbox, tiles * rows, width)

    def _request(self, opening: Open, images: list[bytes] | BoundaryRows) -> Request:
        """The request for the engine. Raises InputError where images and prompt do not fit each other."""
        boundary: NDArray[np.float32] | None
        if isinstance(images, np.ndarray):
            boundary = images if len(images) else None
        else:
            spec = self._manifest.image
            tiles = [preprocess(decode_image(file), spec).tiles for file in images]
            boundary = np.concatenate(tiles) if tiles else None
            given, expected = sum(map(len, tiles)) * spec.tokens, self._image_tokens(opening)
            if given != expected:
                raise InputError(f"the prompt holds {expected} image tokens, but the images sent give {given}")
        return Request(
            tokens=opening.tokens,
            prompt_length=opening.prompt_length,
            max_tokens=opening.max_tokens,
            sampling=Sampling(
                temperature=opening.temperature, top_k=opening.top_k, top_p=opening.top_p, seed=opening.seed
            ),
            effort=opening.effort,
            draft=opening.draft,
            cut=opening.cut,
            boundary=boundary,
        )

    def _image_tokens(self, opening: Open) -> int:
        """How many image tokens the prompt holds; one in an answer is a token like any other."""
        return opening.tokens[: opening.prompt_length].count(self._manifest.image_token)

    def _check(self, opening: Open) -> None:
        manifest = self._manifest
        if opening.model != manifest.identity:
            raise ModelMismatch(
                f"this worker serves {manifest.name} ({manifest.identity[:12]}), "
                f"the agent was made for {opening.model[:12]!r}; connect it to a worker of that model"
            )
        cuts = manifest.line.image_cuts
        if opening.cut not in cuts:
            raise InputError(f"this worker cannot begin at {opening.cut[:40]!r}; cuts: {', '.join(cuts)}")
        if opening.images > MAX_IMAGES:
            raise InputError(f"{opening.images} images are too many; send {MAX_IMAGES} at most")
        if opening.images * manifest.image.tokens > opening.tokens.count(manifest.image_token):
            raise InputError(f"{opening.images} images need more image tokens than the prompt holds")
        if len(opening.tokens) >= self._context:
            raise InputError(f"{len(opening.tokens)} tokens leave no room in a context of {self._context}")
        if len(opening.tokens) >= opening.prompt_length + opening.max_tokens:
            raise InputError("max_tokens leaves nothing to answer")
        vocabulary = manifest.decoder.vocabulary
        if max((*opening.tokens, *opening.draft)) >= vocabulary:
            raise InputError(f"a token is outside the vocabulary of {vocabulary}")

    async def _read_drafts(
        self, inbox: Inbox, take: Callable[[Draft], None], events: asyncio.Queue[Event | None]
    ) -> None:
        """Take drafts until the agent cancels, ends its side, or sends what does not belong."""
        try:
            while (message := await inbox.next()) is not None:
                match message:
                    case Draft():
                        if max(message.tokens, default=0) >= self._manifest.decoder.vocabulary:
                            raise InputError("a drafted token is outside the vocabulary")
                        # What lies past the context never stands.
                        tokens = message.tokens[: max(0, self._context - message.position)]
                        if tokens:
                            take(Draft(message.position, tokens))
                    case Cancel():
                        events.put_nowait(None)
                        return
                    case _:
                        raise InputError(f"a session that is open takes drafts, not {type(message).__name__}")
        except CutlineError as error:
            events.put_nowait(error)


def _version() -> str:
    try:
        return version("cutline")
    except PackageNotFoundError:  # run from a folder, never installed
        return "unknown"


def _hand_over(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event | None], event: Event) -> None:
    """Called by the engine's thread."""
    with contextlib.suppress(RuntimeError):  # the loop has closed: the server stopped first, and nobody listens
        loop.call_soon_threadsafe(events.put_nowait, event)


async def _images(inbox: Inbox, count: int) -> list[bytes]:
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
    return files


async def _boundary(inbox: Inbox, count: int, width: int) -> BoundaryRows:
    """The boundary (count, width), in as many messages as it takes."""
    if count * width * 4 > MAX_BOUNDARY_BYTES:
        raise InputError(f"a boundary of {count} rows is over {MAX_BOUNDARY_BYTES >> 20} MiB as float32; send images")
    parts, come = [np.empty((0, width), np.float32)], 0
    while come < count:
        message = await inbox.next()
        if not isinstance(message, Boundary):
            raise InputError(f"{count} boundary rows were to come, {come} came")
        if message.rows.shape[1] != width:
            raise InputError(f"boundary rows are {message.rows.shape[1]} wide, this model's are {width}")
        come += len(message.rows)
        if come > count or message.last != (come == count):
            raise InputError(f"the prompt's images have {count} boundary rows, not the number sent")
        parts.append(message.rows)
    return np.concatenate(parts)
