"""Rows of texts and images for requests of either API, by the agent's dual encoder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from cutline.edge.api.errors import Fault, Refused
from cutline.edge.api.handler import ALIAS, LATEST, Attempt, RequestHandler, as_json, tenant_of, unless_gone
from cutline.edge.api.metrics import EMBEDDINGS
from cutline.edge.api.requests.fields import unfit
from cutline.edge.api.requests.schema import ChatImage, ChatText
from cutline.edge.api.streams import AnswerStream
from cutline.edge.inference.encoder import Encoder
from cutline.errors import InputError

MAX_INPUTS = 128  # texts and images of a request


class EmbeddingAsked(Protocol):
    """What either API's request says."""

    @property
    def model(self) -> str | None:
        """The name that it asks for."""

    @property
    def dimensions(self) -> int | None:
        """How many numbers a row is to have."""

    @property
    def parts(self) -> Sequence[ChatText | ChatImage]:
        """Its texts and images in order."""


A = TypeVar("A", bound=EmbeddingAsked)


@dataclass(frozen=True, slots=True)
class Embedded:
    """The `rows` of a request's inputs by a `model`, for which so many tokens and patches were `read`."""

    model: str
    rows: Sequence[NDArray[np.float32]]
    read: int
    seconds: float


class Embedder:
    """Answers requests for rows; of an agent without an `encoder` nothing is there."""

    def __init__(self, handler: RequestHandler, encoder: Encoder | None) -> None:
        self._handler = handler
        self._encoder = encoder
        self._turn = asyncio.Lock()  # an input has all threads to itself; those of several requests take turns

    async def respond(
        self, request: Request, read: Callable[[bytes], A], told: Callable[[A, Embedded], object]
    ) -> Response | AnswerStream:
        """The response to a request that is `read` and `told` in an API's own words. Raises Refused."""
        return await self._handler.attempt(request, partial(self._respond, request, read, told))

    async def _respond(
        self, request: Request, read: Callable[[bytes], A], told: Callable[[A, Embedded], object], attempt: Attempt
    ) -> Response:
        attempt.mode = EMBEDDINGS
        handler, encoder = self._handler, self._encoder
        if encoder is None:
            message = "this agent compares nothing; who runs it may start it with --encoder BUNDLE"
            raise Refused(404, Fault(message, InputError.__name__, code="model_not_found"), {"connection": "close"})
        body = await handler.body(request)
        with handler.place(tenant_of(request)) as place:
            began = time.perf_counter()
            asked = read(body.json)
            name = encoder.manifest.name
            if asked.model and asked.model.removesuffix(LATEST) not in (ALIAS, name):
                message = f"this agent's encoder is {name}; ask for that, or for {ALIAS}"
                raise Refused(404, Fault(message, InputError.__name__, "model", "model_not_found"))
            _check_dimensions(asked.dimensions, encoder.manifest.dimensions)
            place.settle(needs_worker=False)
            urls = tuple(part.image_url.url for part in asked.parts if isinstance(part, ChatImage))
            images = await unless_gone(request.receive, handler.pictures(urls, body))
            rows, count = await unless_gone(request.receive, self._rows(encoder, asked.parts, iter(images)))
            seconds = time.perf_counter() - began
            handler.counts.embedded(texts=len(rows) - len(images), images=len(images), seconds=seconds)
            return as_json(told(asked, Embedded(name, rows, count, seconds)))

    async def _rows(
        self, encoder: Encoder, parts: Sequence[ChatText | ChatImage], images: Iterator[bytes]
    ) -> tuple[list[NDArray[np.float32]], int]:
        """The rows of all inputs, and how many tokens and patches were read: one after the other, until one is gone."""
        rows, read = [], 0
        for part in parts:
            async with self._turn:
                if isinstance(part, ChatText):
                    (row,) = await asyncio.to_thread(encoder.embed_texts, [part.text], fresh=True)
                    read += encoder.count_tokens(part.text)
                else:
                    (row,) = await asyncio.to_thread(encoder.embed_images, [next(images)])
                    read += encoder.manifest.patches
            rows.append(row)
        return rows, read


def _check_dimensions(given: int | None, dimensions: int) -> None:
    """Check that a row's numbers are as many as the encoder has, or none are asked for. Raises Refused."""
    if given not in (None, dimensions):
        raise unfit(f"the encoder's rows have {dimensions} numbers, and cannot be cut to {given}", "dimensions")
